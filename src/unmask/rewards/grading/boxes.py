r"""Boxes in a completion, whether closed or broken. Nothing here raises, and all of it is linear in the text."""

from __future__ import annotations

import re

OPEN, CLOSE = "<answer>", "</answer>"
_LOOSE_END = re.compile(r"(?:</?[A-Za-z]{0,12}[}>]?|```|>)$")
"""A closing tag that is broken, at the end of a text."""
BOX = re.compile(
    r"(?:\\|(?<![A-Za-z\\]))(?:[bB]oxed|fbox|framebox)[^\S\n]{0,9}(\{)|\\boxed[^\S\n]{0,9}(?=[-+.]?[0-9]|\\frac)"
)
"""The start of a box, with its brace or, as in `\\boxed 5`, without. The backslash may be lost, but not both."""
_REST_OF_LINE, _WORD = re.compile(r"\s*[^\n]*"), re.compile(r"[^\s$<]*")
_PIECE = r"(?:\\[dtc]?frac\{[^{}]{1,30}\}\{[^{}]{1,30}\}|\\sqrt\{[^{}]{1,30}\}|[^\s$<{}\\]+)"
_BEHIND = re.compile(rf"[-+]?{_PIECE}(?: ?[-+*/=×÷] ?{_PIECE})*")
"""What stands right behind an empty box."""
_SUM = re.compile(r"[0-9)]\s{0,9}[-+*/]\s{0,9}[(0-9]")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace; an escaped character, so that `\\}` closes nothing."""
_SIGN_BEFORE = re.compile(r"(?:[=:]\s{0,3}[-−]\s{0,2}|(?<![-\w)}])[-−])(?:\$|\\[(\[])?$")
_FACTOR_BEFORE = re.compile(
    r"(?:[0-9)}]\s?(?:[-−+/×·÷]|(?<!\*)\*)|\\(?:times|cdot|div|pm|mp)(?![A-Za-z])|[\w$]\s?[<≤≥]|[\w$]\s>|[±√^_]"
    r"|\\(?:le|ge|lt|gt|leq|geq|ne|neq)(?![A-Za-z])"
    r"|\\(?:sqrt(?:\[[^\]]{0,9}\])?|[dtc]?frac(?:\{[^{}]{0,20}\})?|log(?:_\{?\w{1,3}\}?)?)"
    r"|\\(?:ln|sin|cos|tan|[lr]?vert|lfloor|lceil))"
    r"\s?[{(]?\s?(?:\$|\\[(\[])?$"
)
_FACTOR_BEHIND = re.compile(
    r"[)}$!]{0,2}\s?(?:\\(?:times|cdot|div|pm|mp|pi|sqrt|[dtc]?frac)(?![A-Za-z])|[-−+/×·÷*]\s?(?=[0-9.]|\\[a-z]|[b-zB-HJ-Z](?![A-Za-z]))|[±²³√])"
    r"|\^(?!\s?\{?\s?\\?(?:circ|text|mathrm|o\b))|_|[.:]?[0-9]|[A-Za-z](?![A-Za-z.'’])|\{(?=[^{}<>]*\})"
)
"""What makes a box a part of a larger formula: a sign, a bound, an operation, a function, a power, digits or a letter that go on.

Digits right before a box are no such thing: models repeat themselves there ("they received 112\\boxed{1125}").
"""
_FORMULA_END = re.compile(r"\$|\\[)\]]|[,;.](?=\s|$)|\s+(?=[A-Za-z]{2}|$)")
_FORMULA = 40
"""Characters on either side of a box that are looked at for the rest of its formula."""
_TRIED_BOXES = 8
"""How many of the last boxes are looked at for one that is not empty; bounds the time."""


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{} that has something in it, braces inside it matched, stripped of outer white space.

    A box that is never closed reaches to the end of its line; the content of an empty one stands right behind it.

    Args:
        text: a completion, any length.

    Returns:
        The content, or None if there is no box, or nothing in the last ones.

    Example:
        >>> last_boxed(r"so \boxed{7}, or \boxed{\frac{1}{\sqrt{2}}}."), last_boxed("boxed{4}"), last_boxed(r"\boxed{}101")
        ('\\frac{1}{\\sqrt{2}}', '4', '101')
    """
    boxes = find_boxes(text)
    return boxes[-1][2] if boxes else None


def find_boxes(text: str) -> list[tuple[int, int, str]]:
    """The last boxes of a text that are not empty, in order: start, end and content."""
    starts = list(BOX.finditer(text))
    if not starts:
        return []
    # One pass over the braces of all boxes.
    opened: list[int] = []
    closing: dict[int, int] = {}
    for match in BRACE.finditer(text, starts[0].end() - bool(starts[0][1])):
        if match.group() == "{":
            opened.append(match.end())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    found: list[tuple[int, int, str]] = []
    for match in starts[-_TRIED_BOXES:]:
        end, content = _content(text, match, closing.get(match.end()))
        if content and not BOX.search(content):
            found.append((match.start(), end, content))
    return found


def in_formula(text: str, start: int, end: int, content: str) -> str:
    r"""The content of a box with the parts of its formula that stand outside of it.

    Args:
        text: a completion.
        start: where the box begins.
        end: where it ends.
        content: what is in it.

    Returns:
        The content alone if the box holds the whole value; with its sign; else a formula that is no plain number.

    Example:
        >>> in_formula(r"= -\boxed{5}", 3, 12, "5"), in_formula(r"\boxed{5}^2", 0, 9, "5"), in_formula(r"\boxed{5} m", 0, 9, "5")
        ('-5', '(5)^2', '5')
    """
    before = text[max(text.rfind("\n", 0, start) + 1, start - _FORMULA) : start]
    behind = text[end : end + _FORMULA].partition("\n")[0].partition("<")[0]
    factor = _FACTOR_BEFORE.search(before)
    sign = "" if factor else "-" if _SIGN_BEFORE.search(before) else ""
    if not _FACTOR_BEHIND.match(behind) or behind.startswith(f"{{{content}}}"):
        behind = ""
    if not (factor or behind):
        return sign + (f"({content})" if sign and re.search(r"[-+−]", content) else content)
    behind = _FORMULA_END.split(behind.lstrip(), maxsplit=1)[0]
    if not factor and behind.isalpha():
        return f"{sign}{content}{behind}"
    return _balanced(f"{factor.group() if factor else sign}({content}){behind}")


def _content(text: str, box: re.Match[str], closing: int | None) -> tuple[int, str]:
    """The end and the content of a box: closed, left open, empty, or without a brace."""
    start = box.end()
    if not box[1]:
        end = _end_of(_WORD, text, start)
        return end, text[start:end].rstrip(".,;")
    if closing is None or CLOSE[:-1] in text[start:closing]:
        end = _end_of(_REST_OF_LINE, text, start)
        # A closing tag where the brace should be: what is in the box may be cut short. The end of a line shows that it is not.
        content = "" if CLOSE in text[start:end] else without_loose_ends(text[start:end]).rstrip(" >$")
        # A number is whole in front of a stray ">"; a sum may go on there.
        is_cut = text[start:end].rstrip().endswith(">") and _SUM.search(content) is not None
        return end, _balanced(content.strip()) + (" >" if is_cut else "")
    if content := text[start:closing].strip():
        return closing + 1, content
    behind = _BEHIND.match(text, closing + 1)
    is_whole = behind is not None and (behind.group()[-1].isalnum() or behind.group()[-1] == "}")
    return (behind.end(), behind.group()) if behind and is_whole else (closing + 1, "")


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where what a pattern matches from a place on ends."""
    match = pattern.match(text, start)
    return match.end() if match else start


def without_loose_ends(text: str) -> str:
    """A text without broken closing tags at its end."""
    text = text.rstrip()
    while (loose := _LOOSE_END.search(text, max(0, len(text) - 16))) is not None:
        text = text[: loose.start()].rstrip()
    return text


def _balanced(content: str) -> str:
    """A content that was cut off, with the braces closed that it leaves open."""
    depth = 0
    for match in BRACE.finditer(content):
        depth += (match.group() == "{") - (match.group() == "}")
    return content + "}" * max(depth, 0)
