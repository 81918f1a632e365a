"""One comparison by math-verify. For the worker processes of `unmask.tasks.verifier` alone: it may take for ever, or all memory.

Its imports and its first parse take longer than most comparisons, so they are done before a worker says that it is ready.
"""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify

# It warns that its own time limit is off.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def check(gold: str, answer: str) -> bool:
    """Whether math-verify holds an answer for the gold one.

    Args:
        gold: the right answer, as LaTeX.
        answer: any text, as LaTeX.
    """
    return bool(verify(_read(gold), _read(answer), timeout_seconds=None))


def _read(text: str) -> list[object]:
    found: list[object] = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
    return found


check(r"\frac{1}{2} + x", r"x + \frac{1}{2}")
