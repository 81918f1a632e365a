"""Tasks of the package reasoning-gym: disjoint splits, its scorers as rewards, and errors."""

from __future__ import annotations

import ast
import inspect
import random
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import TRAIN, metrics, unmask
from unmask.core.errors import ConfigError, DataError
from unmask.models import TinyConfig, char_tokenizer, save_model, tiny_denoiser
from unmask.recipes.load import make_task
from unmask.rewards.workers import WorkerOutcome
from unmask.tasks import TASKS, Task
from unmask.tasks.reasoning_gym import EVALUATING, RUNNING, ReasoningGym, available

pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")

SMALL = {"max_terms": 2, "max_digits": 1}


def chain_sum(**options: Any) -> ReasoningGym:
    return ReasoningGym(name="chain_sum", **options)


def questions(task: Task, split: Any, num_rows: int, seed: int = 0) -> list[str]:
    return [row["entry"]["question"] for row in task.rows(split, num_rows, seed)]


# --- rows and splits ---


@pytest.mark.parametrize("name", ["chain_sum", "list_functions", "gsm_symbolic", "knights_knaves"])
@pytest.mark.slow
def test_the_same_seed_gives_the_same_rows_and_the_package_scores_its_answers_fully(name: str) -> None:
    from unmask.tasks import reasoning_gym_items

    task = ReasoningGym(name=name)
    rows = task.rows("test", 6)
    reasoning_gym_items.entries_of.cache_clear()
    reasoning_gym_items.dataset_of.cache_clear()
    random.seed(1)  # some generators read the global source
    assert task.rows("test", 6) == rows
    assert task.rows("test", 4) == rows[:4]
    assert task.row("test", 3, 0) == rows[3]
    assert [task.score(row["answer"], row) for row in rows] == [1.0] * 6
    assert questions(task, "test", 6, seed=1) != questions(task, "test", 6)


def test_no_question_is_in_two_splits_or_twice_in_one_whatever_the_seeds() -> None:
    # One-digit sums of two: so few that any two ranges of seeds make the same ones.
    task = chain_sum(config=SMALL)
    asked = {split: questions(task, split, 60) for split in ("train", "validation", "test")}
    for texts in asked.values():
        assert len(set(texts)) == len(texts) > 20
    # Another seed draws the same questions, and none of another split.
    train, test = set(questions(task, "train", 60, seed=7)), set(asked["test"])
    assert train & set(asked["train"])
    assert not test & (train | set(asked["train"]) | set(asked["validation"]))


def test_neighbouring_seeds_of_the_package_itself_share_nearly_everything() -> None:
    # Negative control: with training on seed 0 and test on seed 1, all test questions are known.
    from reasoning_gym import create_dataset

    first, second = ({item["question"] for item in create_dataset("chain_sum", seed=seed, size=100)} for seed in (0, 1))
    assert len(first & second) >= 95


def test_a_task_that_has_few_questions_gives_what_it_has() -> None:
    task = chain_sum(config=SMALL)
    rows = task.rows("test", 10_000)
    assert 20 < len(rows) < 100
    assert rows == task.rows("test", 20_000)


def test_prompts_are_tagged_by_default() -> None:
    row = chain_sum().rows("train", 1)[0]
    (message,) = row["prompt"]
    assert message["content"].startswith(row["entry"]["question"])
    assert "<answer>" in message["content"]
    bare = chain_sum(format="bare").rows("train", 1)[0]
    assert bare["prompt"] == row["entry"]["question"]


def test_the_alphabet_and_the_length_are_those_of_the_rows() -> None:
    task = chain_sum(format="bare", config=SMALL)
    rows = task.rows("train", 30)
    assert set("".join(row["prompt"] + row["answer"] for row in rows)) <= set(task.alphabet)
    assert max(len(row["answer"]) for row in rows) < task.completion_length <= 4
    rng = random.Random(0)
    assert task.demonstration(rows[0], rng, sloppy=False) == rows[0]["answer"]
    sloppy = [task.demonstration(rows[0], rng, sloppy=True) for _ in range(20)]
    assert len(set(sloppy)) > 3
    unanswered = ReasoningGym(name="graph_color")
    row = unanswered.rows("train", 1)[0]
    with pytest.raises(DataError, match="has no answers to learn from"):
        unanswered.demonstration(row, rng, sloppy=False)


# --- rewards ---


def test_the_reward_is_the_packages_score_of_the_tagged_answer() -> None:
    task = chain_sum()
    rows = task.rows("test", 4)
    texts = [
        f"so it is <answer>{rows[0]['answer']}</answer>",
        rows[1]["answer"],
        "<answer>no number</answer>",
        f"<answer>{rows[3]['answer']} or 7</answer>",
    ]
    (reward,) = task.rewards().values()
    given = reward(prompts=[r["prompt"] for r in rows], completions=texts, entry=[r["entry"] for r in rows])
    assert given == [1.0, 0.0, 0.0, 0.0]
    assert [task.solved(text, row) for text, row in zip(texts, rows, strict=True)] == [True, False, False, False]


HOSTILE = [
    "",
    "\x00",
    "((((" * 500,
    "9" * 5000,
    "[[1, 2",
    '{"a":',
    "__import__('os').getcwd()",
    "1e999",
    "nan",
    "é" * 3000,
]


@pytest.mark.parametrize("name", ["prime_factorization", "pool_matrix", "zebra_puzzles", "letter_jumble", "maze"])
@pytest.mark.slow
def test_hostile_answers_score_low_and_never_raise(name: str) -> None:
    # The scorer of prime_factorization raises for anything but a list of numbers.
    task = ReasoningGym(name=name)
    row = task.rows("test", 1)[0]
    for text, score in zip(HOSTILE, task.grade(HOSTILE, [row] * len(HOSTILE)), strict=True):
        assert 0.0 <= score <= 0.1, text
        assert not task.solved(f"<answer>{text}</answer>", row)


def test_a_scorer_that_hangs_or_dies_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def map(self, calls: Any) -> list[WorkerOutcome]:
            return [WorkerOutcome(failure=failure) for failure in ("timeout", "crash", "error")][: len(calls)]

    monkeypatch.setattr("unmask.tasks.reasoning_gym._workers", lambda _process: Failing())
    row = {"entry": {}}
    assert chain_sum().grade(["1", "2", "3"], [row] * 3) == [0.0, 0.0, 0.0]


def test_a_score_is_a_number_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.tasks import reasoning_gym_items

    class Fake:
        def score_answer(self, answer: str, entry: dict[str, Any]) -> Any:
            return {"high": 7, "low": -1, "nan": float("nan"), "none": None, "half": 0.5}[answer]

    monkeypatch.setattr(reasoning_gym_items, "dataset_of", lambda *_: Fake())
    scored = {
        text: reasoning_gym_items.score_entry("x", "{}", text, {})
        for text in ("high", "low", "nan", "none", "half", "?")
    }
    assert scored == {"high": 1.0, "low": 0.0, "nan": 0.0, "none": 0.0, "half": 0.5, "?": 0.0}


# --- the guard: texts that are not the answer ---

CONSTANTS = [
    *(
        "nan",
        "inf",
        "None",
        "0",
        "1",
        "-1",
        "10",
        "100",
        "0.5",
        "1/2",
        "x",
        "?",
        "-",
        "()",
        "{}",
        "the answer",
        "0 1 2 3",
    ),
    *("True", "yes", "No", "Monday", "1.0 + 1.0i", "(P ∨ ¬P)"),
]


def package_score(name: str, answer: str, entry: dict[str, Any]) -> float:
    from unmask.tasks import reasoning_gym_items

    return reasoning_gym_items.score_entry(name, "{}", answer, entry)


@pytest.mark.parametrize("name", sorted(set(available()) - RUNNING))
@pytest.mark.slow
def test_no_task_pays_for_a_constant_or_for_the_answer_among_others(name: str) -> None:
    from unmask.tasks.reasoning_gym_items import entries_of

    entries = entries_of(name, "{}", "train", 3, 0)
    answers = [str(entry["answer"] or "") for entry in entries]
    for text in CONSTANTS:
        # A constant may be the answer to one or two items, but never to all of these.
        full = [
            package_score(name, text, entry) for entry, own in zip(entries, answers, strict=True) if not same(text, own)
        ]
        assert all(score < 1.0 for score in full), text
    for entry, own in zip(entries, answers, strict=True):
        if not own:
            continue
        other = next((text for text in answers if text != own), "1234567")
        assert package_score(name, own, entry) == 1.0
        for text in (
            f"{own} or {other}",
            f"{other} or {own}",
            f"not {own}",
            f"{own} is wrong",
            f"{own}\n{other}",
            f"{own}, {other}",
        ):
            assert package_score(name, text, entry) == 0.0, text


def same(text: str, own: str) -> bool:
    """Return True if a constant is an answer."""
    try:
        return text.casefold() == own.casefold() or float(Fraction(text)) == float(own)
    except (ValueError, ZeroDivisionError):
        return False


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("coin_flip", "{0:.2}"),  # a prefix
        ("decimal_arithmetic", "{0}1"),  # a value within the tolerance
        ("number_format", "{0}1"),
        ("power_function", "{0}e0 nan"),
        ("complex_arithmetic", "nan"),
        ("gsm_symbolic", "{0} {0}1"),  # the first number of several
        ("game_of_life_halting", "anything"),
        ("spell_backward", "{0}x"),
        ("word_sorting", "{0}, more"),
        ("letter_jumble", "{0} more"),
        ("kakurasu", "the grid\n{0}"),
    ],
)
def test_a_text_that_begins_with_ends_in_or_is_near_the_answer_earns_nothing(name: str, wrong: str) -> None:
    from unmask.tasks.reasoning_gym_items import entries_of

    for entry in entries_of(name, "{}", "train", 4, 0):
        text = wrong.format(entry["answer"])
        if text != entry["answer"]:
            assert package_score(name, text, entry) == 0.0, (text, entry["answer"])


@pytest.mark.parametrize(
    ("name", "entry", "paid", "unpaid"),
    [
        (
            "coin_flip",
            {"answer": "0.24609375", "question": "What is the probability?", "metadata": {}},
            ["63/256", "0.246", "0.2461", "0.24609375", "0.246093750"],
            ["0.2462", "0.24", "0", "0.25", "0.2461 or 0.5"],
        ),
        (
            "power_function",
            {
                "answer": "-0.0014888651497612232",
                "question": "Return it correct to 3 significant figures.",
                "metadata": {},
            },
            ["-1.49e-3", "-0.00149", "-0.001489"],
            ["-1.5e-3", "-1.48e-3", "1.49e-3", "-0.0014888651497612233", "nan"],
        ),
        (
            "puzzle24",
            {"answer": "3*(4 + 6 - 2)", "question": "Make 24 using 4, 6, 2, 3.", "metadata": {"numbers": [4, 6, 2, 3]}},
            ["3*(4 + 6 - 2)", "3 * (6 + 4 - 2)", "(6 - 2 + 4) * 3"],
            ["4*6*1*1", "4*6", "12 + 12", "6*4 + 3*2 - 6", "3*(4 + 6 - 2) = 24"],
        ),
        (
            "gsm_symbolic",
            {"answer": "18", "question": "How many eggs are left?", "metadata": {}},
            ["18", "18.0", "18 eggs", "**18**", '"18"', "```text\n18\n```", "The answer is 18."],
            ["I guess 18", "roughly 18", "18 or 5 or 7", "18, 5", "18 5", "5 18", "not 18", "18 is wrong", "19"],
        ),
        (
            "sentence_reordering",
            {"answer": "Why, at the door.", "question": "Restore the order: door. at Why, the", "metadata": {}},
            [
                "Why, at the door.",
                "Why, at the door",
                "**Why, at the door.**",
                '"Why, at the door."',
                "The answer is Why, at the door.",
            ],
            ["not Why, at the door.", "the door", "Why, at the door. or Why, the door at."],
        ),
        (
            "polynomial_equations",
            {"answer": "", "question": "Solve it.", "metadata": {}},
            ['""', "no real solutions"],
            ["anything", "x", "0", "nan"],
        ),
        (
            "calendar_arithmetic",
            {"answer": "-1", "question": "On which day?", "metadata": {"task": "recurring_event_day"}},
            ["-1"],
            ["100", "5", "1"],
        ),
        (
            "time_intervals",
            {"answer": "5 days", "question": "How many days?", "metadata": {"task_type": "date"}},
            ["5 days", "5 day"],
            ["5 7 9", "5 days, 7 days", "5 or 7 days", "5 wrong"],
        ),
    ],
)
def test_what_a_careful_reader_pays_on_an_item(
    name: str, entry: dict[str, Any], paid: list[str], unpaid: list[str]
) -> None:
    assert {text: package_score(name, text, entry) for text in paid} == dict.fromkeys(paid, 1.0)
    assert {text: package_score(name, text, entry) for text in unpaid if package_score(name, text, entry) >= 0.5} == {}


# --- errors ---


def hands_answer_to_eval(scorer: Any) -> bool:
    """Return True if a method calls `eval`, or sympy's parser, with its argument `answer`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(scorer)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            given = {name.id for argument in node.args for name in ast.walk(argument) if isinstance(name, ast.Name)}
            if called in {"eval", "exec", "parse_expr", "sympify"} and "answer" in given:
                return True
    return False


def test_every_scorer_that_evaluates_its_answer_is_known() -> None:
    from reasoning_gym.factory import DATASETS

    found = {name for name, (kind, _) in DATASETS.items() if hands_answer_to_eval(kind.score_answer)}
    assert found == EVALUATING


@pytest.mark.parametrize("name", sorted(EVALUATING | RUNNING))
def test_a_task_that_runs_foreign_code_needs_trust_code(name: str) -> None:
    with raises(ConfigError, f'"{name}" is unsafe', "task.trust_code=true"):
        make_task(f"reasoning_gym:{name}")
    assert make_task(f"reasoning_gym:{name}", ["trust_code=true"]).type == "reasoning_gym"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", [], 'unknown reasoning_gym task "chain_sums". Did you mean "chain_sum"?'),
        ("composite", [], 'unknown reasoning_gym task "composite"'),
        ("chain_sum", ["config={max_term: 2}"], 'task.config does not fit reasoning_gym task "chain_sum"'),
        ("chain_sum", ["config={min_terms: 0}"], "min_terms must be positive"),
        ("chain_sum", ["config={seed: 3}"], "task.config must not set seed"),
    ],
)
def test_wrong_names_and_options_are_errors(name: str, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(f"reasoning_gym:{name}", options)
    assert message in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available() == ()
    with pytest.raises(ConfigError, match=r'pip install "unmask\[reasoning-gym\]"'):
        make_task("reasoning_gym:chain_sum")


# --- the commands ---


def test_the_task_list_says_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("tasks") == 0
    assert f"reasoning_gym:NAME stands for {len(available())} more" in capsys.readouterr().out
    assert len(available()) > 100
    assert TASKS["reasoning_gym"] is ReasoningGym


@pytest.mark.slow
def test_a_model_is_trained_and_evaluated_on_a_task_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = chain_sum(format="bare", config=SMALL)
    tokenizer = char_tokenizer(task.alphabet)
    denoiser = tiny_denoiser(TinyConfig(num_layers=1, width=16, num_heads=2, max_length=128), tokenizer, seed=0)
    (tmp_path / "model").mkdir()
    save_model(denoiser, tokenizer, tmp_path / "model")
    described = "{type: reasoning_gym, name: chain_sum, format: bare, config: {max_terms: 2, max_digits: 1}}"
    overrides = [*TRAIN, "max_steps=2", "sampler.max_completion_length=4", "evaluation.split=validation"]
    run = tmp_path / "run"
    assert (
        unmask(
            "train", "sudoku-tiny", *overrides, f"model={tmp_path / 'model'}", f"output_dir={run}", f"task={described}"
        )
        == 0
    )
    assert "rewards/reasoning_gym/mean" in metrics(run)[-1]
    options = ["--option", "format=bare", "--option", "config={max_terms: 2, max_digits: 1}", "--rows", 5]
    assert (
        unmask("eval", run / "best", "--task", "reasoning_gym:chain_sum", *options, "--output", tmp_path / "e.json")
        == 0
    )
    assert "reasoning_gym:chain_sum, test" in capsys.readouterr().out
