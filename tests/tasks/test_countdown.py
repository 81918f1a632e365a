"""Countdown: options, the split by numbers, targets, and correct expressions."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from unmask.rewards.grading.expressions import evaluate
from unmask.tasks import Countdown

ROW = {"prompt": "2,3,6:18=", "answer": "(6+3)*2", "numbers": [2, 3, 6], "target": 18}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_numbers": 2}, "num_numbers"),
        ({"num_numbers": 5}, "num_numbers"),
        ({"max_number": 0}, "max_number"),
        ({"max_number": 100}, "max_number"),
        ({"min_target": 100}, "min_target = 100 is more than max_target = 99. Set min_target to 99 or less"),
        ({"max_number": 1}, "leave .* no items for the split"),
        ({"min_target": 10**7, "max_target": 10**7}, "no items for the split train, validation, test"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Countdown.model_validate(options)


@pytest.mark.parametrize("num_numbers", [3, 4])
@pytest.mark.parametrize("max_number", [3, 4, 5, 6, 9, 10, 20, 50, 99])
def test_every_setting_that_is_accepted_has_items_in_every_split(num_numbers: int, max_number: int) -> None:
    task = Countdown(num_numbers=num_numbers, max_number=max_number)
    for split in ("train", "validation", "test"):
        for row in task.rows(split, 5):
            assert task.split_of(row["numbers"]) == split
            assert len(row["numbers"]) == num_numbers
            assert 1 <= min(row["numbers"]) <= max(row["numbers"]) <= max_number


def test_the_split_by_numbers_never_changes() -> None:
    task = Countdown()
    split_of = {m: task.split_of(m) for m in itertools.combinations_with_replacement(range(1, 7), 3)}
    assert Counter(split_of.values()) == {"train": 40, "validation": 6, "test": 10}
    assert [m for m, split in split_of.items() if split == "validation"] == [
        (1, 1, 3),
        (1, 1, 5),
        (2, 4, 4),
        (2, 6, 6),
        (3, 3, 3),
        (3, 4, 5),
    ]


def test_shares_are_near_70_10_20_if_there_are_many_numbers() -> None:
    task = Countdown(max_number=40)
    counts = Counter(task.split_of(m) for m in itertools.combinations_with_replacement(range(1, 41), 3))
    shares = [counts["train"], counts["validation"], counts["test"]]
    assert [share / counts.total() for share in shares] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_the_order_of_the_numbers_does_not_move_an_item() -> None:
    task = Countdown(num_numbers=4)
    for numbers in itertools.combinations_with_replacement(range(1, 7), 4):
        assert task.split_of(numbers) == task.split_of(numbers[::-1])


def test_the_first_items_never_change() -> None:
    assert [row["prompt"] for row in Countdown().rows("train", 3)] == ["2,4,5:10=", "1,2,3:6=", "5,4,2:10="]


def test_targets_are_in_range_and_reached_by_the_answer() -> None:
    task = Countdown(num_numbers=4, max_number=20, min_target=10, max_target=30)
    rows = task.rows("test", 100)
    assert len({row["target"] for row in rows}) > 15
    for row in rows:
        assert 10 <= row["target"] <= 30
        assert evaluate(row["answer"]).value == row["target"]
        assert row["prompt"] == f"{','.join(map(str, row['numbers']))}:{row['target']}="


def test_the_completion_length_is_that_of_the_longest_expression_and_an_eos() -> None:
    assert Countdown().completion_length == len("(1+2)*3") + 1 == 8
    assert Countdown(num_numbers=4, max_number=9).completion_length == len("(1+2)*(3+4)") + 1 == 12
    assert Countdown(max_number=10).completion_length == len("(10+10)*10") + 1


@pytest.mark.parametrize("text", ["(6+3)*2", "2*(3+6)", " ( 6 + 3 ) * 2 ", "-(-6-3)*2", "((6)+(3))*2"])
def test_right_expressions_earn_1(text: str) -> None:
    assert Countdown().score(text, ROW) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "6+3*2",
        "6*3",
        "6*3+2-2",
        "18",
        "(6+3)*2=18",
        "2**3+6+4",
        "(6+3)*2 and more",
        "6/(3-3)",
        "1.8*10",
        "None",
        "?",
    ],
)
def test_wrong_invalid_and_unevaluable_answers_earn_a_tenth(text: str) -> None:
    task = Countdown()
    assert task.score(text, ROW) == 0.1
    assert not task.solved(text, ROW)


@pytest.mark.parametrize(
    ("text", "numbers", "target"), [("2**3-1", [2, 3, 1], 7), ("7//2-1", [7, 2, 1], 2), ("2**-1*4", [2, 1, 4], 2)]
)
def test_power_and_floor_division_are_illegal_even_if_they_reach_the_target(
    text: str, numbers: list[int], target: int
) -> None:
    assert eval(text) == target  # what the released graders do
    assert Countdown().score(text, {"numbers": numbers, "target": target}) == 0.1


def test_division_is_exact() -> None:
    # 8 / (3 - 8/3) = 24 by fractions; in floating point it is 23.99999999999999.
    row = {"numbers": [8, 3, 8, 3], "target": 24}
    assert Countdown(num_numbers=4).solved("8/(3-8/3)", row)
    # 99/98 rounds to 1 but is not 1.
    assert not Countdown().solved("1*99/98", {"numbers": [1, 98, 99], "target": 1})


def test_each_number_counts_as_often_as_it_is_given() -> None:
    row = {"numbers": [3, 3, 2], "target": 8}
    task = Countdown()
    assert task.solved("3+3+2", row)
    assert not task.solved("3*2+2", row)
    assert not task.solved("2*2*2", row)


def test_a_tagged_answer_is_read_from_the_last_tag() -> None:
    task = Countdown(format="tagged")
    (function,) = task.rewards().values()
    completions = [
        "<answer>6*3</answer> no: <answer>\n(6 + 3) * 2</answer>",
        "(6+3)*2",
        "<answer>6*3</answer>",
        "<answer></answer>",
    ]
    columns = {name: [ROW[name]] * 4 for name in ("numbers", "target")}
    assert function([""] * 4, completions, **columns) == [1.0, 0.0, 0.1, 0.0]


def test_the_worked_example_of_the_instruction_is_right() -> None:
    (message,) = Countdown(format="tagged").row("train", 0, 0)["prompt"]
    assert Countdown(format="tagged").solved(
        message["content"].split("Numbers:")[0], {"numbers": [2, 3, 5], "target": 16}
    )


# --- answers as language models write them ---

SIXTEEN = {"numbers": [3, 5, 2], "target": 16}
ONE = {"numbers": [6, 2, 12], "target": 1}


def paid(answer: str, row: dict[str, Any]) -> float:
    """Return the reward of a completion with this answer in its tag."""
    (function,) = Countdown(format="tagged").rewards().values()
    (score,) = function([None], [f"<answer>{answer}</answer>"], **{name: [value] for name, value in row.items()})
    assert score is not None
    return score


@pytest.mark.parametrize(
    "answer",
    [
        "\\boxed{(3+5)*2}",
        "(3+5)×2",
        "(3+5)\\times 2",
        "(3+5)\\cdot2",
        "$(3+5)\\times 2$",
        "\\[(3+5) \\times 2\\]",
        "\\((3+5)\\times2\\)",
        "2(3+5)",
        "(3+5)2",
        "(3+5)(2)",
        "2 (3+5)",
        "(3+5)*2=16",
        "(3+5)*2 = 16",
        "16 = (3+5)*2",
        "[3+5]*2",
        "\\left(3+5\\right)\\times 2",
        "2*\n(3+5)",
        "(3 + 5) * 2.",
        "(3+5)*2\n= 16",
        "(3+5)*2 equals 16",
        "(3+5)*2 which equals 16",
        "(3 + 5) * 2 is 16",
        "The expression is (3+5)*2",
        "The answer is (3+5)*2.",
        "Expression: (3+5)*2",
        "**(3+5)*2**",
        "3+5=8\n8*2=16",
        "3 + 5 = 8; 8 * 2 = 16",
        "3+5=8 and 8*2=16",
        "3+5=8, then 8*2=16",
        "(3+5)*2 = 8*2 = 16",
        "(3+5) \\\\times 2",
        "−(−3−5)×2",
        "\\text{(3+5)*2}",
        "（３＋５）＊２",
        "(5+3)*2",
        "2*(5+3)",
        "(3+5)X2",
        "(3+5) x 2 = 16",
        "= (3+5)*2",
        "(3+5)*2 =",
        "((3+5))*2",
        "`(3+5)*2`",
        "```\n(3+5)*2\n```",
        "(3+5)*2,",
        "( 3 + 5 ) * 2",
        "\\mathbf{(3+5)*2}",
        "(3+5)\\ast 2",
        "\\bigl(3+5\\bigr)*2",
        "(3+5)⋅2",
        "(3+5)∙2",
        "(3+5)•2",
        "(3+5)* 2\u00a0",
        "Step 1: 3 + 5 = 8\nStep 2: 8 * 2 = 16",
        "1. 3+5 = 8\n2. 8*2 = 16",
        "(1) 3+5 = 8\n(2) 8*2 = 16",
        "Add: 3 + 5 = 8\nMultiply: 8 * 2 = 16",
        "First add 3 + 5 = 8. Finally, multiply 8 * 2 = 16.",
        "**Expression:** (3+5)*2",
        "An expression that works is (3+5)*2",
        "- 3 + 5 = 8\n- 8 * 2 = 16",
        "First, 3 + 5 = 8. Then, 8 * 2 = 16.",
        "3 + 5 = 8 \\\\ 8 \\times 2 = 16",
        "\\begin{align*}3 + 5 &= 8\\\\ 8 \\times 2 &= 16\\end{align*}",
        '"(3+5)*2"',
        "'(3+5)*2'",
        "```python\n(3+5)*2\n```",
        "```\n(3+5)*2\n```.",
        "(3+5)*2 = 16 ✓",
        "(3+5)*2 → 16",
        "(3+5)*2 (uses each number once)",
        "(3+5)*2 = 16 (target reached)",
        "(3+5)*2 = 16, using each number exactly once",
        "The expression that evaluates to 16 is (3+5)*2.",
        "We use (3+5)*2 = 16.",
        "\\boxed{}(3 + 5) * 2",
        "\\displaystyle (3+5)*2",
        "(3+5) &times; 2",
        "(3+5) \\* 2",
    ],
)
def test_a_right_expression_is_paid_as_models_write_it(answer: str) -> None:
    assert paid(answer, SIXTEEN) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "12 ÷ 6 ÷ 2",
        "12:6:2",
        "\\frac{12}{6 \\times 2}",
        "\\frac{12}{6}\\div 2",
        "\\dfrac{12}{6}/2",
        "\\frac{\\frac{12}{6}}{2}",
        "12/(6*2) = 1",
        "12 \\div 6 \\div 2 = 1",
        "12/6=2, 2/2=1",
        "12 : (6 · 2)",
        "12÷(6×2)=1",
    ],
)
def test_a_right_quotient_is_paid_as_models_write_it(answer: str) -> None:
    assert paid(answer, ONE) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "(3+5)*2 = 17",
        "15 = (3+5)*2",
        "(3+5)*2 or 2*(3+5)",
        "(3+5)*2 is wrong",
        "not (3+5)*2",
        "(3+5)*2, 7",
        "16",
        "(3+5)*2*1",
        "(3+5)*2+0",
        "3+5*2 = 16",
        "8*2=16",
        "3+5=8, 8*3=24",
        "3+5=9, 9*2=16",
        "3+5=8, 8*2=16, 16*1=16",
        "5*2=10, 3*2=6, 10+6=16",
        "3^2+5+2",
        "3²+5+2",
        "3!+5*2",
        "2**3+5+3",
        "(3+5)*2!",
        "(3+5)*2 ≈ 16",
        "(3+5)*2 != 16",
        "35-2",
        "(3+5)*2)",
        "((3+5)*2",
        "()",
        "=",
        "16=16",
        "3+5 2",
        "(3+5)*2 (wrong)",
        "(3.5+5)*2",
        "(3+5)*2%",
        "sqrt(256)+0*(3+5+2)",
        "3 5 2",
        "(3+5)*2 dozen",
        "-(3+5)*2",
        "1/0",
        "(3+5)*2 = 16 = 17",
        "(3+5)*2 and 7",
        "8, 8*2 = 16",
        "3+5 = 8, 8*2",
        "2*8 = 16, 3+5 = 8",
        "(3+5)*2 -> 5*3+1",
        "3*5+1=16, (3+5)*2=16",
        "(3+5)*2 → 17",
        "Wrong: (3+5)*2",
        "Maybe: (3+5)*2",
        "Option A: (3+5)*2\nOption B: 3+5+2",
        "Attempt 1: 3*5+2 = 17\nAttempt 2: (3+5)*2 = 16",
        "(3+5)*2 ❌",
        "(3+5)*2 (not sure)",
        "(3+5)*2 (or 2*(3+5))",
        "(3+5)*2, using a guess or two",
        "1. 3+5 = 8\n2. 8*2 = 17",
        "1. (3+5)*2\n2. 3*5+2",
        "- 3 + 5 = 8\n- 8 * 3 = 16",
        "The expression that evaluates to 17 is 3*5+2.",
        "We cannot use (3+5)*2",
        "\\boxed{}8 * 2",
        "3+5-2, 3*5-2, (3+5)*2",
        "3+5-2 = 6\n3*5-2 = 13\n(3+5)*2 = 16",
    ],
)
def test_what_a_careful_reader_would_not_accept_earns_a_tenth(answer: str) -> None:
    assert paid(answer, SIXTEEN) == 0.1


@pytest.mark.parametrize(
    "answer",
    [
        "2\\frac{12}{6}",
        "12/6-2+1",
        "12/12+6*0",
        "12/6/2 = 2/2 = 0",
    ],
)
def test_a_wrong_quotient_earns_a_tenth(answer: str) -> None:
    assert paid(answer, ONE) == 0.1


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (r"so it is \boxed{(3+5)*2}.<|eot_id|>", 1.0),
        (r"<answer>\boxed{(3 + 5) * 2}<|eot_id|><|endoftext|>", 1.0),
        ("<answer>\n\\boxed{(3+5)*2\n</answer>", 1.0),
        ("</reasoning>\n\\boxed{3 * 2 + 5 * 2><|eot_id|>", 0.1),
        ("</reasoning>\n\\boxed{(3+5)*2><|eot_id|>", 0.1),  # a sum may go on behind ">"
        ("<answer>(3+5)*2</answer> It stands between <answer> and </answer>.", 1.0),
        ("<answer>3+5*2</answer> no, <answer>(3+5)*2</answer>", 1.0),
        ("(3+5)*2", 0.0),
        ("", 0.0),
    ],
)
def test_the_answer_of_a_completion_is_found_by_the_shared_reader(completion: str, score: float) -> None:
    (function,) = Countdown(format="tagged").rewards().values()
    assert function([None], [completion], numbers=[[3, 5, 2]], target=[16]) == [score]


def test_a_value_that_is_merely_close_is_not_the_target() -> None:
    row = {"numbers": [1, 999, 1000, 1000], "target": 1}
    assert paid("1 * 1000 * 999 / 1000", row) == paid("(1000 * 999 + 1) / (1000 * 999)", row) == 0.1
