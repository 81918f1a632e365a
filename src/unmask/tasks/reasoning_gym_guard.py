"""A guard around the scorers of `reasoning-gym`: what they pay for a text that is not the answer is not paid.

Some of the package's scorers pay any text, "nan", a prefix, the first number of a sentence, a value that is merely near, or any
text that contains the answer. The guard knows no task by name. It compares the answer with the item's own, and asks the scorer
what it pays on the same item for texts that are certainly wrong:

1. An answer that is the item's own, as text or as one number, earns 1. So does one that is its rounding, where the question asks
   for one.
2. "nan" and "inf", words that hedge or deny ("or", "not", "wrong"), and more numbers than the item's answer has earn 0.
3. An answer that contains the item's own earns 0, unless the scorer pays it in full and does not pay for words around an answer.
4. A value that is merely near earns 0 where the scorer pays for one that differs in its last digit.
5. An expression over given numbers must use these and have the right value.
6. The scorer's own score counts, full or partial, if it is more than any constant text earns on this item.
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

Scorer = Callable[[str], float]
"""The package's score of one answer to one item, within 0 and 1; it never raises."""

CONSTANTS = ("0", "1", "-1", "100", "0.5", "x", "?", "(P ∨ ¬P)", "(Q ∨ ¬Q)")
"""Texts that answer no item, unless they are its own answer."""
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
"""Digits that a rounded value needs to be taken for the exact one, unless the question says how many."""
_LONGEST_NUMBER = 400
_EXACT = Context(prec=2 * _LONGEST_NUMBER, traps=[InvalidOperation, DivisionByZero, Overflow])
"""Some of the package's tasks lower the precision of the whole process."""


def guarded(score: Scorer, answer: str, entry: dict[str, Any]) -> float:
    """The score of an answer to an item, by the rules at the top of this file.

    Args:
        score: what the package pays for a text on this item.
        answer: any text.
        entry: the item as the package made it.

    Returns:
        In [0, 1].
    """
    gold = None if entry.get("answer") is None else str(entry["answer"])
    plain = unwrapped(answer)
    question = str(entry.get("question", ""))
    if gold is not None and (
        _is_same(answer, gold, question)
        or _is_same(plain, gold, question)
        # A sentence ends in a full stop that `unwrapped` takes for that of the sentence around it.
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
    """Whether an answer is the item's own: the same text but for white space, the same word, or the same number."""
    if not gold.strip():
        return _EMPTY.fullmatch(answer) is not None
    if _lines(answer) == _lines(gold):
        return True
    if gold.casefold() in ("true", "false", "yes", "no"):
        return answer.casefold().strip(" .") == gold.casefold()
    if not _NUMBER.fullmatch(gold) or len(answer) > _LONGEST_NUMBER or "\n" in answer.strip():
        return False
    a, b = read_number(answer), read_number(gold)
    # A unit is one if the question speaks of it: "6 legs", but not "6 Saturday".
    units = set(re.findall(r"[a-z]{2,}", answer.casefold())) - set(re.findall(r"[a-z]{2,}", question.casefold()))
    return a is not None and b is not None and a.value == b.value and not units


def _lines(text: str) -> list[list[str]]:
    """The words of each line that is not empty: a column of numbers is not a row of them."""
    return [words for line in text.splitlines() if (words := line.split())]


def _is_rounding(answer: str, gold: str, question: str) -> bool:
    """Whether a number is the item's own rounded, or a fraction that rounds to it, where the question allows for it."""
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
    """Whether an answer has words that hedge or deny, or no numbers where numbers stand, more often than the item's own."""
    return any(
        Counter(match.lower() for match in pattern.findall(answer))
        - Counter(match.lower() for match in pattern.findall(gold))
        for pattern in (_NOT_FINITE, _DOUBT)
    )


def _may_be_paid(score: Scorer, answer: str, gold: str, entry: dict[str, Any], paid: float) -> bool:
    """Whether an answer that is not the item's own may be another right one, or partly right: rules 2 to 5."""
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
    """Whether an answer uses the given numbers and has the value of the item's own, if that is an expression over them."""
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


def _floor(score: Scorer, gold: str | None) -> float:
    """The most that a constant earns on this item; its own answer with every digit 0 is one too."""
    texts = [*CONSTANTS, re.sub(r"[0-9]", "0", gold)] if gold else list(CONSTANTS)
    return max(score(text) for text in texts if gold is None or not _is_same(text, gold))


def _near(gold: str) -> list[str]:
    """The item's own answer with the last digit of its last number changed, and with one digit more."""
    numbers = list(_MANTISSA.finditer(gold))
    if not numbers:
        return []
    end = numbers[-1].end()
    changed = f"{gold[: end - 1]}{(int(gold[end - 1]) + 1) % 10}{gold[end:]}"
    return [changed, f"{gold[:end]}1{gold[end:]}"] if "." in numbers[-1].group() else [changed]


def _numbers(text: str) -> list[Decimal | None]:
    return [_decimal(number) for number in _NUMBER.findall(text)]


def _decimal(text: str) -> Decimal | None:
    """A decimal number or a fraction as a value, or None."""
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
