"""Countdown: reach a target from a few numbers, each used once, with + - * /.

Reward as in arXiv:2603.12554's release: 1.0 for a right expression, 0.1 for an answer that is there but wrong, invalid
or without a value, 0 for none. Unlike the release, `**` and `//` are not legal, nothing is passed to `eval`, the value is exact
(the release allows 1e-5), and outside the bare format an answer may be boxed, in LaTeX, with its value behind it, or in steps.
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
"""Reward of an answer that is there but not right."""
_EQUALS = re.compile(r"\s(?:which\s|this\s|that\s|it\s)?(?:is equal to|is|equals|gives|makes|yields)(?=\s)|==")
_ARROW = r"->|=>|→|⇒|\\(?:implies|to|rightarrow|Rightarrow)\b"
_BEFORE_VALUE = re.compile(rf"\s(?:{_ARROW})(?=\s*[0-9]+\s*$)")
_STEP_END = re.compile(
    rf"[,;\n]|\.(?=\s|$)|{_ARROW}|\b(?:and then|then|and|so|first|second|next|now|finally|add|subtract|multiply|divide)\b",
    re.IGNORECASE,
)


class Countdown(NumbersTask):
    """Three or four numbers and a target that some expression over them reaches. Splits share no multiset of numbers.

    Bare prompt: "2,3,6:18="; completion: an expression such as "(6+3)*2", without spaces.
    """

    type: Literal["countdown"] = "countdown"
    num_numbers: int = Field(3, ge=3, le=4)
    """Numbers of an item."""
    max_number: int = Field(6, ge=1, le=99)
    """Numbers are drawn from 1 to this, with replacement. A model of 0.2M parameters can learn the default."""
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
        """Of the longest expression without superfluous brackets, and one more: they vary, so each ends with an EOS.

        n numbers, n - 1 operators and n - 2 pairs of brackets: 8 for three digits, 12 for four.
        """
        n = self.num_numbers
        return n * len(str(self.max_number)) + (n - 1) + 2 * (n - 2) + 1

    @property
    def alphabet(self) -> str:
        return "()*+,-/0123456789:="

    def draw_numbers(self, rng: random.Random) -> list[int]:
        return [rng.randint(1, self.max_number) for _ in range(self.num_numbers)]

    def build(self, numbers: list[int], rng: random.Random) -> Row | None:
        """An item whose target is the value of a random expression, so it can be solved; None if that is no target."""
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
        """The row's own expression, itself a random right one; or, sloppy, any expression over the right numbers."""
        return random_expression(row["numbers"], rng)[0] if sloppy else str(row["answer"])

    def score(self, answer: str, row: Row) -> float:
        """1.0 if right, 0.1 if not."""
        return 1.0 if self.is_right(answer, row) else WRONG

    def is_right(self, answer: str, row: Row) -> bool:
        """Whether the answer uses each number exactly once and has the target as its value; see `reaches`.

        A bare answer is the expression and nothing else.
        """
        if self.format != "bare":
            return reaches(answer, row["numbers"], row["target"])
        try:
            expression = evaluate(answer)
        except ExpressionError:
            return False
        return sorted(expression.numbers) == sorted(row["numbers"]) and expression.value == row["target"]


def reaches(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Whether an answer is an expression over all of some numbers, each used once, whose value is a target.

    An answer may go on to state its value, as long as every side of every equals sign has the target as its value. It may also be
    worked out in steps, each of which uses numbers or results that are left.

    Args:
        answer: an expression as people and models write it; see `notation`.
        numbers: what it has to use.
        target: its value.

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
    """Whether equations such as 3 + 5 = 8 and 8 * 2 = 16 are true, use up numbers and results, and end at a target."""
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
