"""Numbers as people and models write them, in plain text, words or LaTeX.

A number may have a sign, separated thousands, decimals, a fraction, a currency, a unit or a percent
sign. Released graders compare such answers as strings, so "1,000", "$1000" and "1000.0" are
different answers for them. Here, all three have the same exact value. A guess between two numbers,
a bound, a list or an unevaluated sum is not a number. `unmask.rewards.grading.quantities` defines
which words may stand beside a number; docs/answers.md measures the effect of the rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from unmask.rewards.grading.number_words import read_words
from unmask.rewards.grading.quantities import read_introduction, read_unit
from unmask.rewards.grading.styles import without_styles
from unmask.rewards.grading.wrapping import unwrapped

LONGEST = 200
"""Maximum length of a text in characters. The limit bounds the time."""

_WRAPPERS = re.compile(
    r"\\(?:text|textrm|textnormal|textsf|texttt|mbox|hbox|mathrm|operatorname|textbf|mathbf|bf|textit|mathit|emph|underline|"
    r"boldsymbol|bm|mathsf|mathtt|boxed|ensuremath)\s?\{([^{}]{0,80})\}"
)
_DEGREES = re.compile(r"\s?\^\s?\{?\s?(?:\\(?:text|mathrm|textrm)\{\s?o\s?\}|o)\s?\}?(?![A-Za-z0-9])")
_BOLD = re.compile(r"\*\*([^*]{1,80})\*\*")
_NO_SPACE = re.compile(r"\\[!,]\s*|(?<=[0-9])[\u2009\u202f](?=[0-9]{3})")
_SPACE = re.compile(r"(?:\\[;: ]|\\quad|\\qquad|(?<=\S)~|[\s\u200b])+")
_REPLACED = (
    *(("\\div", "/"), ("÷", "/"), ("{~", "{")),
    *(("\\$", "$"), ("\\%", "%"), ("\\#", "#"), ("{,}", ","), ("^{\\circ}", "°"), ("^\\circ", "°"), ("\\circ", "°")),
    *(("\\degree", "°"), ("\\pounds", "£"), ("\\euro", "€"), ("\\cents", "¢"), ("\\yen", "¥"), ("º", "°")),
    *((sign, "-") for sign in "−–‐‑‒—﹣－"),
    *(("½", " 1/2"), ("¼", " 1/4"), ("¾", " 3/4"), ("⅓", " 1/3"), ("⅔", " 2/3"), ("％", "%"), ("，", ",")),
    *((chr(0xFF10 + digit), str(digit)) for digit in range(10)),
)
_SPACED_GROUPS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9,])")
"""Groups of three digits with spaces between them."""
_BRACKETED = re.compile(r"""\([^(),]*\)|\[[^][,]*\]|\{[^{}]*\}|"[^"]*"|'[^']*'""")
"""A number in brackets or quotes; `(1, 2)` and `{1}{2}` are more than one number."""
_CLOCK = re.compile(r"([0-9]{1,2}):00(?=\ ?[ap]\.?\ ?m\b)", re.IGNORECASE)
_ALTERNATIVES = re.compile(r"\s*,?\s+or\s+", re.IGNORECASE)

_ASIDE = re.compile(r"(?=.*[A-Za-z])(.*\S)\s+\(([^()]{1,40})\)")
"""A number that is given twice: five (5)."""

_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+"
_DECIMAL = rf"(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)"
_MAGNITUDE = re.compile(
    rf"""
    (?:(?P<whole>{_INTEGER})(?:\ ?(?=\\frac)|\ (?:and\ )?(?=[0-9]+\ ?/)))?    # of a mixed number: 1 1/2
    (?: \\frac\ ?\{{\ ?(?P<top>-?{_DECIMAL})\ ?\}}\ ?\{{\ ?(?P<bottom>-?{_DECIMAL})\ ?\}}
      | \\frac\ ?(?P<top_digit>[0-9])\ ?(?:\{{(?P<bottom_braced>[0-9]+)\}}|(?P<bottom_digit>[0-9]))
      | \\frac\ ?\{{(?P<top_braced>-?[0-9]+)\}}\ ?(?P<bottom_bare>[0-9])
      | (?P<fixed>[0-9]*)\.(?P<before>[0-9]*)\\(?:overline|bar)\ ?\{{?(?P<period>[0-9]{{1,9}})\}}?
      | (?P<numerator>{_DECIMAL})(?:\ ?/\ ?(?P<denominator>{_INTEGER})
        | \ ?(?:\\times|\\cdot|×|·|\*|x)\ ?10\ ?\^\ ?(?:\{{\ ?(?P<power>[-+]?[0-9]{{1,2}})\ ?\}}|(?P<power_bare>[0-9]))
        | [eE](?P<exponent>[-+]?[0-9]{{1,2}})
        | (?P<half>\ and\ (?:a|one|1)\ half)
        )?
    )
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number that was read from a text."""

    value: Fraction
    """Exact value. A percent sign does not change it: the value of "50%" is 50."""
    is_percent: bool = False

    def equals(self, other: Numeral) -> bool:
        """Return True if two answers are the same number.

        A percent sign counts as a unit. In addition, 50% equals 0.5 and 150% equals 1.5, but 300%
        does not equal 3.

        Example:
            >>> fifty, half = read_number("50%"), read_number("0.5")
            >>> fifty.equals(read_number("50")), fifty.equals(half), read_number("5000%").equals(read_number("50"))
            (True, True, False)
        """
        if self.value == other.value:
            return True
        share = self._share()
        is_share = abs(share) <= 1 or share.denominator != 1
        return self.is_percent != other.is_percent and share == other._share() and is_share

    def _share(self) -> Fraction:
        return self.value / 100 if self.is_percent else self.value


def read_number(text: str, in_prose: bool = False) -> Numeral | None:
    """Return the number that a whole text expresses, or None if it is not a single number.

    Args:
        text: answer, any text; a text of more than 200 characters is not read.
        in_prose: True to read the text as an answer to a word problem: "twelve" is a number, 5m
            means metres, and 5K is 5000. Otherwise these are words and products of variables.

    Returns:
        The number without its currency and unit, which are assumed to be correct.

    Example:
        >>> [str(read_number(t).value) for t in ("$1,000", "3.0", r"-\\frac{6}{4}", "1 1/2 cups", "2 million", "x = 7")]
        ['1000', '3', '-3/2', '3/2', '2000000', '7']
        >>> [str(read_number(t).value) for t in ("The answer is 18.", "= 18", "(18)", r"3 \\times 10^{2}", "5 dozen eggs")]
        ['18', '18', '18', '300', '60']
        >>> [read_number(t) for t in ("17 or 18", "9 + 9", "1,00", "two", "18 19", "1/0", "2x", "not 18", "18?", "at least 18")]
        [None, None, None, None, None, None, None, None, None, None]
        >>> str(read_number("twelve eggs", in_prose=True).value), str(read_number("12 or twelve", in_prose=True).value)
        ('12', '12')
    """
    if len(text) > LONGEST:
        return None
    plain = _plain(text)
    alternatives = _ALTERNATIVES.split(plain)
    if (aside := _ASIDE.fullmatch(plain)) is not None and _one(aside[2], in_prose) is not None:
        alternatives = [aside[1], aside[2]]
    if len(alternatives) == 1:
        return _one(plain, in_prose)
    read = [_one(alternative, in_prose) for alternative in alternatives]
    first = read[0]
    return first if first is not None and all(other is not None and other.equals(first) for other in read) else None


def _one(text: str, in_prose: bool) -> Numeral | None:
    """Return the number in a plain text without alternatives."""
    start = re.search(r"\\frac|\.?[0-9]", text)
    match = _MAGNITUDE.match(text, start.start()) if start else None
    if match is not None:
        value, end, begin = _magnitude(match), match.end(), match.start()
    elif in_prose and start is None:
        begin = next(
            (m.start() for m in re.finditer(r"(?<![a-z])[a-z]", text, re.IGNORECASE) if read_words(text[m.start() :])),
            -1,
        )
        found = read_words(text[begin:]) if begin >= 0 else None
        if found is None:
            return None
        value, end = found[0], begin + found[1]
    else:
        return None
    sign, unit = read_introduction(text[:begin]), read_unit(text[end:], in_prose)
    if value is None or sign is None or unit is None or (unit.is_clock and not 1 <= value <= 12):
        return None
    return Numeral(sign * value * unit.factor, unit.is_percent)


def _plain(text: str) -> str:
    """Return the text with LaTeX replaced by plain characters."""
    text = without_styles(unwrapped(text))
    for written, plain in _REPLACED:
        text = text.replace(written, plain)
    text = _DEGREES.sub("°", text)
    text = _BOLD.sub(r"\1", text)
    for _ in range(3):
        text = _WRAPPERS.sub(r" \1", text).strip()
        if _BRACKETED.fullmatch(text):
            text = text[1:-1].strip()
    text = _SPACE.sub(" ", _NO_SPACE.sub("", text)).strip(" ")
    text = re.sub(r"\A(-) ?", r"\1", text)
    text = _SPACED_GROUPS.sub(lambda match: match.group().replace(" ", ""), text)
    return _CLOCK.sub(r"\1", unwrapped(text))


def _magnitude(match: re.Match[str]) -> Fraction | None:
    """Return the absolute value, without sign and unit."""
    if match["period"]:
        places = int(10 ** len(match["before"]))
        repeating = Fraction(int(match["period"]), int(10 ** len(match["period"])) - 1)
        return _fraction(match["fixed"] or "0") + (int(match["before"] or 0) + repeating) / places
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
    power = int(match["power"] or match["power_bare"] or match["exponent"] or 0)
    whole = _fraction(match["whole"] or "0") + (Fraction(1, 2) if match["half"] else 0)
    scale = Fraction("1e" + str(abs(power)))
    value: Fraction = whole + numerator / denominator * (scale if power >= 0 else 1 / scale)
    return value


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
