"""Rewards for the format of a completion: those of d1, ESPO and EGSPO, without their bugs.

In the released code, `.` does not match a newline, so reasoning of several lines gets no format
reward; a missing newline after the last tag lowers the reward by 0.001 for each character of the
text; and the pattern for the box starts with a backspace, so it never matches. The functions here
search for the literal tags and boxes, and subtract nothing for the text before or after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unmask.rewards.grading.answers import answer_in
from unmask.rewards.grading.boxes import CLOSE, OPEN, last_boxed
from unmask.rewards.grading.numerals import read_number
from unmask.rewards.protocol import reads_text

_REASONING, _REASONING_END = "<reasoning>", "</reasoning>"
_TAGS = (_REASONING, _REASONING_END, OPEN, CLOSE)


@reads_text
def answer_tag(completions: Sequence[str], **columns: Any) -> list[float]:
    """Give 1 to a completion with exactly one answer tag that is closed and not empty, else 0.

    Example:
        >>> answer_tag(["so\\n<answer>5</answer>", "<answer>5", "<answer> </answer>", "<answer>1</answer><answer>2</answer>"])
        [1.0, 0.0, 0.0, 0.0]
    """
    return [float(_holds_once(text, OPEN, CLOSE)) for text in completions]


@reads_text
def reasoning_then_answer(completions: Sequence[str], **columns: Any) -> list[float]:
    """Give 1 to a completion of one reasoning block and then one answer tag, both not empty.

    White space around the block and the tag is allowed.

    Example:
        >>> whole = "<reasoning>\\ntwo\\nlines\\n</reasoning>\\n<answer>5</answer>"
        >>> reasoning_then_answer([whole, whole + "\\n", "well " + whole, "<answer>5</answer>"])
        [1.0, 1.0, 0.0, 0.0]
    """
    return [float(_is_whole(text.strip())) for text in completions]


@reads_text
def tag_count(completions: Sequence[str], **columns: Any) -> list[float]:
    """Give 1/4 for each of four tags that occurs exactly once.

    The tags are <reasoning>, </reasoning>, <answer> and </answer>.

    Example:
        >>> tag_count(["<reasoning>a</reasoning><answer>5</answer> and more", "<answer>5</answer>", "<answer><answer>5"])
        [1.0, 0.5, 0.0]
    """
    return [sum(text.count(tag) == 1 for tag in _TAGS) / len(_TAGS) for text in completions]


@reads_text
def boxed_answer(completions: Sequence[str], **columns: Any) -> list[float]:
    r"""Give 1/2 for an answer tag, and another 1/2 for a \boxed{} that is not empty.

    The released code gives a quarter whether or not there is a box.

    Example:
        >>> boxed_answer([r"<answer>\boxed{5}</answer>", r"\boxed{5}", "<answer>5</answer>", "<answer>\boxed{5}</answer>", ""])
        [1.0, 0.5, 0.5, 0.5, 0.0]
    """
    return [(_holds_once(text, OPEN, CLOSE) + (last_boxed(text) is not None)) / 2 for text in completions]


@reads_text
def integer_answer(completions: Sequence[str], **columns: Any) -> list[float]:
    """Give 1 to a correct or wrong answer that is an integer, such as "-3", "1,000" or "3.0".

    Example:
        >>> integer_answer(["<answer>-3</answer>", "<answer>1,000</answer>", "<answer>2.5</answer>", "3"])
        [1.0, 1.0, 0.0, 0.0]
    """
    numbers = [read_number(answer_in(text) or "") for text in completions]
    return [float(number is not None and number.value.denominator == 1) for number in numbers]


def _holds_once(text: str, opening: str, closing: str) -> bool:
    if text.count(opening) != 1 or text.count(closing) != 1:
        return False
    start, end = text.find(opening) + len(opening), text.find(closing)
    return start <= end and bool(text[start:end].strip())


def _is_whole(text: str) -> bool:
    if not (text.startswith(_REASONING) and text.endswith(CLOSE)):
        return False
    reasoning, _, rest = text.partition(_REASONING_END)
    return (
        _holds_once(reasoning + _REASONING_END, _REASONING, _REASONING_END)
        and rest.lstrip().startswith(OPEN)
        and _holds_once(text, OPEN, CLOSE)
        and _holds_once(text, _REASONING, _REASONING_END)
    )
