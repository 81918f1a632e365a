"""Points, intervals, sets and plain lists in LaTeX, with their brackets and parts."""

from __future__ import annotations

import re
from typing import NamedTuple

_SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
_BOUND = r"(-?[^<>,=\\]{1,30}|-?\\frac\{[^{}]*\}\{[^{}]*\}|-?[0-9]*\\sqrt\{[^{}]*\})"
_LESS = re.compile(rf"\s*(?:{_BOUND}\s*(<|\\le)\s*)?([a-z])\s*(<|>|\\le|\\ge)\s*{_BOUND}\s*")
_GREATER = re.compile(rf"\s*{_BOUND}\s*(<|>|\\le|\\ge)\s*([a-z])(?:\s*(>|\\ge)\s*{_BOUND})?\s*")
"""Inequalities that start with the bound, or run from the upper bound down: 5 < x, 7 > x \\ge
-4."""
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_TURNED_DOWN = (">", "\\ge")
_MEMBER = re.compile(r"[a-z]\s*\\in\s*(?=[(\[]|\\\{|\\mathbb)")
_SUCH_THAT = re.compile(
    r"\\\{\s*([a-z])(?:\s*\\in\s*(?:\\mathbb\s?\{R\}|\\mathbb R|R))?\s*(?::|\||\\mid|\\vert|\\colon)\s*(.+)\\\}",
    re.DOTALL,
)
"""The set of the numbers with a property."""


class Listing(NamedTuple):
    """Several expressions with or without one pair of brackets around them."""

    brackets: str
    """Opening and closing bracket, such as (] or {}; empty for a plain list."""
    parts: list[str]


def listing(text: str) -> Listing | None:
    r"""Return a text as a list of expressions, or None if it is not a list.

    Example:
        >>> listing(r"(3; \frac{1}{2}]"), listing("1, 2").brackets, listing(r"\{1\}").brackets
        (Listing(brackets='(]', parts=['3', '\\frac{1}{2}']), '', '{}')
        >>> listing(r"(1,2) \cup (3,4)"), listing("f(1,2)"), listing("x")
        (None, None, None)
    """
    text = text.strip()
    if "\\begin" in text or "\\cup" in text or "\\cap" in text or "\\setminus" in text:
        return None
    if (match := _SET.fullmatch(text)) is not None and "\\{" not in match[1]:
        return Listing("{}", _parts(match[1]))
    if text[:1] in "([" and text[-1:] in ")]" and len(parts := _parts(text[1:-1])) > 1 and not _leaves(text):
        return Listing(text[0] + text[-1], parts)
    parts = _parts(text)
    return Listing("", parts) if len(parts) > 1 else None


def split_top(text: str, separators: str) -> list[str]:
    """Return the pieces of a text between separators that are outside of all brackets.

    Example:
        >>> split_top("(1,2), [3,4), 5", ",")
        ['(1,2)', ' [3,4)', ' 5']
    """
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    return [*pieces, text[start:]]


def as_intervals(text: str) -> str:
    r"""Return inequalities of one variable and sets of numbers as a union of intervals.

    Any other text is returned unchanged.

    Example:
        >>> as_intervals("x<2, x>3"), as_intervals(r"4 \ge x > 3"), as_intervals("x = 2")
        ('(-\\infty,2)\\cup(3,\\infty)', '(3,4]', 'x = 2')
        >>> as_intervals(r"\{x \mid x < 2\}"), as_intervals(r"x \in (1,2)"), as_intervals("(1,2), (3,4)")
        ('(-\\infty,2)', '(1,2)', '(1,2)\\cup(3,4)')
    """
    text = _MEMBER.sub("", text.strip(), count=1) if _MEMBER.match(text.strip()) else text
    if (such_that := _SUCH_THAT.fullmatch(text.strip())) is not None:
        text = such_that[2]
    pieces = [piece.strip() for piece in split_top(text, ",")]
    if len(pieces) > 1 and all(listing(piece) and piece[:1] in "([" for piece in pieces):
        return "\\cup".join(pieces)
    matches = [_LESS.fullmatch(piece) for piece in map(_from_below, pieces)]
    parts = [part for part in matches if part is not None]
    if len(parts) < len(matches) or len({part[3] for part in parts}) > 1:
        return text
    return "\\cup".join(_interval(*part.groups()) for part in parts)


def _from_below(inequality: str) -> str:
    """Return an inequality with its variable or lower bound first: x > 5 for 5 < x."""
    match = _GREATER.fullmatch(inequality)
    if match is None or (match[4] and match[2] not in _TURNED_DOWN):
        return inequality
    bound, sign, variable, second, lower = match.groups()
    if second is None:
        return f"{variable} {_TURNED[sign]} {bound}"
    return f"{lower} {_TURNED[second]} {variable} {_TURNED[sign]} {bound}"


def _interval(low: str | None, low_sign: str | None, _variable: str, sign: str, bound: str) -> str:
    """Return the interval that low < x < bound, x < bound or x > bound describes."""
    if sign in (">", "\\ge"):
        return ("[" if sign == "\\ge" else "(") + bound.strip() + ",\\infty)" if low is None else "\\emptyset"
    start = ("[" if low_sign == "\\le" else "(") + low.strip() if low else "(-\\infty"
    return f"{start},{bound.strip()}" + ("]" if sign == "\\le" else ")")


def _parts(text: str) -> list[str]:
    # Commas inside numbers, as in 1,000, have already been removed.
    return [part.strip() for part in split_top(text, ",;")]


def _leaves(text: str) -> bool:
    """Return True if the first bracket closes before the end, as in (1,2)(3,4)."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and index + 1 < len(text):
            return True
    return False
