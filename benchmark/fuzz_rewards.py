"""Search with hypothesis for a completion that makes a reward raise, hang or leave its bounds.

    python -m benchmark.fuzz_rewards                 # 460,000 completions, a few minutes on two cores
    python -m benchmark.fuzz_rewards --cases 500     # 500 completions for each reward

Results go to benchmark/results/fuzz_rewards.md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from unmask import rewards
from unmask.core.timeouts import within
from unmask.rewards.grading.answers import tagged_answer
from unmask.rewards.grading.extract import code_in
from unmask.rewards.grading.syntax import parse
from unmask.rewards.protocol import RewardFunc
from unmask.tasks import Arithmetic, Countdown, Sudoku
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.hendrycks_math import Math
from unmask.tasks.program import function_of_x
from unmask.tasks.reasoning_gym import available

RESULTS = Path(__file__).parent / "results" / "fuzz_rewards.md"
BATCH = 20
"""Number of completions of one example."""
BATCH_SECONDS = 60.0
"""Maximum time in seconds of a call of a reward function: the default `reward_timeout`."""

_TAGS = [
    "<answer>",
    "</answer>",
    "The answer is ",
    "not ",
    " or ",
    " dozen",
    " is wrong",
    "</think>",
    "<|eot_id|>",
    "<reasoning>",
    "</reasoning>",
    "####",
    "```",
    "\n",
    " ",
    "<eos>",
    "\0",
    "answer",
]
_NUMBERS = [
    "0",
    "1",
    "18",
    "-3",
    "1,000",
    "3.14",
    "1/2",
    "50%",
    "$5",
    "9" * 40,
    "²",
    "٣",
    "½",
    ".",
    ",",
    "e",
    "x",
    "nan",
    "inf",
]
_OPERATORS = [
    "+",
    "-",
    "*",
    "/",
    "**",
    "//",
    "(",
    ")",
    "=",
    "!",
    "%",
    "^",
    "_",
    "{",
    "}",
    "[",
    "]",
    "|",
    ":",
    ";",
    "~",
    "&",
]
_LATEX = [
    r"\boxed{",
    r"\frac",
    r"\dfrac{1}{",
    r"\sqrt{",
    r"\pi",
    r"\infty",
    r"\text{",
    r"\pm",
    r"\cup",
    r"\int",
    r"\sum_{",
    r"\lim",
    r"\sin",
    r"\log",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\\",
    r"\left(",
    r"\right]",
    r"\in",
    r"\{",
    r"\}",
    r"\%",
    r"\$",
    "$",
    r"^\circ",
    r"\mathrm{",
    r"\!",
    r"\,",
]
_CODE = [
    "def f(x):\n",
    "    return x\n",
    "return 3*x+2",
    "3*x+2",
    "f(x) = ",
    "lambda x: ",
    "import numpy as np\n",
    "```python\n",
    "~~~",
    "python\n",
    "'''",
    ">>> ",
    "@f\n",
    "class f:\n",
    "else:\n",
    "Row 1: ",
    "Step 2: ",
    " or ",
    "<think>",
    "</think>",
]
_PIECES = st.sampled_from(_TAGS + _NUMBERS + _OPERATORS + _LATEX + _CODE)
_INSIDE = st.lists(_PIECES | st.text(max_size=3), max_size=12).map("".join)
_ANY = st.lists(_PIECES | st.characters(), max_size=30).map("".join)

NUMBERS = ["18", "-3", "1,000", "0", "3.14"]
EXPRESSIONS = [
    r"\frac{1}{2}",
    r"2\sqrt{2}",
    "(3,4]",
    r"\text{(B)}",
    "2516_8",
    r"1 \pm \sqrt{19}",
    "y = 2x + 3",
    "p - q",
]
"""Correct answers of the rows that completions are compared with."""

completions = st.one_of(
    st.text(max_size=60),
    st.sampled_from(NUMBERS + EXPRESSIONS).map(lambda text: f"<answer>{text}</answer>"),
    st.tuples(_INSIDE, _INSIDE).map(lambda pair: "<reasoning>{}</reasoning>\n<answer>{}</answer>".format(*pair)),
    _ANY,
    _INSIDE.map(lambda text: f"so\n<answer>{text}</answer>"),
    _INSIDE.map(lambda text: f"<answer>\\boxed{{{text}}}</answer>"),
    st.lists(st.sampled_from(_NUMBERS + _OPERATORS), max_size=20).map("".join),
    st.text("0123456789", min_size=1, max_size=20).map(lambda text: f"<answer>{text}</answer>"),
    st.tuples(_PIECES, st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1]),
    st.text("01234|- \n", max_size=40),
)
"""Strategy for completions: any text, correct answers, tags in any order, numbers, LaTeX, and many
repetitions."""

batches = st.lists(completions, min_size=BATCH, max_size=BATCH)


@dataclass
class Subject:
    """A reward function, with columns to call it with."""

    name: str
    function: RewardFunc
    columns: dict[str, list[Any]]
    """Columns of a few rows, which the completions of a batch use in turn."""
    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    reasons: Counter[str] = field(default_factory=Counter)

    def judge(self, texts: Sequence[str]) -> None:
        """Compute the rewards of a batch.

        Raises:
            AssertionError: a reward is missing or outside of [0, 1]. Errors of the function and
                TimeLimitError pass through.
        """
        columns = {name: [values[i % len(values)] for i in range(len(texts))] for name, values in self.columns.items()}
        started = time.perf_counter()
        given = {"prompts": ["?"] * len(texts), "completions": list(texts), **columns}
        scores = within(BATCH_SECONDS, lambda: self.function(**given))
        took = time.perf_counter() - started
        assert len(scores) == len(texts)
        for text, score in zip(texts, scores, strict=True):
            assert score is not None, (self.name, text)
            assert 0.0 <= score <= 1.0, (self.name, text, score)
            self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)
            self.reasons[getattr(score, "reason", "")] += 1
        self.cases += len(texts)
        self.seconds += took
        self.slowest = max(self.slowest, took)


def subjects() -> list[Subject]:
    """Return every reward of the tasks of mathematics and puzzles, and the ready-made ones."""
    made = [Sudoku(), Sudoku(format="tagged", sparse=True), Countdown(), Countdown(format="tagged", num_numbers=4)]
    found = []
    for task in [*made, Arithmetic(), Arithmetic(format="tagged", num_operands=6, max_operand=99)]:
        rows = task.rows("train", 5)
        columns = {name: [row[name] for row in rows] for name in task.reward_columns}
        found += [Subject(f"{name}, {task.format}", f, columns) for name, f in task.rewards().items()]
    found += [Subject(f"gsm8k, {form}", GSM8K(format=form)._reward, {"answer": NUMBERS}) for form in ("bare", "tagged")]
    found += [Subject("math, tagged", Math(test_source=None)._reward, {"answer": EXPRESSIONS})]
    found += [Subject("program, the function found", _found(function_of_x), {})]
    found += [Subject("code, the program found", _found(lambda text: parse(code_in(text, ["f"]))), {})]
    if available():
        found += [_guarded(name) for name in ("gsm_symbolic", "coin_flip", "mini_sudoku", "word_sorting")]
    named = [f for name in rewards.__all__ if "completions" in signature(f := getattr(rewards, name)).parameters]
    return found + [Subject(f.__name__, f, {"answer": EXPRESSIONS + NUMBERS}) for f in named]


def _found(find: Callable[[str], object]) -> RewardFunc:
    """Return a reward that is 1 if something is found in a completion; no program is run."""

    def reward(completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [float(bool(find(tagged_answer(text) or text))) for text in completions]

    return reward


def _guarded(name: str) -> Subject:
    """Return a scorer of reasoning-gym behind its guard, in this process."""
    from unmask.tasks.reasoning_gym_items import entries_of, score_entry

    def reward(completions: Sequence[str], entry: Sequence[dict[str, Any]], **columns: Any) -> list[float | None]:
        return [score_entry(name, "{}", text, item) for text, item in zip(completions, entry, strict=True)]

    return Subject(f"reasoning_gym:{name}", reward, {"entry": list(entries_of(name, "{}", "train", 3, 0))})


def fuzz(subject: Subject, cases: int) -> None:
    """Let hypothesis search for a batch that breaks a reward, in this number of completions."""
    check: Callable[[], None] = settings(
        max_examples=max(1, cases // BATCH),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(given(batches)(subject.judge))
    check()


def table(done: list[Subject]) -> str:
    """Return a Markdown table with a line for each reward."""
    lines = [
        "| reward | completions | lowest | highest | unparsed | timed out | ms each | slowest batch, s |",
        "|---" * 8 + "|",
    ]
    for s in done:
        lines.append(
            f"| {s.name} | {s.cases} | {s.lowest:g} | {s.highest:g} | {s.reasons['unparsed']} | {s.reasons['timeout']} "
            f"| {1000 * s.seconds / s.cases:.2f} | {s.slowest:.2f} |"
        )
    lines.append(f"| all | {sum(s.cases for s in done)} | | | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="number of completions for each reward")
    arguments = parser.parse_args()
    done = subjects()
    for subject in done:
        fuzz(subject, arguments.cases)
        print(subject.name, subject.cases, f"{subject.seconds:.1f} s", flush=True)
    text = table(done)
    RESULTS.write_text(f"`python -m benchmark.fuzz_rewards --cases {arguments.cases}`\n\n{text}\n")
    print(text)
