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
