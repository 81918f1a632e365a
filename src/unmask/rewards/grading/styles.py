"""LaTeX that changes only the look of an expression: sizes, colours, spaces, kinds of fraction."""

from __future__ import annotations

import re

_COLOURED = re.compile(r"\\textcolor\s?\{\w{1,12}\}(?=\s?\{)|\\color\s?\{\w{1,12}\}")
_SIZED = re.compile(
    r"\\(?:left|right|middle)(?![A-Za-z])\.?|\\[bB]igg?[lrm]?(?![A-Za-z])"
    r"|\\(?:displaystyle|textstyle|scriptstyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|limits|nolimits)"
    r"(?![A-Za-z])"
)
_SPACE = re.compile(r"\\[hmv](?:space|skip)\*?\s?(?:\{[^{}]{0,12}\}|[0-9.]{1,5}(?:pt|mm|cm|em|ex|mu))")
_FRACTION = re.compile(r"\\(?:[dtc]|nice|s|x)frac(?![A-Za-z])")
_OVER = re.compile(r"(?:\{|\A)\s*([^{}\\]{1,20})\\over(?![A-Za-z])\s*([^{}\\]{1,20})(?:\}|\Z)")


def without_styles(text: str) -> str:
    r"""Return LaTeX without styles, and with one command for every kind of fraction.

    Args:
        text: any text.

    Returns:
        LaTeX with the same meaning.

    Example:
        >>> [without_styles(text) for text in (r"\displaystyle 9", r"\bigl(9\bigr)", r"\dfrac12", r"{7 \over 12}")]
        [' 9', '(9)', '\\frac12', '\\frac{7 }{12}']
        >>> without_styles(r"\textcolor{red}{9}\hspace{1mm}")
        '{9} '
    """
    text = _SIZED.sub("", _SPACE.sub(" ", _COLOURED.sub("", text)))
    return _FRACTION.sub(r"\\frac", _OVER.sub(r"\\frac{\1}{\2}", text))
