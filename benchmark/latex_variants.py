"""Variants of a correct LaTeX expression, as people and models write it. Some keep its meaning."""

from __future__ import annotations

import re
from collections.abc import Callable

Rewrite = Callable[[str], str | None]
"""Function that rewrites a gold answer; None if it does not apply."""


def _wrapped(before: str, after: str = "") -> Rewrite:
    return lambda gold: f"{before}{gold}{after}"


def _replaced(old: str, new: str) -> Rewrite:
    return lambda gold: gold.replace(old, new) if old in gold else None


def _in_round_brackets(gold: str) -> str | None:
    return None if re.search(r"[=,<>&]|\\(?:text|begin|le|ge|in\b|cup|pm)|_", gold) else f"\\left({gold}\\right)"


def _with_square(gold: str) -> str | None:
    found = re.sub(r"(?<=[a-z])\^(?:\{2\}|2)(?![0-9])", "²", gold)
    return None if found == gold else found


def _with_plain_roots(gold: str) -> str | None:
    return re.sub(r"\\sqrt\{([^{}\\]*)\}", r"sqrt(\1)", gold) if re.search(r"\\sqrt\{[^{}\\]*\}", gold) else None


def _named(gold: str) -> str | None:
    return None if re.search(r"[=<>]|\\(?:le|ge|in|text|mbox|begin)\b|,", gold) else f"Q = {gold}"


SAME: dict[str, Rewrite] = {
    "as it is": _wrapped(""),
    "in display style": _wrapped("\\displaystyle "),
    "in braces": _wrapped("{", "}"),
    "in round brackets": _in_round_brackets,
    "with a line break": _wrapped("", " \\\\"),
    "with a comma": _wrapped("", ","),
    "with a full stop": _wrapped("", "."),
    "in dollars": _wrapped("$ ", " $"),
    "after The answer is": _wrapped("The answer is $", "$."),
    "after Answer:": _wrapped("**Answer:** "),
    "bold": lambda gold: None if "text" in gold or "&" in gold else f"\\mathbf{{{gold}}}",
    "boxed twice": _wrapped("\\boxed{", "}"),
    "coloured": _wrapped("\\color{blue}"),
    "with a name": _named,
    "with \\cfrac": _replaced("\\frac", "\\cfrac"),
    "with \\dfrac": _replaced("\\frac", "\\dfrac"),
    "with \\textrm": _replaced("\\text{", "\\textrm{"),
    "with \\degree": _replaced("^\\circ", "\\degree"),
    "with the degree sign": _replaced("^\\circ", "°"),
    "with the infinity sign": _replaced("\\infty", "∞"),
    "with the pi sign": _replaced("\\pi", "π"),
    "with the union sign": _replaced("\\cup", "∪"),
    "with a Unicode minus": _replaced("-", "−"),
    "with superscripts": _with_square,
    "with sqrt()": _with_plain_roots,
    "with \\leq": _replaced("\\le ", "\\leq "),
    "without spaces": lambda gold: (
        None if "text" in gold or re.search(r"\\[a-zA-Z]+ ", gold) else gold.replace(" ", "")
    ),
}
"""Rewrites that keep the answer."""


def _other_sign(gold: str) -> str | None:
    if re.search(r"[,=<>&+\-]|\\(?:pm|text|begin|infty|le|ge|in|cup)|_|^0$|^[A-Z]", gold):
        return None
    return f"-{gold}"


def _other_case(gold: str) -> str | None:
    bare = re.sub(r"\\[a-zA-Z]+|\{[a-z]*matrix\}", "", gold)
    letters = set(re.findall(r"[A-Za-z]", bare))
    return (
        None
        if not letters or "text" in gold or "mbox" in gold or "_" in gold or letters <= {"e", "i"}
        else _swapped(gold)
    )


def _swapped(gold: str) -> str:
    return re.sub(r"(\\[a-zA-Z]+|\{[a-z]*matrix\})|([a-zA-Z])", lambda m: m[1] or m[2].swapcase(), gold)


def _bracketed(opening: str, closing: str) -> Rewrite:
    """Return a rewrite that changes the brackets around a whole point or interval."""

    def rewrite(gold: str) -> str | None:
        plain = gold.replace("\\left", "").replace("\\right", "").strip()
        if not re.fullmatch(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", plain) or (plain[0], plain[-1]) == (opening, closing):
            return None
        return f"{opening}{plain[1:-1]}{closing}"

    return rewrite


OTHER: dict[str, Rewrite] = {
    "with the other sign": _other_sign,
    "in the other case": _other_case,
    "in square brackets": _bracketed("[", "]"),
    "in round brackets": _bracketed("(", ")"),
    "in set brackets": _bracketed("\\{", "\\}"),
    "half open": _bracketed("[", ")"),
    "is wrong": _wrapped("", "\\text{ is wrong}"),
    "is wrong, plain": _wrapped("", " is wrong"),
    "not": _wrapped("\\text{not }"),
    "maybe": _wrapped("\\text{maybe }"),
    "or another": lambda gold: None if gold == "77" else f"{gold}\\text{{ or }} 77",
    "another or": lambda gold: None if gold == "77" else f"77 \\text{{ or }} {gold}",
    "and another": _wrapped("", ", 77"),
    "after another side": _wrapped("77 = "),
    "before another side": _wrapped("", " = 77"),
    "with a question mark": _wrapped("", "?"),
    "plus one": lambda gold: (
        None if re.search(r"[,=<>&]|\\(?:text|begin|infty|le|ge|in|cup)|_", gold) else f"{gold} + 1"
    ),
    "times 77": lambda gold: (
        None if re.search(r"[,=<>&+\-]|\\(?:pm|text|begin|infty|le|ge|in|cup)|_|^0$", gold) else f"77 \\cdot {gold}"
    ),
}
"""Rewrites to another answer, several answers, or one that is doubted or retracted."""
