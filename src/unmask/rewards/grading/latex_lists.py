"""Points, intervals, sets and plain lists in LaTeX: their brackets and their parts."""

from __future__ import annotations

import re
from typing import NamedTuple

_SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
_BOUND = r"(-?[^<>,=\\]{1,30}|-?\\frac\{[^{}]*\}\{[^{}]*\}|-?[0-9]*\\sqrt\{[^{}]*\})"
_LESS = re.compile(rf"\s*(?:{_BOUND}\s*(<|\\le)\s*)?([a-z])\s*(<|>|\\le|\\ge)\s*{_BOUND}\s*")
_GREATER = re.compile(rf"\s*{_BOUND}\s*(<|>|\\le|\\ge)\s*([a-z])(?:\s*(>|\\ge)\s*{_BOUND})?\s*")
"""Inequalities with the bound first, and those from the upper bound down: 5 < x, 7 > x \\ge -4."""
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_TURNED_DOWN = (">", "\\ge")
_MEMBER = re.compile(r"[a-z]\s*\\in\s*(?=[(\[]|\\\{|\\mathbb)")
_SUCH_THAT = re.compile(
    r"\\\{\s*([a-z])(?:\s*\\in\s*(?:\\mathbb\s?\{R\}|\\mathbb R|R))?\s*(?::|\||\\mid|\\vert|\\colon)\s*(.+)\\\}",
    re.DOTALL,
)
"""The set of the numbers with a property."""


class Listing(NamedTuple):
    """Several expressions in one pair of brackets, or in none."""

    brackets: str
    """The opening and the closing one: (], {}; nothing for a plain list."""
    parts: list[str]


def listing(text: str) -> Listing | None:
    r"""A text as a list of expressions; None if it is none.

    Example:
        >>> listing(r"(3; \frac{1}{2}]"), listing("1, 2").brackets, listing(r"\{1\}").brackets
        (Listing(brackets='(]', parts=['3', '\\frac{1}{2}']), '', '{}')
        >>> listing(r"(1,2) \cup (3,4)"), listing("f(1,2)"), listing("x")
        (None, None, None)
    """
    text = text.strip()
    if "\\begin" in text or "\\cup" in text or "\\cap" in text or "\\setminus" in text:
        return None
    if (found := _SET.fullmatch(text)) is not None and "\\{" not in found[1]:
        return Listing("{}", _parts(found[1]))
    if text[:1] in "([" and text[-1:] in ")]" and len(parts := _parts(text[1:-1])) > 1 and not _leaves(text):
        return Listing(text[0] + text[-1], parts)
    parts = _parts(text)
    return Listing("", parts) if len(parts) > 1 else None


def split_top(text: str, separators: str) -> list[str]:
    """The pieces of a text between separators that stand in no bracket.

    Example:
        >>> split_top("(1,2), [3,4), 5", ",")
        ['(1,2)', ' [3,4)', ' 5']
    """
    pieces, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth == 0:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]


def as_intervals(text: str) -> str:
    r"""Inequalities of one variable and sets of numbers as intervals, joined where there are several; any other text as it is.

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
    found = [_LESS.fullmatch(turned) for turned in map(_from_below, pieces)]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or len({part[3] for part in parts}) > 1:
        return text
    return "\\cup".join(_interval(*part.groups()) for part in parts)


def _from_below(inequality: str) -> str:
    """An inequality with its variable first, or with its lower bound first if it has two: x > 5 for 5 < x."""
    match = _GREATER.fullmatch(inequality)
    if match is None or (match[4] and match[2] not in _TURNED_DOWN):
        return inequality
    bound, sign, variable, second, lower = match.groups()
    if second is None:
        return f"{variable} {_TURNED[sign]} {bound}"
    return f"{lower} {_TURNED[second]} {variable} {_TURNED[sign]} {bound}"


def _interval(low: str | None, low_sign: str | None, _variable: str, sign: str, bound: str) -> str:
    """The interval of low < x < bound, or of x < bound or x > bound."""
    if sign in (">", "\\ge"):
        return ("[" if sign == "\\ge" else "(") + bound.strip() + ",\\infty)" if low is None else "\\emptyset"
    start = ("[" if low_sign == "\\le" else "(") + low.strip() if low else "(-\\infty"
    return f"{start},{bound.strip()}" + ("]" if sign == "\\le" else ")")


def _parts(text: str) -> list[str]:
    # A comma inside a number, as in 1,000, has been taken off before.
    return [part.strip() for part in split_top(text, ",;")]


def _leaves(text: str) -> bool:
    """Whether the first bracket closes before the end: (1,2)(3,4)."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and place + 1 < len(text):
            return True
    return False
