"""A number as people and models write it: signs, thousands, decimals, fractions, currency, units, percent, plain or in LaTeX.

Released graders compare such answers as strings, so that "1,000", "$1000" and "1000.0" are three answers. Here they are one exact
value. What is not one number, but a sentence, a list, a sum to be worked out or a guess between two, is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from unmask.tasks.answers import unwrapped

LONGEST = 200
"""Characters that are looked at; bounds the time."""

_WRAPPERS = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textit)\s?\{([^{}]{0,80})\}")
_NO_SPACE = re.compile(r"\\[!,]\s*")
_SPACE = re.compile(r"(?:\\[;: ]|\\quad|[~\s\u200b])+")
_REPLACED = (
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\$", "$"),
    ("\\%", "%"),
    ("{,}", ","),
    ("^{\\circ}", "°"),
    ("^\\circ", "°"),
    ("\\pounds", "£"),
    ("−", "-"),
    ("–", "-"),
    ("½", " 1/2"),
    ("¼", " 1/4"),
    ("¾", " 3/4"),
)

_BRACKETED = re.compile(r"""\([^(),]*\)|\{[^{}]*\}|"[^"]*"|'[^']*'""")
"""A number set apart; `(1, 2)` and `{1}{2}` are more than one."""

_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+"
_DECIMAL = rf"(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"""
    (?:[A-Za-z]\w{{0,15}}\ ?=\ ?)?                                          # a name: x = 5
    (?:=\ ?)?
    (?P<sign>[+-]?)\ ?[$€£¥]?\ ?(?P<inner_sign>[+-]?)\ ?
    (?:(?P<whole>{_INTEGER})(?:\ ?(?=\\frac)|\ (?=[0-9]+\ ?/)))?             # of a mixed number: 1 1/2
    (?: \\frac\ ?\{{\ ?(?P<top>-?{_DECIMAL})\ ?\}}\ ?\{{\ ?(?P<bottom>-?{_DECIMAL})\ ?\}}
      | \\frac\ ?(?P<top_digit>[0-9])\ ?(?:\{{(?P<bottom_braced>[0-9]+)\}}|(?P<bottom_digit>[0-9]))
      | \\frac\ ?\{{(?P<top_braced>-?[0-9]+)\}}\ ?(?P<bottom_bare>[0-9])
      | (?P<numerator>{_DECIMAL})(?:\ ?/\ ?(?P<denominator>{_INTEGER})
        | \ ?(?:\\times|\\cdot|×|\*|x)\ ?10\ ?\^\ ?(?:\{{\ ?(?P<power>-?[0-9]{{1,2}})\ ?\}}|(?P<power_bare>[0-9]))
        )?
    )
    (?P<unit>\ ?°|[^0-9]*(?:[A-Za-z](?:\^\{{?[23]\}}?|[²³]))?)
    """,
    re.VERBOSE,
)
_UNIT = re.compile(
    r"""
    (?:\ ?(?:%|percent|per\ cent|°|[$€£¥¢]))?                               # a sign of its own
    (?:km|cm|mm|kg|mg|ml|mL|ft|lb|lbs|oz|mph)?                              # an abbreviation set close
    (?:[\ /-](?:[A-Za-z][A-Za-z.']+|[mgshlL]\b|a\b))*                     # words
    (?:(?<=[A-Za-z])(?:\^\{?[23]\}?|[²³]))?
    \ ?
    """,
    re.VERBOSE,
)
_PERCENT = re.compile(r"%|\bper ?cent\b", re.IGNORECASE)
_MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|no|minus|plus|times|half|halves|thirds?|quarters?|point|over|squared|cubed|is|to|than|about|more|less|"
    r"fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twelfths?|hundredths?|thousandths?|below|zero|if|except|but|"
    r"pi|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|mod|base)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number that has been read."""

    value: Fraction
    """Exact, as written before any percent sign: 50 for "50%"."""
    is_percent: bool = False

    def equals(self, other: Numeral) -> bool:
        """Whether two answers are one number. A percent sign counts as a unit; and 50% is 0.5, as a share below 1.

        Example:
            >>> fifty, half = read_number("50%"), read_number("0.5")
            >>> fifty.equals(read_number("50")), fifty.equals(half), read_number("5000%").equals(read_number("50"))
            (True, True, False)
        """
        if self.value == other.value:
            return True
        share = self._share()
        return self.is_percent != other.is_percent and share == other._share() and abs(share) < 1

    def _share(self) -> Fraction:
        return self.value / 100 if self.is_percent else self.value


def read_number(text: str) -> Numeral | None:
    """The one number that a text is, or None if it is something else.

    Args:
        text: an answer, any text; up to 200 characters are looked at.

    Returns:
        The number, without its currency and unit, which are taken as read.

    Example:
        >>> [str(read_number(t).value) for t in ("$1,000", "3.0", r"-\\frac{6}{4}", "1 1/2 cups", "2 million", "x = 7")]
        ['1000', '3', '-3/2', '3/2', '2000000', '7']
        >>> [str(read_number(t).value) for t in ("The answer is 18.", "= 18", "(18)", r"3 \\times 10^{2}")]
        ['18', '18', '18', '300']
        >>> [read_number(t) for t in ("17 or 18", "9 + 9", "1,00", "two", "18 19", "1/0", "2x", "not 18")]
        [None, None, None, None, None, None, None, None]
    """
    if len(text) > LONGEST:
        return None
    match = _NUMBER.fullmatch(_plain(text))
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    unit = match["unit"]
    if not _UNIT.fullmatch(unit) or _NO_UNIT.search(unit):
        return None
    value = _magnitude(match)
    if value is None:
        return None
    for word in unit.lower().split()[:1]:
        value *= _MULTIPLES.get(word, 1)
    is_negative = "-" in (match["sign"], match["inner_sign"])
    return Numeral(-value if is_negative else value, bool(_PERCENT.search(unit)))


def _plain(text: str) -> str:
    """The text with LaTeX's ways of writing plain things undone."""
    text = unwrapped(text)
    if _BRACKETED.fullmatch(text):
        text = text[1:-1]
    for written, plain in _REPLACED:
        text = text.replace(written, plain)
    text = _WRAPPERS.sub(r" \1", text)
    return _SPACE.sub(" ", _NO_SPACE.sub("", text)).strip()


def _magnitude(match: re.Match[str]) -> Fraction | None:
    """The value without sign and unit."""
    top = match["top"] or match["top_digit"] or match["top_braced"] or match["numerator"]
    bottom = (
        match["bottom"]
        or match["bottom_braced"]
        or match["bottom_digit"]
        or match["bottom_bare"]
        or match["denominator"]
    )
    numerator, denominator = _fraction(top), _fraction(bottom or "1")
    if not denominator:
        return None
    power = int(match["power"] or match["power_bare"] or 0)
    whole = _fraction(match["whole"] or "0")
    return whole + numerator / denominator * Fraction(10) ** power


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
