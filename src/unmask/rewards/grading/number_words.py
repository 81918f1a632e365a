"""Numbers in English words: "twelve", "one thousand two hundred", "two and a half"."""

from __future__ import annotations

import re
from fractions import Fraction

_NAMES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety
"""
_SMALL = {name: value for value, name in enumerate(_NAMES.split()[:20])}
_TENS = {name: 10 * value for value, name in enumerate(_NAMES.split()[20:], start=2)}
SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
"""Words that multiply the number before them."""
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
NUMBER_WORDS = frozenset(
    {
        *_SMALL,
        *_TENS,
        *SCALES,
        *(f"{word}s" for word in [*_SMALL, *_TENS, *SCALES]),
        "zeroes",
        "sixes",
        "twenties",
        "fifties",
    }
)
"""Every word that is a number or part of one, and its plural."""
_MORE_PARTS = (
    "halves seventh sevenths ninth ninths twelfth twelfths hundredth hundredths thousandth thousandths millionths"
)
PART_WORDS = frozenset({*_PARTS, *(f"{word}s" for word in _PARTS), *_MORE_PARTS.split()} - {"quarters"})
"""Words of fractions. "Quarters" is not among them, because it means coins in most answers."""

_WORD = re.compile(r"[a-z]+")


def read_words(text: str) -> tuple[Fraction, int] | None:
    """Return the number in words at the start of a text.

    Args:
        text: any text.

    Returns:
        The number and its length in characters; None if the text does not begin with a number.

    Example:
        >>> [str(read_words(text)[0]) for text in ("twelve eggs", "One thousand two hundred", "forty-two", "two and a half")]
        ['12', '1200', '42', '5/2']
        >>> read_words("one-half"), read_words("half"), read_words("a dozen")
        ((Fraction(1, 2), 8), None, None)
    """
    words = [(match.group(), match.end()) for match in _WORD.finditer(text[:200].lower())]
    if not words or not text[: len(words[0][0])].isalpha() or words[0][0] not in _SMALL | _TENS:
        return None
    total, group, used = 0, 0, 0
    previous = ""
    for place, (word, _) in enumerate(words):
        following = words[place + 1][0] if place + 1 < len(words) else ""
        if word in _SMALL and previous not in _SMALL and not (previous in _TENS and not 0 < _SMALL[word] < 10):
            group += _SMALL[word]
        elif word in _TENS and previous not in _SMALL | _TENS:
            group += _TENS[word]
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in SCALES and group:
            total, group = total + group * SCALES[word], 0
        elif not (word == "and" and previous in SCALES and following in _SMALL | _TENS):
            break
        previous, used = word, place + 1
    value, rest = Fraction(total + group), [word for word, _ in words[used : used + 3]]
    if rest and (part := _PARTS.get(rest[0], _PARTS.get(rest[0].removesuffix("s")))):
        return value / part, words[used][1]
    if rest in (["and", "a", "half"], ["and", "one", "half"]):
        return value + Fraction(1, 2), words[used + 2][1]
    return value, words[used - 1][1]
