"""Arithmetic expressions over integers: safe evaluation of model output, and random expressions.

Evaluation uses `ast` with a whitelist of node types and never `eval`. The released graders of the
countdown task filter characters and then call `eval`. So they accept `**` and `//`, and the answer
30**100**93 blocks the trainer.
"""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
"""Maximum length of an expression in characters. The limit bounds the time, the memory and the
depth of the tree."""

_CHARACTERS = frozenset("0123456789+-*/() ")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SYMBOLS: dict[str, tuple[type[ast.operator], int]] = {
    "+": (ast.Add, 1),
    "-": (ast.Sub, 1),
    "*": (ast.Mult, 2),
    "/": (ast.Div, 2),
}
"""Class in `ast` and precedence of each operator."""
_ATOM = 3


class ExpressionError(ValueError):
    """Error that gives the reason why a text is not an arithmetic expression or has no value."""


@dataclass(frozen=True, slots=True)
class Expression:
    """Result of evaluating an expression."""

    value: Fraction
    """Exact value."""
    numbers: tuple[int, ...]
    """Integers in the expression, in reading order."""


def evaluate(text: str) -> Expression:
    """Return the exact value of an expression and the integers in it.

    Only non-negative integers, + - * /, unary minus, brackets and spaces are allowed. `**`, `//`,
    decimal points and names are not.

    Args:
        text: any text.

    Returns:
        The value as a fraction, and the integers in reading order.

    Raises:
        ExpressionError: the text is longer than 200 characters or not an expression, has an
            operator that is not allowed, or divides by zero.

    Example:
        >>> evaluate("(1 + 2) / 4")
        Expression(value=Fraction(3, 4), numbers=(1, 2, 4))
        >>> evaluate("2**3")
        Traceback (most recent call last):
        ...
        unmask.rewards.grading.expressions.ExpressionError: operator Pow is not one of + - * /
    """
    source = text.strip()
    if len(source) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(source)} characters, but at most {MAX_LENGTH} are allowed")
    if foreign := set(source) - _CHARACTERS:
        raise ExpressionError(f"{min(foreign)!r} is not part of an arithmetic expression")
    try:
        tree = ast.parse(source, mode="eval")
    # CPython raises any of these for deep nesting, depending on version and depth.
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"{source!r} is not an arithmetic expression") from error
    numbers: list[int] = []
    try:
        value = _value(tree.body, numbers)
    except ZeroDivisionError as error:
        raise ExpressionError(f"{source!r} divides by zero") from error
    return Expression(value, tuple(numbers))


def random_expression(numbers: Sequence[int], rng: random.Random) -> tuple[str, Fraction | None]:
    """Return a random expression that uses each number once, without superfluous brackets.

    Order, operators and bracketing are random.

    Args:
        numbers: at least one non-negative integer.
        rng: source of all random choices.

    Returns:
        The expression without spaces, with n numbers, n - 1 operators and at most max(n - 2, 0)
        pairs of brackets; and its exact value, or None if it divides by zero.

    Example:
        >>> random_expression([2, 3, 6], random.Random(1))
        ('2/(6/3)', Fraction(1, 1))
    """
    text, _, value = _random_tree(rng.sample(numbers, len(numbers)), rng)
    return text, value


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) not in _OPERATORS:
                raise ExpressionError(f"operator {type(op).__name__} is not one of + - * /")
            return _OPERATORS[type(op)](_value(left, numbers), _value(right, numbers))
    raise ExpressionError(f"{type(node).__name__} is not part of an arithmetic expression")


def _random_tree(numbers: Sequence[int], rng: random.Random) -> tuple[str, int, Fraction | None]:
    """Return an expression of the numbers in order, its outermost precedence, and its value."""
    if len(numbers) == 1:
        return str(numbers[0]), _ATOM, Fraction(numbers[0])
    cut = rng.randrange(1, len(numbers))
    left, left_strength, left_value = _random_tree(numbers[:cut], rng)
    right, right_strength, right_value = _random_tree(numbers[cut:], rng)
    symbol = rng.choice("+-*/")
    operator_type, strength = _SYMBOLS[symbol]
    if left_value is None or right_value is None or (symbol == "/" and right_value == 0):
        value = None
    else:
        value = _OPERATORS[operator_type](left_value, right_value)
    if left_strength < strength:
        left = f"({left})"
    # a-(b+c) and a/(b*c) need brackets. a+(b-c) and a*(b/c) have the same value without them.
    if right_strength < strength or (right_strength == strength and symbol in "-/"):
        right = f"({right})"
    return f"{left}{symbol}{right}", strength, value
