"""Rewards for answers that equal the column `answer` as a text, a number or an expression."""

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
    """Give 1 if the last answer tag holds exactly the row's answer, apart from outer white space.

    Example:
        >>> exact_answer(["<answer> Oslo\\n</answer>", "<answer>oslo</answer>", "Oslo"], ["Oslo"] * 3)
        [1.0, 0.0, 0.0]
    """
    answers = [tagged_answer(text) for text in completions]
    return [
        Score(0.0, "unparsed") if text is None else float(text == str(gold).strip())
        for text, gold in zip(answers, answer, strict=True)
    ]


@reads_text
@reports("unparsed")
def correct_number(completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float]:
    """Give 1 if the last answer tag, or else the last box, holds the row's number in any notation.

    The column may have the form of GSM8K, which ends in "#### 18".

    Example:
        >>> completions = ["<answer>$1,000.00</answer>", r"It is \\boxed{-3}.", "<answer>2 or 3</answer>"]
        >>> correct_number(completions, ["... #### 1000", -3, 3])
        [1.0, 1.0, 0.0]
    """
    rewards: list[float] = []
    for text, gold in zip(completions, answer, strict=True):
        number = read_number(answer_in(text) or "", in_prose=True)
        gold_number = read_number(str(gold).rpartition("####")[2])
        if number is None:
            rewards.append(Score(0.0, "unparsed"))
        else:
            rewards.append(float(gold_number is not None and number.equals(gold_number)))
    return rewards


@reads_text
@reports("unparsed", "timeout")
def correct_math(completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float]:
    """Give 1 if the last answer tag, or else the last box, holds an expression equal to the answer
    of the row.

    math-verify decides whether two expressions are equal.

    Example:
        >>> correct_math([r"<answer>\\boxed{\\sqrt{8}}</answer>", r"\\boxed{2\\sqrt{2}}", r"2\\sqrt{2}"], [r"2\\sqrt{2}"] * 3)
        [1.0, 1.0, 0.0]

    Raises:
        ConfigError: math-verify is not installed.
    """
    answers = [answer_in(text) for text in completions]
    pairs = [(text, str(gold)) for text, gold in zip(answers, answer, strict=True) if text is not None]
    grades = iter(grade([text for text, _ in pairs], [gold for _, gold in pairs]))
    return [Score(0.0, "unparsed") if text is None else next(grades) for text in answers]
