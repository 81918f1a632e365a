"""Rewards for a right answer, for rows with a column `answer`: as text, as a number, or as an expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unmask.rewards.grading.answers import answer_in, tagged_answer
from unmask.rewards.grading.numerals import read_number
from unmask.rewards.grading.verifier import grade
from unmask.rewards.protocol import Score, reads_text, reports


@reads_text
@reports("unparsed")
def exact_answer(completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the last answer tag holds the row's answer, letter for letter but for outer white space.

    Example:
        >>> exact_answer(["<answer> Oslo\\n</answer>", "<answer>oslo</answer>", "Oslo"], ["Oslo"] * 3)
        [1.0, 0.0, 0.0]
    """
    given = [tagged_answer(text) for text in completions]
    return [
        Score(0.0, "unparsed") if text is None else float(text == str(gold).strip())
        for text, gold in zip(given, answer, strict=True)
    ]


@reads_text
@reports("unparsed")
def correct_number(completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the last answer tag, or without one the last box, holds the row's number, however it is written.

    The row's answer may be GSM8K's own column, which ends in "#### 18".

    Example:
        >>> completions = ["<answer>$1,000.00</answer>", r"It is \\boxed{-3}.", "<answer>2 or 3</answer>"]
        >>> correct_number(completions, ["... #### 1000", -3, 3])
        [1.0, 1.0, 0.0]
    """
    scores: list[float] = []
    for text, gold in zip(completions, answer, strict=True):
        given = read_number(answer_in(text) or "", in_prose=True)
        wanted = read_number(str(gold).rpartition("####")[2])
        if given is None:
            scores.append(Score(0.0, "unparsed"))
        else:
            scores.append(float(wanted is not None and given.equals(wanted)))
    return scores


@reads_text
@reports("unparsed", "timeout")
def correct_math(completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the last answer tag, or without one the last box, holds an expression equal to the row's, by math-verify.

    Example:
        >>> correct_math([r"<answer>\\boxed{\\sqrt{8}}</answer>", r"\\boxed{2\\sqrt{2}}", r"2\\sqrt{2}"], [r"2\\sqrt{2}"] * 3)
        [1.0, 1.0, 0.0]

    Raises:
        ConfigError: math-verify is not installed.
    """
    given = [answer_in(text) for text in completions]
    found = [(text, str(gold)) for text, gold in zip(given, answer, strict=True) if text is not None]
    grades = iter(grade([text for text, _ in found], [gold for _, gold in found]))
    return [Score(0.0, "unparsed") if text is None else next(grades) for text in given]
