"""Answers of words: names, choices of a list, dates."""

from __future__ import annotations

import re

from unmask.rewards.grading.latex_forms import plain_latex
from unmask.rewards.grading.quantities import are_harmless
from unmask.rewards.grading.wrapping import unwrapped

_ONE_TEXT = re.compile(r"\\text\s?\{\s*([^{}\\]+)\}")
_FONT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s)?(?:\(([a-z])\)|([a-z])(?![a-z]))(?:[.:)]?\s.*|[.:)]?)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"=|\([a-z]\)|,\s?[a-z]\b|\band\b|\bor\b")
_MONTHS = frozenset(
    [
        *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
        "december",
    ]
)
_ORDINAL = re.compile(r"\b([0-9]{1,2})(?:st|nd|rd|th)\b")


def is_worded(gold: str) -> bool:
    r"""Whether a gold answer is words.

    Example:
        >>> is_worded(r"\text{Evelyn}"), is_worded(r"\text{(B)}"), is_worded("x"), is_worded(r"5\text{ cm}")
        (True, True, False, False)
    """
    match = _ONE_TEXT.fullmatch(plain_latex(gold))
    return match is not None and any(character.isalpha() for character in match[1])


def same_words(answer: str, gold: str) -> bool:
    r"""Whether an answer says the words of the gold one.

    Args:
        answer: any text.
        gold: words in \text{}.

    Example:
        >>> [same_words(text, r"\text{Evelyn}") for text in ("evelyn", r"\textbf{Evelyn}.", "The answer is Evelyn", "Eve")]
        [True, True, True, False]
        >>> [same_words(text, r"\text{(B)}") for text in ("B", "(b)", r"\text{(B) } 5", "Option B", "(A)(B)", "not B")]
        [True, True, True, True, False, False]
        >>> [same_words(text, r"\text{June 20}") for text in ("June 20th", "20 June", "June 21")]
        [True, True, False]
    """
    wanted, given = _bare(gold), _bare(answer)
    if "?" in given and "?" not in wanted:
        return False
    if given == wanted:
        return True
    choice = _CHOICE.fullmatch(wanted)
    if choice is not None and len(wanted.strip("()")) == 1:
        found = _CHOICE.fullmatch(given)
        if found is None or (found[1] or found[2]) != (choice[1] or choice[2]):
            return False
        rest = given[(found.end(1) if found[1] else found.end(2)) + 1 :]
        marked = bool(found[1]) or given[found.end(2) : found.end(2) + 1] in ("", ".", ":", ")")
        return marked and not _OTHER_CHOICE.search(rest) and are_harmless(re.findall(r"[a-z]{2,}", rest))
    if _MONTHS & set(wanted.split()):
        return sorted(_date(given)) == sorted(_date(wanted))
    words = _words_around(given, wanted)
    return words is not None and "than" not in words and are_harmless(words)


def _words_around(given: str, wanted: str) -> list[str] | None:
    """The words beside the wanted ones in a short sentence: "Evelyn is fastest", "the function is odd", "odd function"."""
    if given.startswith(f"{wanted} "):
        words = re.findall(r"\S+", given.removeprefix(wanted))
        is_short = len(words) == 1 or (words[0] == "is" and len(words) <= 6)
    elif given.endswith(f" is {wanted}"):
        words = re.findall(r"\S+", given.removesuffix(wanted))
        is_short = len(words) <= 6
    else:
        return None
    return words if is_short and all(re.fullmatch(r"[a-z'-]+", word) for word in words) else None


def _date(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", re.sub(r"\b(?:the|of|on)\b", "", _ORDINAL.sub(r"\1", text)))


def _bare(text: str) -> str:
    """A text of words without fonts, lead-in, case and outer punctuation."""
    text = unwrapped(text)
    for _ in range(2):
        text = _FONT.sub(r"\1", text)
    text = unwrapped(re.sub(r"\\[,;: !]|[~$]", " ", text).strip())
    return re.sub(r"\A(?:it|this|that)(?: is|'s) ", "", " ".join(text.strip(" .").split()).casefold())
