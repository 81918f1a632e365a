"""Accuracy of the mathematics rewards on gold answers in many forms, and on wrong answers.

    python -m benchmark.grading --data ../shared/data       # five minutes on two cores; writes benchmark/results/grading.md

The folder holds gsm8k_train, gsm8k_test, math_train and math500_test as .parquet, .jsonl or .csv,
with the hub's columns.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmark import answer_variants, latex_variants
from benchmark.wrong_answers import GSM8K as WRONG_GSM8K
from benchmark.wrong_answers import MATH as WRONG_MATH
from benchmark.wrong_answers import Wrong
from unmask.core.records import Row
from unmask.rewards.grading.numerals import read_number
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.hendrycks_math import Math
from unmask.tasks.maths import MathsTask
from unmask.tasks.readers import READERS

RESULTS = Path(__file__).parent / "results" / "grading.md"

Wrap = Callable[[str], str]

ANY_TASK: dict[str, Wrap] = {
    "in the tag": lambda gold: f"So it is\n<answer>{gold}</answer>",
    "in the tag, on a line of its own": lambda gold: f"<answer>\n{gold}\n</answer>\nI hope that helps.",
    "boxed in the tag": lambda gold: f"<answer>\\boxed{{{gold}}}</answer>",
    "boxed in a sentence, no tag": lambda gold: f"First \\boxed{{7}}; so the answer is $\\boxed{{{gold}}}$.",
    "between dollars in the tag": lambda gold: f"<answer>$ {gold} $</answer>",
}
"""Texts that models put around an answer."""
NUMBERS: dict[str, Wrap] = {
    "as a decimal": lambda gold: f"<answer>{gold}.00</answer>",
    "without separators": lambda gold: f"<answer>{gold.replace(',', '')}</answer>",
    "with separators": lambda gold: f"<answer>{int(gold.replace(',', '')):,}</answer>",
    "in dollars": lambda gold: f"<answer>${gold}.</answer>",
    "with a unit": lambda gold: f"<answer>{gold} miles per hour</answer>",
    "bold, after a name": lambda gold: f"<answer>**x = {gold}**</answer>",
    "as a fraction": lambda gold: f"<answer>\\frac{{{2 * int(gold.replace(',', ''))}}}{{2}}</answer>",
}
EXPRESSIONS: dict[str, Wrap] = {
    "as \\dfrac, with spaces": lambda gold: f"<answer>{gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}\\,.</answer>",
    "in display mode": lambda gold: f"<answer>\\[ {gold} \\]</answer>",
}


def full_scores(task: MathsTask, rows: list[Row], wrap: Wrap) -> int:
    """Return how many gold answers in this form earn 1."""
    (reward,) = task.rewards().values()
    texts = [wrap(str(row["answer"])) for row in rows]
    return sum(score == 1.0 for score in reward([None] * len(rows), texts, answer=[row["answer"] for row in rows]))


def shifted(task: MathsTask, rows: list[Row]) -> tuple[int, int]:
    """Answer each row with the next row's gold answer if it differs.

    Return how many there are and how many earn 1.
    """
    (reward,) = task.rewards().values()
    pairs = [(str(a["answer"]), str(b["answer"])) for a, b in zip(rows, [*rows[1:], rows[0]], strict=True)]
    other = [(gold, given) for gold, given in pairs if _is_another(gold, given)]
    scores = reward(
        [None] * len(other), [f"<answer>{given}</answer>" for _, given in other], answer=[gold for gold, _ in other]
    )
    return len(other), sum(score != 0.0 for score in scores)


def _is_another(gold: str, given: str) -> bool:
    """Return True if two gold answers certainly differ, such as other numbers."""
    a, b = read_number(gold), read_number(given)
    return (a is None) != (b is None) or (a is not None and b is not None and a.value != b.value)


def wrong_scores(task: MathsTask, corpus: list[Wrong]) -> list[tuple[Wrong, float, str]]:
    """Return the reward of each wrong answer, with its reason if there is one."""
    (reward,) = task.rewards().values()
    texts, golds = [w.completion for w in corpus], [w.gold for w in corpus]
    scores = reward([None] * len(corpus), texts, answer=golds)
    return [(w, float(s), getattr(s, "reason", "")) for w, s in zip(corpus, scores, strict=True)]


def number_variants(task: MathsTask, rows: list[Row]) -> list[tuple[str, int, int]]:
    """Return name, number and number of rewarded variants of every gold number.

    0 and 7 are left out, because some of the wrong variants contain them.
    """
    (reward,) = task.rewards().values()
    golds = sorted({str(row["answer"]).replace(",", "") for row in rows} - {"0", "7"})
    counts = []
    for name, variants in (("the same", answer_variants.same), ("another", answer_variants.other)):
        pairs = [(gold, text) for gold in golds for text in variants(gold)]
        scores = reward(
            [None] * len(pairs), [f"<answer>{text}</answer>" for _, text in pairs], answer=[g for g, _ in pairs]
        )
        counts.append((name, len(pairs), sum(score == 1.0 for score in scores)))
    return counts


def expression_variants(task: MathsTask, rows: list[Row]) -> list[tuple[str, int, int]]:
    """Return name, number and number of rewarded variants of every gold expression."""
    (reward,) = task.rewards().values()
    golds = sorted({str(row["answer"]) for row in rows})
    counts = []
    for name, table in (("the same", latex_variants.SAME), ("another", latex_variants.OTHER)):
        for kind, rewrite in table.items():
            pairs = [(gold, text) for gold in golds if (text := rewrite(gold)) is not None]
            scored = 0
            for start in range(0, len(pairs), 200):
                batch = pairs[start : start + 200]
                texts = [f"<answer>{text}</answer>" for _, text in batch]
                scored += sum(
                    score == 1.0 for score in reward([None] * len(batch), texts, answer=[g for g, _ in batch])
                )
            counts.append((f"{name}, {kind}", len(pairs), scored))
    return counts


def source(folder: Path, name: str) -> str:
    """Return the file of a data set in the folder."""
    found = [str(folder / f"{name}{suffix}") for suffix in READERS if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise SystemExit(f"no {name} with one of {', '.join(READERS)} in {folder}")
    return found[0]


def tables(folder: Path) -> str:
    """Return the confusion table and the details of each form as Markdown."""
    gsm8k = GSM8K(source=source(folder, "gsm8k_train"), test_source=source(folder, "gsm8k_test"))
    math = Math(source=source(folder, "math_train"), test_source=source(folder, "math500_test"))
    sets: list[tuple[str, MathsTask, list[Row], dict[str, Wrap]]] = [
        ("GSM8K test", gsm8k, gsm8k._load("test"), ANY_TASK | NUMBERS),
        ("GSM8K train", gsm8k, gsm8k._load("train"), ANY_TASK | NUMBERS),
        ("MATH500", math, math._load("test"), ANY_TASK | EXPRESSIONS),
        ("MATH train", math, math._load("train"), ANY_TASK | EXPRESSIONS),
    ]
    summary = ["| answers | rows or answers | judged | reward 1 | reward 0 |", "|---|---|---|---|---|"]
    ways = ["| gold answer of | wrapped | rows | reward 1 |", "|---|---|---|---|"]
    for name, task, rows, wraps in sets:
        counts = {wrap: full_scores(task, rows, function) for wrap, function in wraps.items()}
        judged, right = len(rows) * len(counts), sum(counts.values())
        summary.append(
            f"| right: gold of {name}, {len(counts)} ways | {len(rows)} | {judged} | {right} | {judged - right} |"
        )
        ways += [f"| {name} | {wrap} | {len(rows)} | {count} |" for wrap, count in counts.items()]
    for name, task, rows, _ in sets:
        judged, scored = shifted(task, rows)
        summary.append(
            f"| wrong: the next row's gold, {name} | {len(rows)} | {judged} | {scored} | {judged - scored} |"
        )
    kinds = ["| task | wrong answer | answers | reward 0 | of them unparsed or timed out |", "|---|---|---|---|---|"]
    for name, task, corpus in (("GSM8K", gsm8k, WRONG_GSM8K), ("MATH", math, WRONG_MATH)):
        results = wrong_scores(task, corpus)
        scored = sum(score != 0.0 for _, score, _ in results)
        summary.append(
            f"| wrong: corpus for {name} | {len(corpus)} | {len(corpus)} | {scored} | {len(corpus) - scored} |"
        )
        total, none, reasons = (
            Counter(w.kind for w, _, _ in results),
            Counter(w.kind for w, s, _ in results if s == 0.0),
            Counter(w.kind for w, _, reason in results if reason),
        )
        kinds += [f"| {name} | {kind} | {total[kind]} | {none[kind]} | {reasons[kind]} |" for kind in total]
    variants = ["| distinct gold answers of | variants that say | judged | reward 1 |", "|---|---|---|---|"]
    numbers = number_variants(gsm8k, gsm8k._load("test"))
    expressions = expression_variants(math, math._load("test") + math._load("train"))
    variants += [f"| GSM8K test | {name} | {judged} | {scored} |" for name, judged, scored in numbers]
    variants += [f"| MATH | {name} | {judged} | {scored} |" for name, judged, scored in expressions]
    return "\n\n".join("\n".join(table) for table in (summary, ways, kinds, variants))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the four data sets")
    arguments = parser.parse_args()
    started = time.perf_counter()
    text = tables(arguments.data)
    RESULTS.write_text(f"`python -m benchmark.grading --data FOLDER`\n\n{text}\n")
    print(f"{text}\n\n{time.perf_counter() - started:.0f} s")
