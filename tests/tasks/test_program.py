"""Programs from examples: the grammar, its splits, and rewards by running."""

from __future__ import annotations

import random

import pytest

from unmask.tasks.program import HIDDEN, SHAPES, SHOWN, ProgramFromExamples, expressions

ROW = {
    "prompt": "0:+002,1:+005,2:+008,10:+032=",
    "hidden": [[x, 3 * x + 2] for x in HIDDEN],
    "examples": [[0, 2]],
    "answer": "3*x+2",
}


def test_the_splits_never_change_and_share_no_expression() -> None:
    texts = {split: {item.text for shape in shapes for item in shape} for split, shapes in expressions().items()}
    assert {split: len(found) for split, found in texts.items()} == {"train": 187, "validation": 27, "test": 55}
    assert len(set().union(*texts.values())) == 187 + 27 + 55
    assert all(len(shapes) == len(SHAPES) and all(shapes) for shapes in expressions().values())


def test_splits_share_no_function_either() -> None:
    meanings = {s: {(i.shown, i.hidden) for shape in shapes for i in shape} for s, shapes in expressions().items()}
    assert not meanings["train"] & meanings["test"]
    assert not meanings["train"] & meanings["validation"]
    assert not meanings["validation"] & meanings["test"]


def test_the_examples_of_a_row_fit_no_other_expression_of_the_grammar() -> None:
    every = [item for shapes in expressions().values() for shape in shapes for item in shape]
    assert len({item.shown for item in every}) == len({(item.shown, item.hidden) for item in every})


def test_the_values_of_an_expression_are_what_python_says() -> None:
    for shapes in expressions().values():
        for item in (item for shape in shapes for item in shape):
            values = [eval(item.text, {"max": max, "min": min, "x": x}) for x in (*SHOWN, *HIDDEN)]  # our own grammar
            assert values == [*item.shown, *item.hidden], item.text


def test_the_first_items_never_change() -> None:
    rows = ProgramFromExamples().rows("train", 3)
    assert [(row["prompt"], row["answer"]) for row in rows] == [
        ("0:+004,1:+010,2:+016,10:+064=", "6*x+4"),
        ("0:+005,1:+013,2:+021,10:+085=", "8*x+5"),
        ("0:+002,1:-006,2:-014,10:-078=", "2-8*x"),
    ]


def test_prompts_and_demonstrations_keep_to_the_alphabet_and_the_length() -> None:
    task, rng = ProgramFromExamples(), random.Random(0)
    for row in task.rows("train", 300):
        for sloppy in (False, True):
            text = task.demonstration(row, rng, sloppy)
            assert len(text) < task.completion_length
            assert set(row["prompt"] + text) <= set(task.alphabet)


@pytest.mark.slow
def test_every_answer_is_solved_and_a_sloppy_one_by_luck_only() -> None:
    task, rng = ProgramFromExamples(), random.Random(0)
    rows = task.rows("test", 100)
    assert all(task.solved(row["answer"], row) and task.score(row["answer"], row) == 1.0 for row in rows)
    sloppy = sum(task.solved(task.demonstration(row, rng, sloppy=True), row) for row in rows)
    assert sloppy < 20


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("3*x+2", 1.0),
        ("2 + x*3", 1.0),
        ("x+x+x+2", 1.0),
        ("sum([x, x, x, 2])", 1.0),
        ("(lambda y: 3*y+2)(x)", 1.0),
        ("3*x+2 if x > 3 else 0", 4 / 6),
        ("11", 1 / 6),
        ("3*x+1", 0.0),
        ("y", 0.0),
        ("1/0", 0.0),
    ],
)
def test_the_reward_is_the_share_of_hidden_inputs(answer: str, share: float) -> None:
    assert ProgramFromExamples().score(answer, ROW) == pytest.approx(share)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "x = 3",
        "return 3",
        "3*x+2; 5",
        "3*x+2\n",
        "3*x+2 # right",
        "\n3*x+2",
        "x" * 200,
        "(" * 99,
        "3*x+2)",
        "import os",
        "\x00",
        "\ud800",
    ],
)
def test_a_text_that_is_not_an_expression_is_not_run(answer: str) -> None:
    assert ProgramFromExamples().job(answer, ROW) is None
    assert ProgramFromExamples().score(answer, ROW) == 0.0


def test_hostile_expressions_earn_nothing() -> None:
    for answer in (
        "9**9**9",
        "[0]*10**10",
        "().__class__.__base__.__subclasses__()",
        "__import__('os')._exit(0)",
        "(lambda f: f(f))(lambda f: f(f))",
    ):
        assert ProgramFromExamples().score(answer, ROW) == 0.0


def test_a_tagged_answer_is_read_from_its_tag() -> None:
    task = ProgramFromExamples(format="tagged")
    assert task.solved("It rises by 3.\n<answer>\n3*x+2\n</answer>", ROW)
    assert not task.solved("3*x+2", ROW)


# --- answers as language models write them ---

LINE = [[x, 3 * x + 2] for x in HIDDEN]
SQUARE = [[x, x**2 + 1] for x in HIDDEN]
LARGER = [[x, max(x, 4)] for x in HIDDEN]


def paid(answer: str, hidden: list[list[int]]) -> float:
    """Return the reward of a completion with this answer in its tag."""
    (function,) = ProgramFromExamples(format="tagged").rewards().values()
    (score,) = function([None], [f"<answer>{answer}</answer>"], hidden=[hidden])
    assert score is not None
    return score


@pytest.mark.parametrize(
    "answer",
    [
        "3*x+2",
        "return 3*x+2",
        "y = 3*x+2",
        "f(x) = 3*x+2",
        "lambda x: 3*x+2",
        "f = lambda x: 3*x+2",
        "def f(x):\n    return 3*x+2",
        "def solve(x): return 3*x+2",
        "```\n3*x+2\n```",
        "```python\n3*x+2\n```",
        "```python\ndef g(x):\n    return 3*x+2\n```",
        "```python\nreturn 3*x+2\n```",
        "`3*x+2`",
        "$3x+2$",
        "$3*x+2$",
        "$f(x) = 3x + 2$",
        "\\(3x+2\\)",
        "\\[f(x)=3x+2\\]",
        "$3 \\cdot x + 2$",
        "3*x+2 # line",
        "(y:=3*x)+2",
        "(lambda: 3*x+2)()",
        "int(3*x+2)",
        "2+3*x",
        "3×x+2",
        "3 · x + 2",
        "3*x+2\n",
        "y=3*x\nreturn y+2",
        "y = 3*x\ny + 2",
        "The answer is 3*x+2",
        "Answer: 3*x+2",
        "The expression is 3*x+2",
        "**3*x+2**",
        "f(x)=3*x+2",
        "g = lambda n: 3*n+2",
        "result = 3 * x + 2",
        "3 * x + 2.",
        "def f(x):\n    return 3*x+2\n\nprint(f(1))",
        "def f(x: int) -> int:\n    return 3*x+2",
        "y: 3*x+2",
        "x -> 3*x+2",
        "= 3*x+2",
        "3*x−(−2)",
        "```3*x+2```",
        "```python 3*x+2```",
        "(3*x) + 2",
        "```python\ndef f(x):\n    y = 3*x\n    return y + 2\n```<|eot_id|>",
        "import math\ndef f(x):\n    return 3*x+2",
        "3*x+2;",
        "f(x): 3*x+2",
        "python\n3*x+2",
        "def f(x):\n  a = 3\n  return a*x+2",
        "h(x) = 3*x + 2",
        "3*(x)+2",
        "\\boxed{3*x+2}",
        "$\\boxed{3x+2}$",
        "x*3+2",
        "```python\nlambda x: 3*x+2\n```",
        "Expression: 3*x+2",
        "expression: `3*x+2`",
        "The expression is `3*x+2`.",
        "3*x+1+1",
        "x+x+x+2",
        "'3*x+2'",
        "print(3*x+2)",
        "y = 3*x + 2\nprint(y)",
        "f: x -> 3*x+2",
        "The Python expression is 3*x+2",
        "The expression that fits is `3*x+2`.",
        "3＊x＋2",
        "```python\n2*x\n```\nCorrected:\n```python\n3*x+2\n```",
        "```python\n3*x+2\n```\nUsage:\n```python\nprint(f(3))\n```",
        "```python\ndef f(x):\n    return 3*x+2\n```\nUsage:\n```python\nprint(f(3))\n```",
    ],
)
def test_a_right_expression_is_paid_however_it_is_stated(answer: str) -> None:
    assert paid(answer, LINE) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "x",
        "f(x)",
        "3*x-2",
        "3x+2",
        "3*X+2",
        "True",
        "3*x+2 or 2*x",
        "3*x+2, 5*x",
        "3*x+2\n2*x",
        "not 3*x+2",
        "3*x+2 is wrong",
        "2",
        "y",
        "lambda: 3*x+2",
        "lambda x: 3*x",
        "3*y+2",
        "None",
        "exit()",
        "while 1: pass",
        "3*x+2 and 7",
        "[3*x+2]",
        "str(3*x+2)",
        "print('3*x+2')",
        "```python\n3*x+2\n```\n```python\n2*x\n```",
        "3*x+2 = y = 2*x",
        "f(x) = 2*x+3",
        "return",
        "def f(x): pass",
        "class A: pass",
        "import os",
        "3*x+2 or 3*x+3",
        "3*x+2 = 7*x",
        "x^3+2",
        "def f(x, y): return 3*x+2",
        "3*x+2 == 3*x+2",
        "$3x-2$",
        "5 or 7",
        "maybe 3*x+2",
    ],
)
def test_another_expression_a_hedge_or_no_python_is_not_paid(answer: str) -> None:
    assert paid(answer, LINE) < 1.0


@pytest.mark.parametrize(
    "answer", ["$x^2+1$", "x**2+1", "$x^{2} + 1$", "x²+1", "y = x**2 + 1", "$y = x^2+1$", r"$$f(x) = x^2 + 1$$"]
)
def test_a_square_may_be_set_as_mathematics(answer: str) -> None:
    assert paid(answer, SQUARE) == 1.0


def test_a_fence_is_an_answer_without_a_tag_or_box() -> None:
    task = ProgramFromExamples(format="tagged")
    row = {"hidden": LINE}
    assert task.solved("Draft:\n```python\n2*x\n```\nBetter:\n```python\n3*x+2\n```\nIt is a line.", row)
    assert task.solved("Here it is:\n```python\ndef f(x):\n    return 3*x+2\n```", row)
    assert not task.solved("```python\n3*x+2\n```\n<answer>2*x</answer>", row)
    assert not task.solved("It is 3*x+2.", row)


def test_a_caret_in_python_is_not_a_power() -> None:
    assert paid("x^2+1", SQUARE) < 1.0


@pytest.mark.parametrize(
    "answer",
    ["max(x,4)", r"$\max(x,4)$", "y = max(4, x)", "x if x > 4 else 4", "if x > 4:\n    return x\nelse:\n    return 4"],
)
def test_the_larger_of_two_may_be_a_call_a_condition_or_a_statement(answer: str) -> None:
    assert paid(answer, LARGER) == 1.0
