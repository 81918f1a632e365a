"""Countdown: write an expression with + - * / that uses each of a few numbers once and has a target
as its value.

The reward is that of arXiv:2603.12554's release: 1.0 for a correct expression, 0.1 for an answer
that is wrong, invalid or has no value, and 0 if there is no answer. Unlike the release, `**` and
`//` are not allowed, nothing is passed to `eval`, and the value is exact (the release allows 1e-5).
In the formats other than bare, an answer may be boxed, written in LaTeX, followed by its value, or
written as several steps.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unmask.rewards.grading.expressions import ExpressionError, evaluate, random_expression
from unmask.rewards.grading.notation import plain_expression
from unmask.tasks.base import NumbersTask

if TYPE_CHECKING:
    from unmask.core.records import Row

WRONG = 0.1
"""Reward of an answer that is not correct."""
_EQUALS = re.compile(r"\s(?:which\s|this\s|that\s|it\s)?(?:is equal to|is|equals|gives|makes|yields)(?=\s)|==")
_ARROW = r"->|=>|→|⇒|\\(?:implies|to|rightarrow|Rightarrow)\b"
_BEFORE_VALUE = re.compile(rf"\s(?:{_ARROW})(?=\s*[0-9]+\s*$)")
_STEP_END = re.compile(
    rf"[,;\n]|\.(?=\s|$)|{_ARROW}|\b(?:and then|then|and|so|first|second|next|now|finally|add|subtract|multiply|divide)\b",
    re.IGNORECASE,
)


class Countdown(NumbersTask):
    """Three or four numbers, and a target that some expression over them reaches.

    Splits share no multiset of numbers. Bare prompt: "2,3,6:18=". Completion: an expression without
    spaces, such as "(6+3)*2".
    """

    type: Literal["countdown"] = "countdown"
    num_numbers: int = Field(3, ge=3, le=4)
    """Number of numbers of an item."""
    max_number: int = Field(6, ge=1, le=99)
    """Largest number; numbers are drawn with replacement from 1 to this number. The default is
    small enough for a model with 0.2M parameters to learn."""
    min_target: int = Field(1, ge=1)
    """Smallest target."""
    max_target: int = Field(99, ge=1)
    """Largest target."""

    reward_columns: ClassVar[tuple[str, ...]] = ("numbers", "target")

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.min_target > self.max_target:
            raise ValueError(
                f"min_target = {self.min_target} is more than max_target = {self.max_target}. "
                f"Set min_target to {self.max_target} or less."
            )
        self.require_every_split()
        return self

    @property
    def completion_length(self) -> int:
        """Length of the longest expression without superfluous brackets, plus 1 for EOS.

        The expression has n numbers, n - 1 operators and n - 2 pairs of brackets. With one-digit
        numbers, the result is 8 for three numbers and 12 for four.
        """
        n = self.num_numbers
        return n * len(str(self.max_number)) + (n - 1) + 2 * (n - 2) + 1

    @property
    def alphabet(self) -> str:
        return "()*+,-/0123456789:="

    def draw_numbers(self, rng: random.Random) -> list[int]:
        return [rng.randint(1, self.max_number) for _ in range(self.num_numbers)]

    def build(self, numbers: list[int], rng: random.Random) -> Row | None:
        """Return an item whose target is the value of a random expression; None if the expression
        is not valid."""
        expression, target = random_expression(numbers, rng)
        if target is None or target.denominator != 1 or not self.min_target <= target <= self.max_target:
            return None
        listed = ",".join(map(str, numbers))
        return {
            "prompt": self._prompt(f"{listed}:{target}=", _instruction(numbers, int(target))),
            "answer": expression,
            "numbers": numbers,
            "target": int(target),
        }

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the row's own expression. If `sloppy`, return a random expression over its
        numbers."""
        return random_expression(row["numbers"], rng)[0] if sloppy else str(row["answer"])

    def score(self, answer: str, row: Row) -> float:
        """Return 1.0 if the answer is correct, otherwise 0.1."""
        return 1.0 if self.is_right(answer, row) else WRONG

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the answer uses each number exactly once and its value is the target.

        A bare answer must be only the expression. For other answers, see `reaches`.
        """
        if self.format != "bare":
            return reaches(answer, row["numbers"], row["target"])
        try:
            expression = evaluate(answer)
        except ExpressionError:
            return False
        return sorted(expression.numbers) == sorted(row["numbers"]) and expression.value == row["target"]


def reaches(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Return True if an answer is an expression that uses each number once and has the target as
    its value.

    An answer may also state its value, if every side of every equals sign has that value. An answer
    may also consist of steps, each of which uses numbers or results that are left.

    Args:
        answer: expression as people and models write it; see `notation`.
        numbers: numbers that the expression must use.
        target: value that the expression must have.

    Example:
        >>> [reaches(text, [3, 5, 2], 16) for text in ("(3+5)×2", "2(3+5) = 16", "3 + 5 = 8, 8 * 2 = 16")]
        [True, True, True]
        >>> [reaches(text, [3, 5, 2], 16) for text in ("17 = (3+5)*2", "(3+5)*2, (5+3)*2", "8 * 2 = 16", "(3+5)*2*1")]
        [False, False, False, False]
    """
    text = _EQUALS.sub(" = ", plain_expression(answer))
    steps = [step for step in _STEP_END.split(text) if step.strip()]
    try:
        if len(steps) > 1 and all("=" in step for step in steps):
            return _steps_reach(steps, numbers, target)
        sides = [evaluate(side) for side in _BEFORE_VALUE.sub("=", text).replace("\n", " ").split("=") if side.strip()]
    except ExpressionError:
        return False
    uses_all = any(sorted(side.numbers) == sorted(numbers) for side in sides)
    return uses_all and all(side.value == target for side in sides)


def _steps_reach(steps: Sequence[str], numbers: Sequence[int], target: int) -> bool:
    """Return True if all steps are true equations, together use up all numbers and intermediate
    results, and end in the target."""
    left = Counter(Fraction(number) for number in numbers)
    for step in steps:
        sides = [evaluate(side) for side in step.split("=")]
        used = Counter(map(Fraction, sides[0].numbers))
        if used - left or any(side.value != sides[0].value for side in sides):
            return False
        left = left - used + Counter([sides[0].value])
    return left == Counter([Fraction(target)])


def _instruction(numbers: list[int], target: int) -> str:
    return (
        "Write an arithmetic expression with a given value. Use every number of the list exactly once, in any order, "
        "joined by +, -, * and / with brackets where you need them; use no other number and no other operation.\n\n"
        "For example, from the numbers 2, 3, 5 the target 16 is reached by (3 + 5) * 2, so the reply ends with "
        "<answer>(3 + 5) * 2</answer>.\n\n"
        f"Numbers: {', '.join(map(str, numbers))}\nTarget: {target}\n\n"
        "Think as long as you need, then write the expression alone, without an equals sign, between <answer> and "
        "</answer>."
    )
