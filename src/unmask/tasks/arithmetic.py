"""Arithmetic with written working: add and subtract in a row, and note every running result.

The task and its reward come from no paper. The reward is 1.0 if the last number of the answer is
the result, otherwise a tenth of the share of correct intermediate results. Correct intermediate
steps therefore earn more than a wrong guess, but never more than a correct result.
"""

from __future__ import annotations

import math
import random
import re
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unmask.rewards.grading.answers import numbers_in
from unmask.rewards.grading.expressions import ExpressionError, evaluate
from unmask.rewards.grading.notation import plain_expression, symbols, without_labels, without_remarks
from unmask.tasks.base import NumbersTask

if TYPE_CHECKING:
    from unmask.core.records import Row

WORKING = 0.1
"""Reward of a wrong result whose intermediate results are all correct."""
GUESS = 4
"""Maximum distance from the result of the guess in a sloppy demonstration (one that is correct only
by luck)."""

_NUMBER = r"[+-]?[0-9]{1,12}(?:\.[0-9]{1,12})?"
_LIST = re.compile(rf"{_NUMBER}(?:\s+{_NUMBER})*")
_SEPARATOR = re.compile(
    r"[,;\n]|\s\|\s|->|=>|→|⇒|\\(?:to|rightarrow|Rightarrow)\b|\b(?:and|first|then|next|finally)\b", re.IGNORECASE
)
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=[0-9])", re.IGNORECASE)
_LABEL = re.compile(
    r"\A(?:(?:after\s)?(?:step|result)\s?[0-9]{0,2}\s?[:.=)]?|[0-9]{1,2}\)|[a-z]\s?=|(?:the\s)?(?:running\s|intermediate\s)?results\sare)\s+(?=\S)",
    re.IGNORECASE,
)
_TRAILER = re.compile(
    r"(?<=[0-9])\s+(?:is|as|=)\s+(?:the\s+)?(?:final\s+|running\s+)?(?:results?|answer|total|sum)\b(?!.*\b(?:not|wrong|or|no)\b).*",
    re.IGNORECASE | re.DOTALL,
)
_WORDS = re.compile(r"[A-Za-z]")
_PLACEHOLDER = re.compile(r"[xX?_.]+")
"""Placeholder for intermediate results that are left out."""


class Arithmetic(NumbersTask):
    """Sums such as 3+4-9. Splits share no multiset of operands.

    Bare prompt: "3+4-9=". Completion: the running results after each operator, separated by commas,
    such as "+07,-02". They have signs and leading zeros, so that every digit has a fixed position.
    The last one is the answer.
    """

    type: Literal["arithmetic"] = "arithmetic"
    num_operands: int = Field(3, ge=2, le=16)
    """Number of operands of a sum. The answer has one result fewer. With 2 operands there is no
    intermediate result, so a wrong answer earns 0."""
    max_operand: int = Field(9, ge=1, le=99)
    """Largest operand; operands are drawn from 1 to this number."""

    reward_columns: ClassVar[tuple[str, ...]] = ("running",)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        self.require_every_split()
        return self

    @property
    def completion_length(self) -> int:
        """Length of every completion: the results with signs and commas.

        All completions have this length, so none needs an EOS.
        """
        num_results = self.num_operands - 1
        return num_results * (1 + self._num_digits) + (num_results - 1)

    @property
    def alphabet(self) -> str:
        return "+,-0123456789=x"

    def draw_numbers(self, rng: random.Random) -> list[int]:
        return [rng.randint(1, self.max_operand) for _ in range(self.num_operands)]

    def build(self, numbers: list[int], rng: random.Random) -> Row:
        signed = [numbers[0], *(rng.choice((-1, 1)) * number for number in numbers[1:])]
        running = list(accumulate(signed))[1:]
        expression = "".join(f"{number:+d}" for number in signed).removeprefix("+")
        return {
            "prompt": self._prompt(f"{expression}=", _instruction(expression)),
            "answer": ",".join(map(self._padded, running)),
            "numbers": numbers,
            "running": running,
        }

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the running results. If `sloppy`, return x for each intermediate result and a
        guess near the final result."""
        if not sloppy:
            return str(row["answer"])
        *working, result = row["running"]
        guess = result + rng.randint(-GUESS, GUESS)
        return ",".join(["x" * (1 + self._num_digits) for _ in working] + [self._padded(guess)])

    def score(self, answer: str, row: Row) -> float:
        """Return 1.0 for the correct result, otherwise 0.1 times the share of correct intermediate
        results."""
        if self.is_right(answer, row):
            return 1.0
        *working, _ = row["running"]
        right = sum(a == b for a, b in zip(self._results(answer)[:-1], working, strict=False))
        return WORKING * right / len(working) if working else 0.0

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the last number is the result; the intermediate results do not matter."""
        return bool(self._results(answer)[-1:] == row["running"][-1:])

    def _results(self, answer: str) -> list[float]:
        """Return the numbers of an answer. A bare answer has only signs, digits and commas."""
        return numbers_in(answer) if self.format == "bare" else running_results(answer)

    @property
    def _num_digits(self) -> int:
        """Return the number of digits of the largest possible result or guess."""
        return len(str(self.num_operands * self.max_operand + GUESS))

    def _padded(self, number: int) -> str:
        return f"{number:+0{1 + self._num_digits}d}"


def running_results(answer: str) -> list[float]:
    """Return the results that an answer lists, as values; an empty list if words in the answer make
    it unclear which results it states.

    Results stand on separate lines or between commas, semicolons, arrows or spaces. A true
    equation, such as 7 - 9 = -2, counts as its value. Remarks in brackets, "Step 2:" and "is the
    result of step 2" are not part of a result. An item that is not a number becomes NaN.

    Args:
        answer: any text.

    Example:
        >>> running_results("7, −2"), running_results("3+4 = 7; 7-9 = -2"), running_results("Step 1: 7\\nStep 2: minus 2 (done)")
        ([7.0, -2.0], [7.0, -2.0], [7.0, -2.0])
        >>> running_results("5-2"), running_results("7, 3 or -2"), running_results("7, -2 is wrong")
        ([nan], [], [])
    """
    text = _MINUS.sub("-", without_labels(without_remarks(symbols(answer)).strip("()[] \n")))
    results: list[float] = []
    for item in filter(str.strip, _SEPARATOR.split(text)):
        item = _TRAILER.sub("", _LABEL.sub("", item.strip(" ()[]"))).rstrip(". ")
        if _LIST.fullmatch(item):
            results += numbers_in(item)
        elif _WORDS.search(item) and not _PLACEHOLDER.fullmatch(item):
            return []
        else:
            results.append(_stated_value(item))
    return results


def _stated_value(item: str) -> float:
    """Return the value of a true equation that ends in a number; NaN for any other text."""
    sides = item.split("=")
    if len(sides) < 2 or not _LIST.fullmatch(sides[-1].strip()):
        return math.nan
    try:
        values = {evaluate(plain_expression(side)).value for side in sides if side.strip()}
    except ExpressionError:
        return math.nan
    return float(values.pop()) if len(values) == 1 else math.nan


def _instruction(expression: str) -> str:
    return (
        "Work out a sum from left to right and note the running result after each step.\n\n"
        f"Sum: {expression}\n\n"
        "Write all running results in order, separated by commas, so that the last one is the result of the whole sum, "
        "between <answer> and </answer>."
    )
