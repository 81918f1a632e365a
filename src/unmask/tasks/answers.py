"""Reading an answer out of a completion. Any text is fine: nothing here raises, and all of it is linear in the text.

Released graders for these tasks lose right answers to their parsers: `.` without DOTALL, numbers compared as strings, a
length penalty when the newline after the closing tag is missing. Plain string search has none of the three.
"""

from __future__ import annotations

import math
import re
from itertools import islice

OPEN, CLOSE = "<answer>", "</answer>"

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_LONGEST_NUMBER = 32
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{")
_DELIMITERS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))
_LEAD_IN = re.compile(r"(?:(?:the )?(?:final |correct )?answer(?: is)?(?:\s?:\s?|\s)(?=\S)|####\s?)", re.IGNORECASE)
"""What announces an answer inside its tag. No name, no verb but "is": what follows must be the answer alone."""
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace; an escaped character, so that `\\}` closes nothing."""


def last_answer(text: str) -> str | None:
    """What stands in the last complete answer tag, stripped of outer white space.

    It may span lines, and what follows the closing tag does not matter. Where an opening tag is repeated before it is
    closed, the innermost counts; an opening tag that is never closed does not.

    Args:
        text: a completion, any length.

    Returns:
        The answer, or None if there is no complete tag or nothing in it.

    Example:
        >>> last_answer("<answer>1</answer> or rather <answer>\\n2 + 3\\n</answer> as <answer>unfinished")
        '2 + 3'
        >>> last_answer("<answer> </answer>") is None
        True
    """
    # Two searches from the right: a lazy regex is quadratic in a completion that repeats the opening tag.
    start = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    if start < 0:
        return None
    start += len(OPEN)
    return text[start : text.find(CLOSE, start)].strip() or None


def last_boxed(text: str) -> str | None:
    """What stands in the last complete \\boxed{} or \\fbox{}, braces inside it matched, stripped of outer white space.

    The released graders look for the box with "\\b" in a plain string, which is a backspace, so none is ever found.

    Args:
        text: a completion, any length.

    Returns:
        The content, or None if there is no box that is closed, or nothing in the last one.

    Example:
        >>> last_boxed(r"so \\boxed{7}, or \\boxed{\\frac{1}{\\sqrt{2}}}. And \\boxed{unfinished")
        '\\\\frac{1}{\\\\sqrt{2}}'
    """
    boxes = [match.end() for match in _BOX.finditer(text)]
    if not boxes:
        return None
    # One pass over the braces: the box that closes last of those that open last.
    opened: list[int] = []
    closing: dict[int, int] = {}
    for match in _BRACE.finditer(text, boxes[0] - 1):
        brace, place = match.group(), match.start()
        if brace == "{":
            opened.append(place + 1)
        elif brace == "}" and opened:
            closing[opened.pop()] = place
    complete = [start for start in boxes if start in closing]
    return text[complete[-1] : closing[complete[-1]]].strip() or None if complete else None


def written_answer(text: str) -> str | None:
    """The answer of a completion to a mathematics problem: the last answer tag, or what is boxed in it; without a tag, the last
    box.

    Args:
        text: a completion, any length.

    Returns:
        The answer, or None if there is neither tag nor box, or nothing in it.

    Example:
        >>> written_answer(r"<answer>It is \\boxed{5}.</answer>"), written_answer(r"It is \\boxed{5}."), written_answer("5")
        ('5', '5', None)
    """
    tagged = last_answer(text)
    if tagged is None:
        return last_boxed(text)
    return last_boxed(tagged) if _BOX.search(tagged) else tagged


def unwrapped(text: str) -> str:
    """An answer without what surrounds it in prose or LaTeX: white space, "The answer is", `**`, math delimiters, one full stop.

    Args:
        text: an answer, any text.

    Returns:
        What is inside.

    Example:
        >>> [unwrapped(text) for text in (r" \\[ x^2 \\] ", "$ 5 $.", "**5**", "$5", "5..", "The answer is 5.")]
        ['x^2', '5', '5', '$5', '5.', '5']
    """
    text = text.strip().removesuffix(".").strip()
    if lead_in := _LEAD_IN.match(text):
        text = text[lead_in.end() :].strip()
    for opening, closing in _DELIMITERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text.removesuffix("\\,").strip()


def first_digits(text: str, limit: int) -> str:
    """The first ASCII digits of a text, run together, whatever stands between them.

    Args:
        text: any text.
        limit: how many digits to take at most.

    Returns:
        At most `limit` digits.

    Example:
        >>> first_digits("12|34 / 3412", 6)
        '123434'
    """
    return "".join(islice((c for c in text if c in "0123456789"), limit))


def numbers_in(text: str) -> list[float]:
    """Every decimal number of a text in reading order, as values: "+07", "7" and "7.0" are one number.

    Args:
        text: any text. A sign belongs to the digits right after it.

    Returns:
        The numbers; NaN, which equals nothing, for one of more than 32 characters.

    Example:
        >>> numbers_in("+07,-02 so about 3.50")
        [7.0, -2.0, 3.5]
    """
    return [float(n) if len(n) <= _LONGEST_NUMBER else math.nan for n in _NUMBER.findall(text)]
