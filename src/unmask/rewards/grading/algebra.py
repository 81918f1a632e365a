"""Comparison of two expressions by math-verify. Only the worker processes of `verifier` run it.

A comparison may take unlimited time and memory. The import and the first parse take longer than
most comparisons, so they happen before a worker reports that it is ready.
"""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, N

DIGITS = 50
"""Number of digits to which constants are computed."""

# math-verify warns that its own time limit is off.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def check(gold: str, answer: str) -> bool:
    """Return True if math-verify finds two expressions equal, and not only because both are near
    zero.

    Args:
        gold: correct answer, as LaTeX.
        answer: any text, as LaTeX.
    """
    gold_parts, answer_parts = _read(gold), _read(answer)
    return bool(verify(gold_parts, answer_parts, timeout_seconds=None)) and _agree(gold_parts, answer_parts)


def _agree(gold: list[object], answer: list[object]) -> bool:
    """Return True if two constants agree to many digits.

    math-verify ignores differences below 1e-15, whatever the size of the numbers.
    """
    if not gold or not answer:
        return True
    a, b = gold[0], answer[0]
    if not (isinstance(a, Expr) and isinstance(b, Expr)) or a.free_symbols or b.free_symbols:
        return True
    size = max(abs(N(a, DIGITS)), abs(N(b, DIGITS)))
    return bool(abs(N(a - b, DIGITS)) <= size * Float(10) ** (-DIGITS // 2))


def _read(text: str) -> list[object]:
    parts: list[object] = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
    return parts


check(r"\frac{1}{2} + x", r"x + \frac{1}{2}")
