"""Evaluation of untrusted arithmetic expressions, and random expressions."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.rewards.grading.expressions import MAX_LENGTH, ExpressionError, evaluate, random_expression


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("7", 7, (7,)),
        ("2+3*4", 14, (2, 3, 4)),
        ("(2+3)*4", 20, (2, 3, 4)),
        ("2-3-4", -5, (2, 3, 4)),
        ("2-(3-4)", 3, (2, 3, 4)),
        ("8/3*3", 8, (8, 3, 3)),
        ("1/3", Fraction(1, 3), (1, 3)),
        ("-(1-2)*3", 3, (1, 2, 3)),
        ("  1 + 2 \n", 3, (1, 2)),
    ],
)
def test_legal_expressions_have_their_exact_value(text: str, value: Fraction | int, numbers: tuple[int, ...]) -> None:
    expression = evaluate(text)
    assert expression.value == value
    assert isinstance(expression.value, Fraction)
    assert expression.numbers == numbers


@pytest.mark.parametrize(
    "text",
    [
        "2**3",
        "7//2",
        "7%2",
        "1<2",
        "1.5+1",
        "1e5",
        "0x10",
        "1_0",
        "1j",
        "+1",
        "~1",
        "(1,2)",
        "()",
        "(1)(2)",
        "1 2",
        "1+",
        "((1)",
        "1+2=3",
        "1/0",
        "1/(2-2)",
        "x",
        "True",
        "max(1,2)",
        "__import__('os').system('true')",
        "１+２",
        "²",
        "\ud800",
        "\0",
        "",
        " ",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2**3", "operator Pow"),
        ("7//2", "operator FloorDiv"),
        ("x+1", "'x' is not part"),
        ("1/0", "divides by zero"),
        ("1+", "is not an arithmetic expression"),
        ("1+" * MAX_LENGTH + "1", "401 characters"),
    ],
)
def test_the_refusal_says_why(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason.replace("+", r"\+")):
        evaluate(text)


@pytest.mark.parametrize(
    "text", ["30**100**93", "9**9**9**9**9", "(" * 10_000_000, "(" * 199, "(" * 99 + "1" + ")" * 99, "-" * 199 + "1"]
)
def test_a_hostile_expression_has_no_value_or_a_small_one(text: str) -> None:
    try:
        value = evaluate(text).value
    except ExpressionError:
        value = Fraction(0)
    assert abs(value) <= 1


def test_the_longest_numbers_are_within_what_the_interpreter_converts() -> None:
    assert evaluate("9" * MAX_LENGTH).value == 10**MAX_LENGTH - 1


@pytest.mark.slow
@given(st.one_of(st.text(max_size=60), st.text("0123456789+-*/() ", max_size=30)))
@settings(max_examples=50)
def test_any_text_is_evaluated_or_refused(text: str) -> None:
    try:
        expression = evaluate(text)
    except ExpressionError:
        return
    else:
        assert expression.value.denominator >= 1
        assert expression.numbers


def is_superfluous(text: str, opening: int) -> bool:
    """Return True if the brackets at this index can be removed without changing the value."""
    depth, closing = 0, opening
    for closing in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[closing], 0)
        if depth == 0:
            break
    without = text[:opening] + text[opening + 1 : closing] + text[closing + 1 :]
    # Distinct large primes replace the small numbers, so that no operands are equal by coincidence.
    primes = iter((1009, 2003, 4001, 8009))
    substitutes: dict[str, str | int | None] = {c: str(next(primes)) for c in text if c.isdigit()}
    return evaluate(text.translate(str.maketrans(substitutes))).value == (
        evaluate(without.translate(str.maketrans(substitutes))).value
    )


@given(st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=50)
def test_a_random_expression_uses_each_number_once_and_knows_its_value(count: int, seed: int) -> None:
    numbers = list(range(2, 2 + count))
    text, value = random_expression(numbers, random.Random(seed))
    try:
        expression = evaluate(text)
    except ExpressionError:
        assert value is None
    else:
        assert expression.value == value
        assert sorted(expression.numbers) == numbers
    assert len(text) <= count + (count - 1) + 2 * max(count - 2, 0)
    assert not any(is_superfluous(text, i) for i, c in enumerate(text) if c == "(")


def test_the_bracket_check_finds_superfluous_ones() -> None:
    assert is_superfluous("1+(2-3)", 2)
    assert is_superfluous("(1*2)+3", 0)
    assert not is_superfluous("1-(2-3)", 2)


def test_random_expressions_reach_every_shape() -> None:
    rng = random.Random(0)
    texts = {random_expression([1, 2, 3], rng)[0] for _ in range(3000)}
    assert {"1+2+3", "(1+2)*3", "1-(2-3)", "3/(2/1)", "3*2/1", "(2-1)/3"} <= texts


def test_a_division_by_zero_has_no_value() -> None:
    rng = random.Random(0)
    values = {text: value for text, value in (random_expression([0, 1], rng) for _ in range(200))}
    assert values["1/0"] is None
    assert values["0/1"] == 0
