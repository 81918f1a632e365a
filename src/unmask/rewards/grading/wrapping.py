"""Removal of prose, Markdown and LaTeX around an answer."""

from __future__ import annotations

import re

from unmask.rewards.grading.boxes import BRACE

_GROUP = re.compile(r"(?:\\(?:boxed|fbox|mathbf|boldsymbol|bm|underline|displaystyle|mathrm)\s?)?\{")
"""The start of braces that may enclose the whole answer."""
_LEAD_IN = re.compile(
    r"(?:\#{2,6}\s*"
    r"|(?:(?:so|thus|hence|therefore),?\s{1,3})?(?:the\s{1,3}|my\s{1,3}|our\s{1,3})?(?:final\s{1,3}|correct\s{1,3}|right\s{1,3})?"
    r"(?:answer|solution|result|total|sum|value|number)(?:\s{1,3}(?:is|was|equals|=)(?![A-Za-z])\s{0,3}:?|\s{0,3}[:=])\s{0,3}"
    r"|(?:the\s{1,3})?(?:final\s{1,3}|correct\s{1,3})?answer\s{1,3})"
    r"(?=\S)",
    re.IGNORECASE,
)
"""An announcement of an answer inside its tag.

The announcement contains no name and no verb except "is", because only the answer may follow."""
_DELIMITERS = (
    ("**", "**"),
    ("__", "__"),
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("```", "```"),
    ("`", "`"),
    ("*", "*"),
    ("_", "_"),
    ("<b>", "</b>"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
)
_LANGUAGE = re.compile(r"[A-Za-z]{1,12}[ \t]*\n")
"""The language name after a fence."""
_ARROW = re.compile(r"\A\s*(?:\\(?:[Rr]ightarrow|[Ll]ongrightarrow|implies|therefore)(?![A-Za-z])|[⇒→∴])\s*(?=\S)")
_TRAILING = re.compile(r"(?:\\[,;!]|\\\\|\\|~|…|[✓✔✅]\ufe0f?|<br ?/?>|\.{1,3}|,|;)$")


def unwrapped(text: str) -> str:
    r"""Return an answer without the prose or LaTeX around it.

    White space, "The answer is", `**`, quotes, math delimiters and punctuation are removed.

    Args:
        text: answer, any text.

    Returns:
        The text inside.

    Example:
        >>> [unwrapped(text) for text in (r" \[ x^2 \] ", "$ 5 $.", "**5**", "$5", "5,", "**Answer:** 5", "The total is $5$.")]
        ['x^2', '5', '5', '$5', '5', '5', '5']
    """
    for _ in range(3):
        before = text
        text = _without_trailing(_ARROW.sub("", text).strip())
        bare = re.sub(r"\A\*\*([^*\n]{1,40}?)(:?)\*\*\s*(:?)", r"\1\2\3 ", text) if text.startswith("**") else text
        if lead_in := _LEAD_IN.match(bare):
            text = bare[lead_in.end() :].strip()
        for opening, closing in _DELIMITERS:
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
                inner = text[len(opening) : -len(closing)]
                language = _LANGUAGE.match(inner) if opening == "```" else None
                inner = inner[language.end() if language else 0 :].strip()
                text = text if closing in inner.replace("\\$", "") else inner
        text = _without_group(text)
        if text == before:
            break
    return text


def _without_group(text: str) -> str:
    """Return a text without braces around all of it, and without the font or box command before
    them."""
    group = _GROUP.match(text)
    if group is None or not text.endswith("}"):
        return text
    depth = 1
    for match in BRACE.finditer(text, group.end()):
        depth += (match.group() == "{") - (match.group() == "}")
        if depth == 0:
            return text[group.end() : -1].strip() or text if match.end() == len(text) else text
    return text


def _without_trailing(text: str) -> str:
    """Return an answer without the punctuation at its end."""
    while (trailing := _TRAILING.search(text, max(0, len(text) - 6))) is not None:
        text = text[: trailing.start()].rstrip()
    return text
