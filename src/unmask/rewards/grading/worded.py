"""Comparison of answers in words: names, choices from a list, dates."""

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
    r"""Return True if a gold answer consists of words.

    Example:
        >>> is_worded(r"\text{Evelyn}"), is_worded(r"\text{(B)}"), is_worded("x"), is_worded(r"5\text{ cm}")
        (True, True, False, False)
    """
    match = _ONE_TEXT.fullmatch(plain_latex(gold))
    return match is not None and any(character.isalpha() for character in match[1])


def same_words(answer: str, gold: str) -> bool:
    r"""Return True if an answer has the words of the gold answer.

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
    answer, gold = _bare(answer), _bare(gold)
    if "?" in answer and "?" not in gold:
        return False
    if answer == gold:
        return True
    choice = _CHOICE.fullmatch(gold)
    if choice is not None and len(gold.strip("()")) == 1:
        answer_choice = _CHOICE.fullmatch(answer)
        if answer_choice is None or (answer_choice[1] or answer_choice[2]) != (choice[1] or choice[2]):
            return False
        rest = answer[(answer_choice.end(1) if answer_choice[1] else answer_choice.end(2)) + 1 :]
        is_marked = bool(answer_choice[1]) or answer[answer_choice.end(2) : answer_choice.end(2) + 1] in (
            "",
            ".",
            ":",
            ")",
        )
        return is_marked and not _OTHER_CHOICE.search(rest) and are_harmless(re.findall(r"[a-z]{2,}", rest))
    if _MONTHS & set(gold.split()):
        return sorted(_date(answer)) == sorted(_date(gold))
    words = _words_around(answer, gold)
    return words is not None and "than" not in words and are_harmless(words)


def _words_around(answer: str, gold: str) -> list[str] | None:
    """Return the words beside the gold ones in a short sentence, such as "Evelyn is fastest"."""
    if answer.startswith(f"{gold} "):
        words = re.findall(r"\S+", answer.removeprefix(gold))
        is_short = len(words) == 1 or (words[0] == "is" and len(words) <= 6)
    elif answer.endswith(f" is {gold}"):
        words = re.findall(r"\S+", answer.removesuffix(gold))
        is_short = len(words) <= 6
    else:
        return None
    return words if is_short and all(re.fullmatch(r"[a-z'-]+", word) for word in words) else None


def _date(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", re.sub(r"\b(?:the|of|on)\b", "", _ORDINAL.sub(r"\1", text)))


def _bare(text: str) -> str:
    """Return words without fonts, introduction, case and outer punctuation."""
    text = unwrapped(text)
    for _ in range(2):
        text = _FONT.sub(r"\1", text)
    text = unwrapped(re.sub(r"\\[,;: !]|[~$]", " ", text).strip())
    return re.sub(r"\A(?:it|this|that)(?: is|'s) ", "", " ".join(text.strip(" .").split()).casefold())
