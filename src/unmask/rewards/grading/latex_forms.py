"""Conversion of LaTeX, Unicode and plain text to one uniform LaTeX spelling.

Only the form changes. Styles, fonts and superfluous brackets are removed, signs and names become
LaTeX commands, and a decimal becomes the exact fraction.
"""

from __future__ import annotations

import re

from unmask.rewards.grading.styles import without_styles
from unmask.rewards.grading.wrapping import unwrapped

_FONTS = re.compile(
    r"\\(?:mathbf|mathit|mathsf|mathtt|mathcal|boldsymbol|bm|underline|boxed|fbox|mathrm|operatorname|ensuremath)\s?\{([^{}]*)\}"
)
_ROMAN_WORD = re.compile(r"\\(?:mathrm|operatorname)\s?\{\s*[A-Za-z][A-Za-z. ]{2,}\}")
_TEXTS = re.compile(r"\\(?:textrm|textnormal|textbf|textit|textsf|texttt|mbox|hbox|emph)(?=\s?\{)")
_DROPPED = re.compile(r"(?<!\\)\\[!,;: ]|\\q?quad(?![a-zA-Z])|\\(?=[$%])|[$~]")
_REPLACED = (
    *(("\\dbinom", "\\binom"), ("\\tbinom", "\\binom")),
    *(("\\leqslant", "\\le"), ("\\geqslant", "\\ge"), ("\\leq", "\\le"), ("\\geq", "\\ge"), ("\\neq", "\\ne")),
    *(
        ("≤", "\\le "),
        ("≥", "\\ge "),
        ("≠", "\\ne "),
        ("±", "\\pm "),
        ("×", "\\times "),
        ("·", "\\cdot "),
        ("⋅", "\\cdot "),
    ),
    *(("÷", "\\div "), ("∞", "\\infty "), ("∪", "\\cup "), ("∩", "\\cap "), ("∅", "\\emptyset "), ("∈", "\\in ")),
    *(("π", "\\pi "), ("θ", "\\theta "), ("α", "\\alpha "), ("β", "\\beta "), ("ℝ", "\\mathbb{R}"), ("ω", "\\omega ")),
    *((sign, "-") for sign in "−–‐‑‒—﹣－"),
    *(("°", "^\\circ"), ("º", "^\\circ"), ("\\degree", "^\\circ"), ("\\lbrace", "\\{"), ("\\rbrace", "\\}")),
    *(
        ("½", "\\frac{1}{2}"),
        ("¼", "\\frac{1}{4}"),
        ("¾", "\\frac{3}{4}"),
        ("⅓", "\\frac{1}{3}"),
        ("⅔", "\\frac{2}{3}"),
    ),
    *(("（", "("), ("）", ")"), ("，", ","), ("\\imath", "i"), ("\\varnothing", "\\emptyset")),
)
_PATTERNS = (
    (re.compile(r"\^\s?\{?\s?\\(?:text|circ)\s?(?:\{\s?o\s?\})?\s?\}?(?![a-zA-Z])"), r"^\\circ"),
    (re.compile(r"\\text\{\s*(?:degrees?|deg)\.?\s*\}"), r"^\\circ"),
    (re.compile(r"√ ?(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+|[a-zA-Z]))"), r"\\sqrt{\1\2\3}"),
    (re.compile(r"(?<![a-zA-Z\\])sqrt ?(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+))"), r"\\sqrt{\1\2\3}"),
    (re.compile(r"\*\* ?(?:\(([^()]*)\)|(-?\w+))"), r"^{\1\2}"),
    (re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"(?<![a-zA-Z\\])(?:infty|infinity|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"(?<![a-zA-Z\\])(sin|cos|tan|cot|sec|csc|log|ln|exp)(?=[\s(^\\])"), r"\\\1"),
    (re.compile(r"\+\s?(?=\\infty)"), ""),
    (re.compile(r"\\log_\{?e\}?(?![a-zA-Z])"), r"\\ln"),
    (re.compile(r"\\cr(?![a-zA-Z])|\\\\\[[0-9.]{1,5}[a-z]{2}\]"), r"\\\\"),
    (re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+")
_DECIMAL = re.compile(r"(?<![0-9.,}])([0-9]{0,20})\.([0-9]{1,20})(?![0-9.])")
_LAST_STOP = re.compile(r"(?<=\S)\.$")


def plain_latex(text: str) -> str:
    r"""Return an answer in a uniform spelling.

    Args:
        text: any text.

    Returns:
        LaTeX with the same meaning.

    Example:
        >>> plain_latex(r"\left( 3, \dfrac{\pi}{2} \right)"), plain_latex("2√3 + x²"), plain_latex(r"{1+2\mathrm{i}}")
        ('( 3, \\frac{\\pi}{2} )', '2\\sqrt{3} + x^{2}', '1+2i')
    """
    text = _SUPERSCRIPT.sub(
        lambda match: f"^{{{match.group().translate(_SUPERSCRIPTS)}}}", without_styles(unwrapped(text))
    )
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match.group().translate(_SUBSCRIPTS)}}}", text)
    text = _ROMAN_WORD.sub(lambda match: "\\text" + match.group()[match.group().index("{") :], text)
    text = _TEXTS.sub(r"\\text", text)
    for _ in range(3):
        text = _FONTS.sub(r"\1", text)
    for written, plain in _REPLACED:
        text = text.replace(written, plain)
    text = _DROPPED.sub("", text)
    for pattern, plain in _PATTERNS:
        text = pattern.sub(plain, text)
    return _without_group(_LAST_STOP.sub("", text.strip())).strip()


def spelling(text: str) -> str:
    r"""Return a text in a uniform spelling, without white space, for comparison as a string.

    Example:
        >>> spelling(r"90^{\circ} + x") == spelling(r"90^\circ+x")
        True
    """
    text = re.sub(r"([_^])\{(\\[a-zA-Z]+|[^\\{}])\}", r"\1\2", plain_latex(text))
    return re.sub(r"\\(frac|sqrt)([0-9a-zA-Z])(?:([0-9a-zA-Z])|(?=\b))", _braced, re.sub(r"\s", "", text))


def exact_latex(text: str) -> str:
    r"""Return a text in a uniform spelling with exact fractions instead of decimals.

    Otherwise, math-verify would round the decimals.

    Example:
        >>> exact_latex(r"0.25\pi"), exact_latex("3.7")
        ('\\frac{25}{100}\\pi', '\\frac{37}{10}')
    """
    text = (
        re.sub(r"(?<=[0-9])\{?,\}?(?=[0-9]{3}(?![0-9]))", "", plain_latex(text))
        if "(" not in text
        else plain_latex(text)
    )
    return _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)


def _braced(match: re.Match[str]) -> str:
    r"""Return \frac12 or \sqrt2 with braces around the arguments."""
    first, second = match[2], match[3]
    if match[1] == "sqrt":
        return f"\\sqrt{{{first}}}{second or ''}"
    return f"\\frac{{{first}}}{{{second}}}" if second else match.group()


def _without_group(text: str) -> str:
    """Return a text without round brackets around all of it, unless they hold a list."""
    if not (text.startswith("(") and text.endswith(")")) or "," in text or ";" in text or len(text) < 4:
        return text
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and index + 1 < len(text):
            return text
    return text[1:-1].strip()
