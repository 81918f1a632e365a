"""A guard around the scorers of `reasoning-gym`, which prevents rewards for texts that are not
answers.

Some scorers of the package reward any text, "nan", a prefix of the answer, the first number of a
sentence, a value that is merely close, or any text that contains the answer. The guard treats all
tasks of the package in the same way. It compares the answer with the gold answer of the item, and
checks the scorer's reward on the same item for texts that are certainly wrong:

1. An answer that equals the gold answer, as text or as one number, earns 1. The rounded gold answer
   earns 1 too, if the question asks for rounding.
2. "nan" and "inf", words that hedge or deny ("or", "not", "wrong"), and more numbers than the gold
   answer has earn 0.
3. An answer that contains the gold answer earns 0, unless the scorer rewards it fully and does not
   reward additional words around an answer.
4. A value that is merely close earns 0 if the scorer also rewards the gold answer with its last
   digit changed.
5. An expression over given numbers must use them and have the correct value.
6. The scorer's own reward, full or partial, counts if it is larger than the reward of every
   constant text (such as "0" or "x") on this item.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from decimal import (
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from typing import Any

from unmask.rewards.grading.expressions import ExpressionError, evaluate
from unmask.rewards.grading.numerals import read_number
from unmask.rewards.grading.wrapping import unwrapped

PackageReward = Callable[[str], float]
"""Function that returns the package's reward of one answer to one item, in [0, 1]; it never
raises."""

CONSTANTS = ("0", "1", "-1", "100", "0.5", "x", "?", "(P ∨ ¬P)", "(Q ∨ ¬Q)")
"""Texts that are not an answer to an item, unless they are its gold answer."""
_NUMBER = re.compile(
    r"(?<![\w.])[+-]?(?:[0-9][0-9,]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,4})?(?:/[0-9]+)?|(?<![\w.])[+-]?\.[0-9]+"
)
_MANTISSA = re.compile(r"(?<![\w.])[0-9][0-9,]*(?:\.[0-9]+)?(?=[eE][+-]?[0-9]|[^\w.]|\.?$)")
_NOT_FINITE = re.compile(r"\b(?:nan|inf|infinity|none|null)\b", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:or|nor|not|no|wrong|incorrect|false|maybe|perhaps|possibly|probably|guess|unsure|roughly|approximately|either|neither|"
    r"but|isn't|unknown)\b",
    re.IGNORECASE,
)
_EMPTY = re.compile(
    r"""[\s"'`\[\](){}]*(?:(?:none|empty(?: string)?|no (?:real )?(?:solutions?|roots?))\.?)?[\s"'`\[\](){}]*""",
    re.IGNORECASE,
)
_ASKS_FOR_ROUNDING = re.compile(r"\bcorrect to (?P<digits>[0-9]) significant figures\b|\bprobability\b", re.IGNORECASE)
_FEWEST_DIGITS = 3
"""Minimum number of digits of a rounded value that may count as the exact value, unless the
question sets the number of digits."""
_LONGEST_NUMBER = 400
_EXACT = Context(prec=2 * _LONGEST_NUMBER, traps=[InvalidOperation, DivisionByZero, Overflow])
"""Decimal context of the guard, because some tasks of the package lower the precision of the whole
process."""


def guarded(score: PackageReward, answer: str, entry: dict[str, Any]) -> float:
    """Return the reward of an answer to an item, by the rules at the top of this file.

    Args:
        score: function that returns the package's reward of a text on this item.
        answer: any text.
        entry: item as the package made it.

    Returns:
        The reward, in [0, 1].
    """
    gold = None if entry.get("answer") is None else str(entry["answer"])
    plain = unwrapped(answer)
    question = str(entry.get("question", ""))
    if gold is not None and (
        _is_same(answer, gold, question)
        or _is_same(plain, gold, question)
        # The gold answer may be a sentence. `unwrapped` removes its full stop.
        or (" " in gold and _lines(plain) == _lines(unwrapped(gold)))
        or _is_rounding(plain, gold, question)
    ):
        return 1.0
    if _is_doubtful(answer, gold or ""):
        return 0.0
    paid = score(answer) or score(plain)
    if paid <= 0.0 or (gold and not _may_be_paid(score, plain, gold, entry, paid)):
        return 0.0
    return paid if paid > _floor(score, gold) else 0.0


def _is_same(answer: str, gold: str, question: str = "") -> bool:
    """Return True if an answer equals the gold answer as text, word or number."""
    if not gold.strip():
        return _EMPTY.fullmatch(answer) is not None
    if _lines(answer) == _lines(gold):
        return True
    if gold.casefold() in ("true", "false", "yes", "no"):
        return answer.casefold().strip(" .") == gold.casefold()
    if not _NUMBER.fullmatch(gold) or len(answer) > _LONGEST_NUMBER or "\n" in answer.strip():
        return False
    a, b = read_number(answer), read_number(gold)
    # A unit after a number is accepted if the question mentions it, such as "6 legs", but not "6
    # Saturday".
    units = set(re.findall(r"[a-z]{2,}", answer.casefold())) - set(re.findall(r"[a-z]{2,}", question.casefold()))
    return a is not None and b is not None and a.value == b.value and not units


def _lines(text: str) -> list[list[str]]:
    """Return the words of each line that is not empty. A column of numbers differs from a row."""
    return [words for line in text.splitlines() if (words := line.split())]


def _is_rounding(answer: str, gold: str, question: str) -> bool:
    """Return True if a number is the rounded gold answer and the question allows rounding."""
    asked = _ASKS_FOR_ROUNDING.search(question)
    if not asked or not _NUMBER.fullmatch(gold) or "/" in gold:
        return False
    a, b = _decimal(answer), _decimal(gold)
    if a is None or b is None:
        return False
    exact, rounded = (a, b) if "/" in answer else (b, a)
    return len(rounded.as_tuple().digits) >= int(asked["digits"] or _FEWEST_DIGITS) and _rounds_to(exact, rounded)


def _rounds_to(exact: Decimal, rounded: Decimal) -> bool:
    try:
        with localcontext(_EXACT):
            return any(exact.quantize(rounded, mode) == rounded for mode in (ROUND_HALF_EVEN, ROUND_HALF_UP))
    except InvalidOperation:
        return False


def _is_doubtful(answer: str, gold: str) -> bool:
    """Return True if an answer has more words of doubt than the gold answer, or lacks numbers that
    the gold answer has."""
    return any(
        Counter(match.lower() for match in pattern.findall(answer))
        - Counter(match.lower() for match in pattern.findall(gold))
        for pattern in (_NOT_FINITE, _DOUBT)
    )


def _may_be_paid(score: PackageReward, answer: str, gold: str, entry: dict[str, Any], paid: float) -> bool:
    """Return True if rules 2 to 5 allow an answer to be another correct answer or a partly correct
    one."""
    given, own = _numbers(answer), _numbers(gold)
    has_words = re.search(r"[A-Za-z]{2}", gold) is not None
    if len(given) > len(own) and own and (len(own) == 1 or not has_words):
        return False
    contains = _normal(gold) in _normal(answer)
    if contains and (
        paid < 1.0 or any(score(text) >= 1.0 for text in (f"{gold} zz", f"zz {gold}", f"{gold}\nzz", f"{gold}, zz"))
    ):
        return False
    if paid >= 1.0 and given != own and any(score(text) >= 1.0 for text in _near(gold)):
        return False
    numbers = entry.get("metadata", {}).get("numbers")
    return not isinstance(numbers, list) or _is_expression_over(answer, gold, numbers)


def _is_expression_over(answer: str, gold: str, numbers: list[Any]) -> bool:
    """Return True if an answer uses the given numbers and has the value of the gold expression."""
    try:
        wanted = evaluate(gold)
    except ExpressionError:
        return True
    if sorted(wanted.numbers) != sorted(numbers):
        return True
    try:
        found = evaluate(answer)
    except ExpressionError:
        return False
    return sorted(found.numbers) == sorted(numbers) and found.value == wanted.value


def _floor(score: PackageReward, gold: str | None) -> float:
    """Return the largest reward of a constant text, or of the gold answer with every digit 0."""
    texts = [*CONSTANTS, re.sub(r"[0-9]", "0", gold)] if gold else list(CONSTANTS)
    return max(score(text) for text in texts if gold is None or not _is_same(text, gold))


def _near(gold: str) -> list[str]:
    """Return the gold answer with its last digit changed, and with one more digit."""
    numbers = list(_MANTISSA.finditer(gold))
    if not numbers:
        return []
    end = numbers[-1].end()
    changed = f"{gold[: end - 1]}{(int(gold[end - 1]) + 1) % 10}{gold[end:]}"
    return [changed, f"{gold[:end]}1{gold[end:]}"] if "." in numbers[-1].group() else [changed]


def _numbers(text: str) -> list[Decimal | None]:
    return [_decimal(number) for number in _NUMBER.findall(text)]


def _decimal(text: str) -> Decimal | None:
    """Return the value of a decimal number or a fraction; None for any other text."""
    top, _, bottom = text.replace(",", "").strip().partition("/")
    if len(text) > _LONGEST_NUMBER:
        return None
    try:
        with localcontext(_EXACT):
            value = Decimal(top) / Decimal(bottom or "1")
    except ArithmeticError:
        return None
    return value if value.is_finite() else None


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
