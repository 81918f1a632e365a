"""Whether a mathematical answer is the right one, as far as that can be seen without algebra.

Numbers are compared as numbers, words as words, numbers in a base by their digits, and everything else by its LaTeX without
what is only spacing. What is left, an expression that is not written alike, is for math-verify (`unmask.tasks.verifier`).
"""

from __future__ import annotations

import re

from unmask.tasks.answers import unwrapped
from unmask.tasks.numerals import read_number

LONGEST = 1000
"""Characters of an answer that is looked at. The longest of MATH has 159."""

_DROPPED = re.compile(
    r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\displaystyle|\\[!,;: ]|\\quad|\\qquad|\\(?=[$%])|[$~\s]|(?<=\S)\.$"
)
_REPLACED = (
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\mbox", "\\text"),
    ("\\textbf", "\\text"),
    ("^{\\circ}", "^\\circ"),
)
_WORDS = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm|mathbf)\s?\{\s*([^{}\\0-9]+)\}")
_PLAIN_SIGNS = (
    (re.compile(r"√ ?(?:\(([^()]*)\)|([0-9]+|[a-zA-Z]))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\*\* ?(?:\(([^()]*)\)|(-?\w+))"), r"^{\1\2}"),
    (re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])"), r"\\pi "),
)
_CHOICE = re.compile(r"\(?([A-Za-z])\)?")
_BASED = re.compile(r"([0-9A-F]+)_\{?([0-9]+)\}?")


def same_answer(answer: str, gold: str) -> bool | None:
    """Whether an answer is the gold one: True, False, or None where only algebra can tell.

    A gold number wants a number, so a sum that has not been worked out ("9 + 9" for 18) is wrong.

    Args:
        answer: any text.
        gold: the right answer, as LaTeX.

    Returns:
        The verdict.

    Example:
        >>> same_answer("1,000.0", "1000"), same_answer("500 + 500", "1000"), same_answer(r"\\sqrt{8}", r"2\\sqrt{2}")
        (True, False, None)
        >>> same_answer("(B)", r"\\text{B}"), same_answer("2516_7", "2516_8"), same_answer("2516", "2516_8")
        (True, False, True)
    """
    if len(answer) > LONGEST or not answer.strip():
        return False
    answer, gold = unwrapped(answer), unwrapped(gold)
    if (number := read_number(gold)) is not None:
        given = read_number(answer)
        return given is not None and given.equals(number)
    if (words := _words(gold)) is not None:
        return _words(answer) == words or _bare(answer) == words
    if _spelling(answer) == _spelling(gold):
        return True
    if (based := _BASED.fullmatch(_spelling(gold))) is not None:
        given_based = _BASED.fullmatch(_spelling(answer))
        return given_based.groups() == based.groups() if given_based else _spelling(answer) == based[1]
    return None


def as_latex(text: str) -> str:
    """An answer's plain signs as LaTeX: roots, powers by two stars, pi by name. For algebra alone, which reads nothing else.

    Example:
        >>> as_latex("2√3 + √(x+1)"), as_latex("x**12 - pi/2")
        ('2\\\\sqrt{3} + \\\\sqrt{x+1}', 'x^{12} - \\\\pi /2')
    """
    for plain, latex in _PLAIN_SIGNS:
        text = plain.sub(latex, text)
    return text


def _spelling(text: str) -> str:
    """The LaTeX without what makes no difference."""
    for written, plain in _REPLACED:
        text = text.replace(written, plain)
    return _DROPPED.sub("", text.strip())


def _words(text: str) -> str | None:
    """What an answer of words says, without case, spacing and the brackets of a choice; None if it is not only words."""
    match = _WORDS.fullmatch(text)
    return _bare(match[1]) if match else None


def _bare(text: str) -> str:
    text = " ".join(text.strip().rstrip(".").split()).casefold()
    choice = _CHOICE.fullmatch(text)
    return choice[1] if choice else text
