"""One comparison by math-verify, which may take for ever or all memory: only the worker processes of `verifier` run it.

Its imports and its first parse take longer than most comparisons, so they are done before a worker says that it is ready.
"""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, N

DIGITS = 50
"""Digits to which constants are worked out."""

# It warns that its own time limit is off.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def check(gold: str, answer: str) -> bool:
    """Whether math-verify holds an answer for the gold one, and the two are not merely both close to zero.

    Args:
        gold: the right answer, as LaTeX.
        answer: any text, as LaTeX.
    """
    wanted, given = _read(gold), _read(answer)
    return bool(verify(wanted, given, timeout_seconds=None)) and _agree(wanted, given)


def _agree(wanted: list[object], given: list[object]) -> bool:
    """Whether two constants agree to many digits: math-verify takes differences below 1e-15 for nothing, whatever the size."""
    if not wanted or not given:
        return True
    a, b = wanted[0], given[0]
    if not (isinstance(a, Expr) and isinstance(b, Expr)) or a.free_symbols or b.free_symbols:
        return True
    size = max(abs(N(a, DIGITS)), abs(N(b, DIGITS)))
    return bool(abs(N(a - b, DIGITS)) <= size * Float(10) ** (-DIGITS // 2))


def _read(text: str) -> list[object]:
    found: list[object] = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
    return found


check(r"\frac{1}{2} + x", r"x + \frac{1}{2}")
