r"""An arithmetic expression as people and models write it, in plain characters: `(3+5)×2`, `\frac{a}{b}`, `12 ÷ 6`, `2(3+5)`.

Only the notation changes here. Whether the result is an expression, and which value it has, is for `expressions.evaluate` to say.
"""

from __future__ import annotations

import re

from unmask.tasks.wrapping import unwrapped

LONGEST = 1000
"""Characters of an answer that is looked at; bounds the time."""

_SYMBOLS = str.maketrans(
    {
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},  # full-width forms
        **dict.fromkeys("×✕✖⨯⋅·•∙∗＊⨉", "*"),
        **dict.fromkeys("÷∕⁄➗", "/"),
        **dict.fromkeys("−–—﹣‐‑➖", "-"),
        **dict.fromkeys("➕﹢", "+"),
        **dict.fromkeys("\u00a0\u2009\u202f\u3000\t\r", " "),
        **dict.fromkeys("\u200b\u2061\ufe0f", ""),
    }
)
_COMMANDS = (
    (re.compile(r"\\{1,2}(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])"), ""),
    (re.compile(r"\\{1,2}(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\{1,2}div(?![A-Za-z])"), "/"),
    (re.compile(r"\\{1,2}(?:text|mathrm|mathbf|mathit|operatorname)\s?(?=\{)"), ""),
    (re.compile(r"\\[{]"), "("),
    (re.compile(r"\\[}]"), ")"),
    (re.compile(r"\\(?:[,;:! ]|quad|qquad|\\)"), " "),
    (re.compile(r"\\[()\[\]]|\$|`|<br ?/?>"), " "),
)
_FRACTION = re.compile(r"\\{1,2}[dtc]?frac\s?\{([^{}]{1,200})\}\s?\{([^{}]{1,200})\}")
_SHORT_FRACTION = re.compile(r"\\{1,2}[dtc]?frac\s?([0-9])\s?([0-9])(?![0-9])")
_MIXED = re.compile(r"[0-9)]\s?\\{1,2}[dtc]?frac")
_BRACKETS = str.maketrans("[]{}", "()()")
_RESULT_IN_BRACKETS = re.compile(r"\(\s*=\s*([^()]{1,40})\)")
ANNOUNCED = re.compile(
    r"\s*(?:so,?\s|thus,?\s)?(?:the\s|a\s|my\s)?(?:final\s|correct\s|right\s)?(?:expression|equation|calculation|formula)"
    r"(?:\sis\b|\s?:)\s?:?\s*",
    re.IGNORECASE,
)
"""What announces an expression: "The expression is"."""
_TIMES = re.compile(r"(?<=[0-9)])(\s*)[xX](?=\s*[(0-9+-])")
_RATIO = re.compile(r"(?<=[0-9)])\s*:(?=\s*[(0-9])")
_PRODUCT = re.compile(r"(?<=[0-9)])\s*(?=\()|(?<=\))\s*(?=[0-9])")
_UNARY_PLUS = re.compile(r"(?:^|(?<=[-+*/(=]))(\s*)\+(?=\s*[(0-9])")
_WHOLE = re.compile(r"(?<![0-9.])([0-9]+)\.0+(?![0-9])")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")


def symbols(text: str) -> str:
    r"""A text with its signs, brackets and LaTeX in ASCII, and without what surrounds an answer. Line breaks stay; a text
    of more than 1,000 characters gives nothing.

    Example:
        >>> symbols("$7, −2$"), symbols(r"\[ \frac{3}{4} \times [5 \div 2] \]"), symbols("The expression is `3 × 4`.")
        ('7, -2', '((3)/(4)) * (5 / 2)', '3 * 4')
    """
    if len(text) > LONGEST:
        return ""
    text = unwrapped(text).translate(_SYMBOLS)
    if _MIXED.search(text):  # 2\frac{1}{2} may be a product or a mixed number
        return text
    for _ in range(4):
        text = _FRACTION.sub(r"((\1)/(\2))", _SHORT_FRACTION.sub(r"(\1/\2)", text))
    for command, plain in _COMMANDS:
        text = command.sub(plain, text)
    text = text.translate(_BRACKETS)
    announced = ANNOUNCED.match(text)
    return text[announced.end() if announced else 0 :].strip()


def plain_expression(text: str) -> str:
    r"""An expression with every product and quotient written out, and with whole numbers as integers.

    Example:
        >>> [plain_expression(text) for text in ("2(3+5)", "(3+5) x 2", "12:6:2", "(3.0+05)*2", "(3+5)*2 (=16)")]
        ['2*(3+5)', '(3+5) * 2', '12/6/2', '(3+5)*2', '(3+5)*2 = 16']
    """
    text = _RESULT_IN_BRACKETS.sub(r"= \1", symbols(text))
    text = _UNARY_PLUS.sub(r"\1", _RATIO.sub("/", _TIMES.sub(r"\1*", text)))
    return _LEADING_ZEROS.sub("", _WHOLE.sub(r"\1", _PRODUCT.sub("*", text)))
