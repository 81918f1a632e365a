"""Comparison of a mathematical answer with the gold answer, as far as possible without algebra.

Numbers are compared as numbers, words as words, numbers in a base by their digits, points and
intervals part by part with their brackets, and everything else as LaTeX in a uniform spelling.
Expressions that are still spelled differently are left to math-verify
(`unmask.rewards.grading.verifier`). This module also has rules that math-verify lacks: the name in
an answer such as x = 5 must be that of the gold answer, all sides of an equation must be correct,
and words of doubt make an answer wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from unmask.rewards.grading.latex_forms import exact_latex, plain_latex, spelling
from unmask.rewards.grading.latex_lists import Listing, as_intervals, listing, split_top
from unmask.rewards.grading.numerals import read_number
from unmask.rewards.grading.quantities import are_harmless, read_unit
from unmask.rewards.grading.worded import is_worded, same_words
from unmask.rewards.grading.wrapping import unwrapped

LONGEST = 1000
"""Maximum length of an answer in characters. The longest gold answer in the data set MATH has 159
characters."""

Pairs = list[tuple[str, str]]
"""Comparisons that need algebra, as pairs of gold and answer. All of them must hold."""

_BASED = re.compile(
    r"\(?([0-9A-F]+)\)?_\{?\(?(?:\\text\{)?([0-9a-z]+)\}?\)?\}?|([0-9A-F]+)(?:\\text\{)?base\}?([0-9]+)"
)
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_\{?\w{1,4}\}?)?'?(?:\([A-Za-z0-9, ]{1,9}\))?|\|?[A-Z]{2,3}\|?|\\overline\{?[A-Z]{2}\}?"
    r"|\([A-Za-z](?:, ?[A-Za-z]){1,5}\)"
)
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|theta|phi|lambda|mu|angle ?[A-Z]{1,3})")
_VALUES = frozenset({"\\pi", "e", "i", "\\infty"})
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_CONDITION = re.compile(
    r"(?:,|\\text\{,? ?(?:where|for|with|if) ?\}|\bwhere\b|\bfor\b)\s*[a-z]\s*\\ne\s*[-0-9a-z,\\ ]+$"
)
_APPROXIMATION = re.compile(r"(?<=\S)\s*(?:\\approx|≈)\s*(-?[0-9.]+)$")
"""A rounded value after the exact one."""
_ANGLE_UNIT = re.compile(r"\^\s?\{?\s?\\circ|°|\\degree|\b(?:degrees?|deg)\b")
_RADIANS = re.compile(r"\b(?:radians?|rad)\b")
_MEMBER_NAME = re.compile(r"([A-Za-z])\s*\\in(?![A-Za-z])")
_LABEL = re.compile(r"(?:\\text\{([^{}]{1,40})\}|([A-Za-z][A-Za-z ]{0,30}))\s*:?\s*(?=[(\[])")
"""The name of a point or interval: "Vertex: (1,2)", "A(1,2)"."""
_TIME = re.compile(r"[0-9]{1,2}\s*:\s*[0-9]{2}")
_TIME_OF_DAY = re.compile(r"(?:\\text\{)?\s*[ap]\.?\s?m\.?\s*\}?$", re.IGNORECASE)
_SENTENCE = re.compile(r"(?:\\text\{\s*)?((?:[A-Za-z]{1,15}\s+){1,8})(?:is|are|equals)\b\s*:?\s*\}?\s*(?=\S)")
"""Words before an expression: "The length is"."""
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]{0,20}\}|\w)|\{[a-z]*matrix\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])|(?<![\\A-Za-z])[A-Za-z]{2,4}(?![A-Za-z{(])")


def same_answer(answer: str, gold: str) -> bool | None:
    """Return True if an answer equals the gold one, False if not, None if only algebra can decide.

    A gold number requires a number, so an unevaluated sum ("9 + 9" for 18) is wrong.

    Args:
        answer: any text.
        gold: correct answer, as LaTeX.

    Returns:
        The verdict.

    Example:
        >>> same_answer("1,000.0", "1000"), same_answer("500 + 500", "1000"), same_answer(r"\\sqrt{8}", r"2\\sqrt{2}")
        (True, False, None)
        >>> same_answer("(B)", r"\\text{B}"), same_answer("2516_7", "2516_8"), same_answer("2516", "2516_8")
        (True, False, True)
    """
    result = comparisons(answer, gold)
    return result if isinstance(result, bool) else None


def comparisons(answer: str, gold: str) -> bool | Pairs:
    """Return the verdict on an answer, or the comparisons that algebra must decide.

    Args:
        answer: any text.
        gold: correct answer, as LaTeX.

    Returns:
        The verdict, or the pairs of gold expression and answer expression that must all be equal;
        never an empty list.

    Example:
        >>> comparisons("(1, 1+1)", "(1,2)"), comparisons("[1,2]", "(1,2)"), comparisons("77 = \\\\sqrt{51}", "\\\\sqrt{51}")
        (False, False, [('\\\\sqrt{51}', '77')])
        >>> comparisons("y=5", "x=5"), comparisons("x=5", "x=5"), comparisons("5", "x=5")
        (False, True, True)
    """
    if len(answer) > LONGEST or not answer.strip():
        return False
    if answer.strip() == gold.strip():
        return True
    if _is_other_angle(answer, gold):
        return False
    answer, gold = _without_rounded(unwrapped(answer)), unwrapped(gold)
    if gold.isalpha():
        answer = _TEXT.sub(r"\1", answer).strip()
    if _TIME.fullmatch(gold):
        answer = plain_latex(answer)
        sides = _sides(answer)
        answer = _TIME_OF_DAY.sub("", sides[1] if len(sides) == 2 and _is_name(sides[0]) else answer)
        return spelling(answer) == spelling(gold)
    if (number := read_number(gold)) is not None and "=" not in gold:
        sides = _sides(answer)
        answer_number = read_number(sides[1] if len(sides) == 2 and _is_quantity(plain_latex(sides[0]), "") else answer)
        return answer_number is not None and answer_number.equals(number)
    if spelling(answer) == spelling(gold):
        return True
    if is_worded(gold):
        return same_words(answer, gold)
    if (gold_digits := _digits_and_base(gold)) is not None:
        sides = _sides(answer)
        answer = sides[1] if len(sides) == 2 and _is_name(sides[0]) else answer
        answer_digits = _digits_and_base(answer)
        return answer_digits == gold_digits if answer_digits else spelling(answer) == gold_digits[0]
    return _by_parts(_without_remarks(plain_latex(answer), gold), _without_remarks(plain_latex(gold), gold))


def _is_other_angle(answer: str, gold: str) -> bool:
    """Return True if one of two angles is in degrees and the other in radians."""
    in_degrees = bool(_ANGLE_UNIT.search(gold))
    is_in_degrees, is_in_radians = bool(_ANGLE_UNIT.search(answer)), bool(_RADIANS.search(answer))
    return (in_degrees and is_in_radians) or ("\\pi" in gold and not in_degrees and is_in_degrees)


def _without_rounded(answer: str) -> str:
    """Return an answer without the rounded value after it, unless two plain numbers differ."""
    match = _APPROXIMATION.search(answer)
    if match is None:
        return answer
    exact, rounded = read_number(answer[: match.start()]), read_number(match[1])
    is_close = exact is None or rounded is None or abs(exact.value - rounded.value) * 20 <= abs(exact.value)
    return answer[: match.start()] if is_close else answer


def _by_parts(answer: str | None, gold: str | None) -> bool | Pairs:
    """Compare two expressions: first their names, then lists part by part, then the whole."""
    if answer is None or gold is None:
        return False
    answer = _without_names(answer, gold)
    answer_sides, gold_sides = _sides(answer), _sides(gold)
    if len(gold_sides) == 2 and _is_name(gold_sides[0]):
        name, value = gold_sides
        if _is_name(answer_sides[0]) and len(answer_sides) > 1:
            if not _may_be(answer_sides[0], name):
                return False
            answer_sides = answer_sides[1:]
        elif len(answer_sides) > 1:
            return [_pair(gold, answer)]
        return _all(comparisons(side, value) for side in answer_sides)
    if len(gold_sides) == 1 and len(answer_sides) > 1:
        if _is_quantity(answer_sides[0], gold):
            answer_sides = answer_sides[1:]
        return _all(comparisons(side, gold) for side in answer_sides)
    gold_list = listing(gold)
    if (member := _MEMBER_NAME.match(answer)) and gold[0].isalpha() and member[1] != gold[0]:
        return False
    if "\\in" in gold and (interval := as_intervals(gold)) != gold:
        gold, gold_list = interval, listing(interval)
    if "\\cup" in gold or (gold_list and gold_list.brackets not in ("", "{}")):
        label = _LABEL.match(answer)
        answer = as_intervals(answer[label.end() :] if label and are_harmless(_WORD.findall(label.group())) else answer)
    if gold_list is not None and (answer_list := listing(answer)) is not None:
        return _lists(answer_list, gold_list, _pair(gold, answer))
    if "\\begin" in gold and answer.startswith("[["):
        answer = _as_matrix(answer)
    return True if spelling(answer) == spelling(gold) else [_pair(gold, answer)]


def _lists(answer: Listing, gold: Listing, whole: tuple[str, str]) -> bool | Pairs:
    """Compare two lists with their brackets and in order, unless both are sets."""
    is_same_kind = answer.brackets == gold.brackets
    is_loose = (gold.brackets, answer.brackets) in {("()", ""), ("", "()")}
    if gold.brackets in ("", "{}") and answer.brackets in ("", "{}"):
        return [_pair(_as_set(gold), _as_set(answer))]
    if not (is_same_kind or is_loose) or len(answer.parts) != len(gold.parts):
        return False
    return _all(comparisons(a, g) for a, g in zip(answer.parts, gold.parts, strict=True))


def _as_set(parts: Listing) -> str:
    return "\\{" + ", ".join(parts.parts) + "\\}"


def _all(results: Iterable[bool | Pairs]) -> bool | Pairs:
    """Return the conjunction of several comparisons."""
    pairs: Pairs = []
    for result in results:
        if result is False:
            return False
        if result is not True:
            pairs += result
    return pairs or True


def _sides(text: str) -> list[str]:
    """Return the sides of an equation or chain of equations, or only the whole text."""
    return [side.strip() for side in split_top(text, "=")] if "=" in text else [text]


def _is_name(text: str) -> bool:
    return text not in _VALUES and bool(_NAME.fullmatch(text) or _GREEK.fullmatch(text))


def _is_quantity(text: str, gold: str) -> bool:
    """Return True if a side of an equation only names its value: x, f(2), \\text{proj}_b a."""
    if _is_name(text):
        return True
    letters = set(_LETTER.findall(_TEXT.sub(" ABC ", _SUBSCRIPT.sub("", text)))) - {"e", "i"}
    in_gold = set(_LETTER.findall(_TEXT.sub("", gold))) - {"e", "i"}
    return (
        bool(letters)
        and not in_gold
        and not re.search(r"[0-9]|\\(?:pi|infty|text\{[^{}]*(?:or|and)[ }])", _SUBSCRIPT.sub("", text))
    )


def _without_names(answer: str, gold: str) -> str:
    """Return the values of a list such as x = 3, x = 5 or a point such as x = 1, y = 2."""
    if "=" in gold:
        return answer
    sides = [_sides(part) for part in split_top(answer, ",;")]
    if len(sides) < 2 or not all(len(side) == 2 and _is_name(side[0].strip()) for side in sides):
        return answer
    names = {side[0].strip() for side in sides}
    is_point = (
        len(names) == len(sides) and gold.startswith("(") and [side[0].strip() for side in sides] == sorted(names)
    )
    values = ", ".join(side[1] for side in sides)
    return values if len(names) == 1 or is_point else answer


def _may_be(name: str, gold_name: str) -> bool:
    """Return True if the name in an answer fits the gold name; y fits any function of x."""
    name, gold_name = name.replace(" ", ""), gold_name.replace(" ", "")
    return (
        name == gold_name or (gold_name == "y" and name.endswith("(x)")) or (name == "y" and gold_name.endswith("(x)"))
    )


def _without_remarks(text: str, gold: str) -> str | None:
    """Return an expression without unit, introduction and condition; None if words beside it
    express doubt."""
    if not gold or ("?" in text and "?" not in gold):
        return None
    text = text.removeprefix("\\approx").strip()
    if "\\ne" not in gold:
        text = _CONDITION.sub("", text)
    texts = _TEXT.findall(text)
    known = set(_WORD.findall(gold))
    words = [word for word in _WORD.findall(re.sub(r"\\begin\{\w+\}|\\end\{\w+\}", "", text)) if word not in known]
    if not are_harmless([word for word in words if word.lower() not in ("and", "or")]):
        return None
    # "and" and "or" join the parts of a list.
    text = re.sub(r"\\text\{\s*,?\s*(?:and|or)?\s*,?\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", " , ", text)
    text = re.sub(r"(?:\s*,\s*)+", ", ", text)
    if (sentence := _SENTENCE.match(text)) is not None:
        text = text[sentence.end() :]
    if texts and "\\text" not in gold:
        leading = _TEXT.match(text)
        text = text[leading.end() :] if leading and unwrapped(leading[1] + " 0") == "0" else text
        trailing = re.search(r"\\text\{([^{}]*)\}(?:\^\{?[23]\}?)?$", text)
        if trailing and (unit := read_unit(" " + trailing[1].strip())) is not None and unit.factor == 1:
            text = text[: trailing.start()]
    return unwrapped(text)


def _pair(gold: str, answer: str) -> tuple[str, str]:
    """Return two expressions for algebra with some letters renamed, because math-verify confuses R
    with r."""
    gold, answer = exact_latex(gold), exact_latex(answer)
    letters = set("".join(_LETTER.findall(_TEXT.sub("", gold) + " " + _TEXT.sub("", answer))))
    free = [letter for letter in "uvwzkhgqsbcn" if letter not in letters and letter.upper() not in letters]
    for letter in sorted(letters):
        if letter.isupper() and letter.lower() in letters and free:
            stand_in = free.pop()
            gold, answer = (_LETTER.sub(lambda m: m.group().replace(letter, stand_in), side) for side in (gold, answer))  # noqa: B023
    return gold, answer


def _digits_and_base(text: str) -> tuple[str, str] | None:
    """Return the digits of a number and its base."""
    match = _BASED.fullmatch(re.sub(r"\s", "", plain_latex(text)))
    if match is None:
        return None
    base = match[2] or match[4]
    base = _BASES.get(base, base)
    return (match[1] or match[3], base) if base.isdigit() else None


def _as_matrix(text: str) -> str:
    """Return the LaTeX of a matrix that is written as a list of rows."""
    rows = re.findall(r"\[([^][]*)\]", text)
    return "\\begin{pmatrix}" + " \\\\ ".join(row.replace(",", " & ") for row in rows) + "\\end{pmatrix}"
