"""Boxes in a completion, whether closed or broken. Nothing here raises, and all of it is linear in the text."""

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
_BEHIND = re.compile(r"[-+]?[^\s$<{}\\]+(?: ?[-+*/=×÷] ?[^\s$<{}\\]+)*")
"""What stands right behind an empty box."""
_SUM = re.compile(r"[0-9)]\s{0,9}[-+*/]\s{0,9}[(0-9]")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace; an escaped character, so that `\\}` closes nothing."""
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
    return (behind.end(), behind.group()) if behind and behind.group()[-1:].isalnum() else (closing + 1, "")


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
