r"""Boxes (\boxed{...} in LaTeX) in a completion, closed or broken. Any text is allowed, and the
time is linear in it."""

from __future__ import annotations

import re

OPEN, CLOSE = "<answer>", "</answer>"
_LOOSE_END = re.compile(r"(?:</?[A-Za-z]{0,12}[}>]?|```|>)$")
"""A broken closing tag at the end of a text."""
BOX = re.compile(
    r"(?:\\|(?<![A-Za-z\\]))(?:[bB]oxed|fbox|framebox)[^\S\n]{0,9}(\{)|\\boxed[^\S\n]{0,9}(?=[-+.]?[0-9]|\\frac)"
)
"""The start of a box, with its brace or without, as in `\\boxed 5`. Either the backslash or the
brace may be missing, but not both."""
_REST_OF_LINE, _WORD = re.compile(r"\s*[^\n]*"), re.compile(r"[^\s$<]*")
_PIECE = r"(?:\\[dtc]?frac\{[^{}]{1,30}\}\{[^{}]{1,30}\}|\\sqrt\{[^{}]{1,30}\}|[^\s$<{}\\]+)"
_BEHIND = re.compile(rf"[-+]?{_PIECE}(?: ?[-+*/=×÷] ?{_PIECE})*")
"""Text directly after an empty box."""
_SUM = re.compile(r"[0-9)]\s{0,9}[-+*/]\s{0,9}[(0-9]")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or an escaped character, so that `\\}` does not close a brace."""
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
"""Text that makes a box part of a larger formula: a sign, bound, operation, function or power, or
more digits or letters.

Digits directly before a box do not make it part of a formula, because models repeat themselves
there ("they received 112\\boxed{1125}").
"""
_FORMULA_END = re.compile(r"\$|\\[)\]]|[,;.](?=\s|$)|\s+(?=[A-Za-z]{2}|$)")
_FORMULA = 40
"""Number of characters on either side of a box that are searched for the rest of its formula."""
_TRIED_BOXES = 8
"""Maximum number of boxes that are searched, from the end, for one that is not empty. The limit
bounds the time."""


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{} that is not empty, without outer white space.

    Braces inside the box are matched. A box that is never closed extends to the end of its line.
    The text directly after an empty box counts as its content.

    Args:
        text: completion of any length.

    Returns:
        The content, or None if there is no box or the last 8 boxes are empty.

    Example:
        >>> last_boxed(r"so \boxed{7}, or \boxed{\frac{1}{\sqrt{2}}}."), last_boxed("boxed{4}"), last_boxed(r"\boxed{}101")
        ('\\frac{1}{\\sqrt{2}}', '4', '101')
    """
    boxes = find_boxes(text)
    return boxes[-1][2] if boxes else None


def find_boxes(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and content of the last boxes of a text that are not empty, in order."""
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
    boxes: list[tuple[int, int, str]] = []
    for match in starts[-_TRIED_BOXES:]:
        end, content = _content(text, match, closing.get(match.end()))
        if content and not BOX.search(content):
            boxes.append((match.start(), end, content))
    return boxes


def in_formula(text: str, start: int, end: int, content: str) -> str:
    r"""Return the content of a box with the parts of its formula that stand outside of it.

    Args:
        text: completion.
        start: offset at which the box begins.
        end: offset at which the box ends.
        content: content of the box.

    Returns:
        The content with the sign before the box, if there is one. If the formula continues outside
        of the box, the whole formula.

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
    """Return the end position and the content of a box, which may be closed, unclosed, empty, or
    without a brace."""
    start = box.end()
    if not box[1]:
        end = _end_of(_WORD, text, start)
        return end, text[start:end].rstrip(".,;")
    if closing is None or CLOSE[:-1] in text[start:closing]:
        end = _end_of(_REST_OF_LINE, text, start)
        # If a closing tag stands in place of the closing brace, the content may be cut off. If a
        # newline does, the content is complete.
        content = "" if CLOSE in text[start:end] else without_loose_ends(text[start:end]).rstrip(" >$")
        # Before a stray ">", a number is complete, but a sum may continue.
        is_cut = text[start:end].rstrip().endswith(">") and _SUM.search(content) is not None
        return end, _balanced(content.strip()) + (" >" if is_cut else "")
    if content := text[start:closing].strip():
        return closing + 1, content
    behind = _BEHIND.match(text, closing + 1)
    is_whole = behind is not None and (behind.group()[-1].isalnum() or behind.group()[-1] == "}")
    return (behind.end(), behind.group()) if behind and is_whole else (closing + 1, "")


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return the offset at which the match of a pattern ends."""
    match = pattern.match(text, start)
    return match.end() if match else start


def without_loose_ends(text: str) -> str:
    """Return a text without broken closing tags at its end."""
    text = text.rstrip()
    while (loose := _LOOSE_END.search(text, max(0, len(text) - 16))) is not None:
        text = text[: loose.start()].rstrip()
    return text


def _balanced(content: str) -> str:
    """Return truncated content with its open braces closed."""
    depth = 0
    for match in BRACE.finditer(content):
        depth += (match.group() == "{") - (match.group() == "}")
    return content + "}" * max(depth, 0)
