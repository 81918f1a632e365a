r"""Arithmetic as people and models write it, in plain ASCII: `\frac{a}{b}`, `12 ÷ 6`, `2(3+5)`.

Only the notation changes here. `expressions.evaluate` decides whether the result is an expression,
and computes its value.
"""

from __future__ import annotations

import html
import re

from unmask.rewards.grading.quantities import are_harmless
from unmask.rewards.grading.wrapping import unwrapped

LONGEST = 1000
"""Maximum length of an answer in characters. The limit bounds the time."""

_SYMBOLS = str.maketrans(
    {
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},  # full-width forms
        **dict.fromkeys("×✕✖⨯⋅·•∙∗＊⨉", "*"),
        **dict.fromkeys("÷∕⁄➗", "/"),
        **dict.fromkeys("−–—﹣‐‑➖", "-"),
        **dict.fromkeys("➕﹢", "+"),
        **dict.fromkeys("\u00a0\u2009\u202f\u3000\t\r", " "),
        **dict.fromkeys("\u200b\u2061\ufe0f✓✔✅☑", ""),
    }
)
_COMMANDS = (
    (re.compile(r"\\{1,2}(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![A-Za-z])"), ""),
    (
        re.compile(
            r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split|multline)\*?\}|&(?=\s?=)|\\(?=[*_])"
        ),
        "",
    ),
    (re.compile(r"\\{1,2}(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\{1,2}div(?![A-Za-z])"), "/"),
    (re.compile(r"\\{1,2}(?:text|mathrm|mathbf|mathit|operatorname)\s?(?=\{)"), ""),
    (re.compile(r"\\[{]"), "("),
    (re.compile(r"\\[}]"), ")"),
    (re.compile(r"\\\\"), "\n"),
    (re.compile(r"\\(?:[,;:! ]|quad|qquad)"), " "),
    (re.compile(r"\\[()\[\]]|\$|`|<br ?/?>"), " "),
)
_FRACTION = re.compile(r"\\{1,2}[dtc]?frac\s?\{([^{}]{1,200})\}\s?\{([^{}]{1,200})\}")
_SHORT_FRACTION = re.compile(r"\\{1,2}[dtc]?frac\s?([0-9])\s?([0-9])(?![0-9])")
_MIXED = re.compile(r"[0-9)]\s?\\{1,2}[dtc]?frac")
_BRACKETS = str.maketrans("[]{}", "()()")
_RESULT_IN_BRACKETS = re.compile(r"\(\s*=\s*([^()]{1,40})\)")
ANNOUNCED = re.compile(
    r"\s*\*{0,2}(?:(?:so|thus|hence|therefore),?\s)?(?:(?:the|a|an|my|our|one)\s)?"
    r"(?:(?:final|correct|right|valid|possible|resulting|python)\s){0,2}(?:expression|equation|calculation|formula|solution|answer)"
    r"(?:\s(?:that|which)\s(?:fits|works|(?:evaluates\sto|equals|is\sequal\sto|gives|makes|reaches|results\sin)\s(?:the\s)?(?:target\s?)?"
    r"(?:of\s)?[0-9]{0,6}))?(?:\s?is\b|\s?:)\s?:?\*{0,2}:?\s*"
    r"|\s*(?:so\s)?we\s(?:can\s)?(?:use|write|have|get|compute|calculate)\s?:?\s",
    re.IGNORECASE,
)
"""An announcement of an expression: "The expression is", "The expression that equals 16 is", "We
use"."""
_REMARK = re.compile(
    r"\(([^()+*/=]{0,60}[A-Za-z]{2}[^()+*/=]{0,60})\)|,\s((?:which\s)?(?:uses|using)\s[A-Za-z ]{1,60})$"
)
_NUMBER_OF_LINE = re.compile(r"\s*\(?([0-9]{1,2})\s?[.):]\s+(?=\S)")
_BULLET = re.compile(r"\s*[-*+•]\s+(?=[^\n]*=)")
_LABEL = re.compile(r"^\s*([A-Za-z][A-Za-z ]{0,24})[0-9]{0,2}\s?:\s+(?=\S)", re.MULTILINE)
_STEP = re.compile(r"^\s*(?:after\s)?(?:step|result)\s?[0-9]{0,2}\s?[:.=)]?\s+(?=\S)", re.IGNORECASE | re.MULTILINE)
_TIMES = re.compile(r"(?<=[0-9)])(\s*)[xX](?=\s*[(0-9+-])")
_RATIO = re.compile(r"(?<=[0-9)])\s*:(?=\s*[(0-9])")
_PRODUCT = re.compile(r"(?<=[0-9)])\s*(?=\()|(?<=\))\s*(?=[0-9])")
_UNARY_PLUS = re.compile(r"(?:^|(?<=[-+*/(=]))(\s*)\+(?=\s*[(0-9])")
_WHOLE = re.compile(r"(?<![0-9.])([0-9]+)\.0+(?![0-9])")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")


def symbols(text: str) -> str:
    r"""Return a text with its signs, brackets and LaTeX in ASCII, without words around the answer.

    Line breaks stay. A text of more than 1,000 characters becomes empty.

    Example:
        >>> symbols("$7, −2$"), symbols(r"\[ \frac{3}{4} \times [5 \div 2] \]"), symbols("The expression is `3 × 4`.")
        ('7, -2', '((3)/(4)) * (5 / 2)', '3 * 4')
    """
    if len(text) > LONGEST:
        return ""
    text = unwrapped(html.unescape(text)).translate(_SYMBOLS)
    if _MIXED.search(text):  # 2\frac{1}{2} may be a product or a mixed number.
        return text
    for _ in range(4):
        text = _FRACTION.sub(r"((\1)/(\2))", _SHORT_FRACTION.sub(r"(\1/\2)", text))
    for command, plain in _COMMANDS:
        text = command.sub(plain, text)
    text = text.translate(_BRACKETS)
    announced = ANNOUNCED.match(text)
    return text[announced.end() if announced else 0 :].strip()


def plain_expression(text: str) -> str:
    r"""Return an expression with explicit products and quotients, and whole numbers as integers.

    Labels and remarks are removed.

    Example:
        >>> [plain_expression(text) for text in ("2(3+5)", "(3+5) x 2", "12:6:2", "(3.0+05)*2", "(3+5)*2 (=16)")]
        ['2*(3+5)', '(3+5) * 2', '12/6/2', '(3+5)*2', '(3+5)*2 = 16']
    """
    text = _RESULT_IN_BRACKETS.sub(r"= \1", without_labels(without_remarks(symbols(text))))
    text = _UNARY_PLUS.sub(r"\1", _RATIO.sub("/", _TIMES.sub(r"\1*", text)))
    return _LEADING_ZEROS.sub("", _WHOLE.sub(r"\1", _PRODUCT.sub("*", text)))


def without_remarks(text: str) -> str:
    """Return an answer without comments such as "(uses each number once)".

    A comment that expresses doubt stays.

    Example:
        >>> without_remarks("(3+5)*2 (target reached)"), without_remarks("-5 (not sure)")
        ('(3+5)*2', '-5 (not sure)')
    """

    def without_harmless(remark: re.Match[str]) -> str:
        words = set(re.findall(r"[A-Za-z']+", remark[1] or remark[2])) - {"which"}
        return " " if are_harmless(words) else remark.group()

    return _REMARK.sub(without_harmless, text).rstrip(" ")


def without_labels(text: str) -> str:
    """Return lines without labels such as "Step 1:", "2.", "Multiply:", and without bullets.

    Bullets are removed only if every line is an equation with a bullet.

    Example:
        >>> without_labels("1. 3+5 = 8\\n2. 8*2 = 16"), without_labels("- 3+5 = 8\\n- 8*2 = 16"), without_labels("-3 + 5")
        ('3+5 = 8\\n8*2 = 16', '3+5 = 8\\n8*2 = 16', '-3 + 5')
    """
    text = _LABEL.sub(lambda label: "" if are_harmless(label[1].split()) else label.group(), _STEP.sub("", text))
    text = without_numbering(text, _NUMBER_OF_LINE)
    lines = [line for line in text.splitlines() if line.strip()]
    bullets = [bullet for line in lines if (bullet := _BULLET.match(line))]
    if len(lines) < 2 or len(bullets) < len(lines):
        return text
    return "\n".join(line[bullet.end() :] for line, bullet in zip(lines, bullets, strict=True))


def without_numbering(text: str, label: re.Pattern[str]) -> str:
    """Return lines without the numbers before them, if the numbers count every line from 1.

    Args:
        text: any text.
        label: pattern of the text before a line; its first group is the number.

    Example:
        >>> [without_numbering(text, re.compile(r"([0-9])\\. ")) for text in ("1. 7\\n2. -2", "1. 7\\n3. -2")]
        ['7\\n-2', '1. 7\\n3. -2']
    """
    lines = [line for line in text.splitlines() if line.strip()]
    labels = [label.match(line) for line in lines]
    if len(lines) < 2 or any(match is None or int(match[1]) != i for i, match in enumerate(labels, 1)):
        return text
    return "\n".join(line[match.end() :] for line, match in zip(lines, labels, strict=True) if match)
