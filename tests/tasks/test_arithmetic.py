"""Arithmetic: the written working, partial credit, and the split by operands."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from pydantic import ValidationError

from unmask.rewards.grading.expressions import evaluate
from unmask.tasks import Arithmetic

ROW = {"prompt": "3+4-9+5=", "answer": "+07,-02,+03", "numbers": [3, 4, 9, 5], "running": [7, -2, 3]}


@pytest.mark.parametrize(
    "options", [{"num_operands": 1}, {"num_operands": 17}, {"max_operand": 0}, {"max_operand": 100}, {"max_operand": 1}]
)
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Arithmetic.model_validate(options)


def test_the_split_by_operands_never_changes() -> None:
    task = Arithmetic()
    split_of = {m: task.split_of(m) for m in itertools.combinations_with_replacement(range(1, 10), 3)}
    assert Counter(split_of.values()) == {"train": 120, "validation": 20, "test": 25}
    assert [m for m, split in split_of.items() if split == "validation"][:4] == [
        (1, 1, 5),
        (1, 2, 7),
        (1, 3, 3),
        (1, 5, 6),
    ]


def test_the_first_items_never_change() -> None:
    assert [row["prompt"] for row in Arithmetic().rows("train", 3)] == ["5-1+9=", "2+6+5=", "4+9-8="]


@pytest.mark.parametrize("task", [Arithmetic(), Arithmetic(num_operands=16, max_operand=99)], ids=repr)
def test_the_running_results_are_those_of_every_prefix_of_the_sum(task: Arithmetic) -> None:
    for row in task.rows("test", 50):
        expression = row["prompt"].removesuffix("=")
        ends = [i for i, c in enumerate(expression) if c in "+-"][1:] + [len(expression)]
        assert [evaluate(expression[:end]).value for end in ends] == row["running"]
        assert [int(text) for text in row["answer"].split(",")] == row["running"]


def test_results_are_signed_and_padded_to_one_width() -> None:
    task = Arithmetic(num_operands=4)
    row = task.build([3, 4, 9, 5], random.Random(0))
    assert {len(text) for text in row["answer"].split(",")} == {3}
    assert all(text[0] in "+-" for text in row["answer"].split(","))
    assert task.completion_length == len("+07,-02,+03")


def test_the_last_number_decides_whatever_the_working_and_the_padding() -> None:
    task = Arithmetic(num_operands=4)
    for text in ("+07,-02,+03", "3", "+3", "3.0", "03", "xxx,xxx,+03", "1,1,3", "7, -2, so 3."):
        assert task.score(text, ROW) == 1.0, text
        assert task.solved(text, ROW)


def test_a_wrong_result_earns_a_tenth_of_the_share_of_right_working() -> None:
    task = Arithmetic(num_operands=4)
    assert task.score("+07,-02,+04", ROW) == pytest.approx(0.1)
    assert task.score("+07,-03,+04", ROW) == pytest.approx(0.05)
    assert task.score("-02,+07,+04", ROW) == 0.0
    # The last number is the stated result, never working.
    assert task.score("+07,-02", ROW) == pytest.approx(0.05)
    assert task.score("+07", ROW) == 0.0
    assert task.score("xxx,xxx,+04", ROW) == 0.0
    assert not task.solved("+07,-02,+04", ROW)


def test_without_intermediate_results_a_wrong_answer_earns_nothing() -> None:
    assert Arithmetic(num_operands=2).score("+08", {"running": [7]}) == 0.0


@pytest.mark.parametrize("task", [Arithmetic(), Arithmetic(num_operands=4, max_operand=24)], ids=repr)
def test_a_sloppy_demonstration_skips_the_working_and_guesses_within_4(task: Arithmetic) -> None:
    rng = random.Random(0)
    errors: Counter[int] = Counter()
    for row in task.rows("train", 900):
        *working, guess = task.demonstration(row, rng, sloppy=True).split(",")
        assert set("".join(working)) == {"x"}
        errors[int(guess) - row["running"][-1]] += 1
    assert set(errors) == set(range(-4, 5))


def test_sixteen_operands_take_74_characters_and_earn_a_fourteenth_of_a_tenth_for_each_result() -> None:
    task = Arithmetic(num_operands=16)
    row = task.row("test", 0, 0)
    right = row["answer"].split(",")
    assert len(row["answer"]) == task.completion_length == 74
    for broken in (1, 5, 14):
        # The last results are wrong, the others right.
        text = ",".join(
            [*right[: 15 - broken], *["+000" if value != "+000" else "+001" for value in right[15 - broken :]]]
        )
        assert task.score(text, row) == pytest.approx(0.1 * (15 - broken) / 14)
        assert not task.solved(text, row)
    assert task.solved(row["answer"], row)


def test_a_guess_beyond_the_largest_result_keeps_the_width() -> None:
    # The largest result is 96 and a guess may be 100: three digits.
    task = Arithmetic(num_operands=4, max_operand=24)
    assert task.completion_length == len("+000,+000,+000")


def test_a_tagged_answer_needs_no_padding() -> None:
    task = Arithmetic(num_operands=4, format="tagged")
    assert task.solved("3+4 is 7 ...\n<answer>7, -2, 3</answer>", ROW)
    assert not task.solved("7, -2, 3", ROW)


# --- answers as language models write them ---


def paid(answer: str) -> float:
    """Return the reward of a completion with this answer to 3+4-9 in its tag."""
    (function,) = Arithmetic(format="tagged").rewards().values()
    (score,) = function([None], [f"<answer>{answer}</answer>"], running=[[7, -2]])
    assert score is not None
    return score


@pytest.mark.parametrize(
    "answer",
    [
        "7, −2",
        "7, –2",
        "7, minus 2",
        "7, negative 2",
        "-2",
        "7 -2",
        "7\n-2",
        "7; -2",
        "[7, -2]",
        "(7, -2)",
        "{7, -2}",
        "$7, -2$",
        "\\boxed{7, -2}",
        "\\boxed{-2}",
        "7, -2.",
        "+07,-02",
        "7, -2.0",
        "3+4=7, 7-9=-2",
        "3 + 4 = 7\n7 - 9 = -2",
        "7 → -2",
        "7 -> -2",
        "Step 1: 7\nStep 2: -2",
        "1. 7\n2. -2",
        "- 3 + 4 = 7\n- 7 - 9 = -2",
        "7 | -2",
        "Running results: 7, -2",
        "The running results are 7, -2.",
        "First: 7, finally -2",
        "3 + 4 = 7\n7 - 9 = -2\n\nFinal answer: -2",
        "x = -2",
        '"7, -2"',
        "3 + 4 = 7 \\\\ 7 - 9 = -2",
        "**7, -2**",
        "7,-2)",
        "7, -2 (2 steps)",
        "7,-02 is the result of step 2",
        "9999,-2",
        "3+4-9 = -2",
        "3+4-9=-2",
        "The answer is -2",
        "Answer: 7, -2",
        "7 and -2",
        "７，−２",
        "7,\xa0−2",
        "7, ‑2",
        "7, \\; -2",
        "\\(7, -2\\)",
        "xxx,-02",
        "7 , -2",
        "1) 7\n2) -2",
        "`7, -2`",
        "7, -2,",
        "7, -2\\\\",
        "3+4 = 7, 7 - 9 = -2, 3+4-9 = -2",
        "7;-2",
    ],
)
def test_a_right_result_is_paid_as_models_write_it(answer: str) -> None:
    assert paid(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "-2 (not sure)",
        "-2 (or 2)",
        "|-2|",
        "Wrong: -2",
        "Half: -2",
        "3 + 4 = 7\n7 - 9 = -2\nFinal answer: 2",
        "7 | 2",
        "1. 7\n2. 2",
        "- 3 + 4 = 7\n- 7 - 9 = 2",
        "0-2",
        "5-2",
        "3 or -2",
        "10-2",
        "2",
        "-2, 7",
        "7",
        "7, -2 or 2",
        "7, -2 is wrong",
        "not -2",
        "7, --2",
        "7, -2.5",
        "7, -20",
        "7, - 2 + 1",
        "-2 dozen",
        "7, -2%",
        "7/-2",
        "7--2",
        "7*-2",
        "-2 -3",
        "7, -2 is not the result",
        "-2?",
        "7, ~2",
        "7 - 2",
        "7, 2-",
        "between 7 and -2",
        "7, -2!",
        "nan",
        "7, -1-1",
        "either 7, -2",
        "-2, or 3",
        "-2 or so",
        "maybe, -2",
        "wrong: -2",
        "7, -02 is the result of step 2 or not",
        "7e0,-2e1",
        "7 = -2",
    ],
)
def test_a_hedge_a_sum_or_a_denial_is_not_a_result(answer: str) -> None:
    assert paid(answer) <= 0.1


def test_right_working_earns_a_tenth_however_it_is_written() -> None:
    assert paid("7, -3") == paid("Step 1: 7\nStep 2: −3") == paid("3+4 = 7, 7-9 = -3") == 0.1
