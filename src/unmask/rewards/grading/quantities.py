"""Words beside a number that leave its value unchanged: units, counted things, introductions.

Any noun may name what is counted ("18 golden retrievers"), so nouns are not listed. The lists hold
words that change a value, express doubt about it or retract it. A text with such a word is not a
plain number. Words such as "dozen" multiply the number. A text with a function word (such as a
preposition) is refused unless the word is known to be harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from unmask.rewards.grading.number_words import NUMBER_WORDS, PART_WORDS, SCALES


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MULTIPLIERS = SCALES | {
    "dozen": 12,
    "doz": 12,
    "dz": 12,
    "bil": 10**9,
    "mill": 10**6,
    "score": 20,
    "gross": 144,
    "grand": 10**3,
    "lakh": 10**5,
    "crore": 10**7,
    "mil": 10**6,
    "bn": 10**9,
    "quadrillion": 10**15,
}
_LETTER_MULTIPLIERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
"""Letters that multiply a number directly before them: 5K."""

_DOUBT = _words(
    # Guesses and bounds.
    """
    maybe perhaps probably possibly presumably apparently supposedly roughly approximately approx approximate around nearly almost
    circa ish guess guessing guessed think thinks believe suppose assume assuming estimate estimated est likely unlikely might may
    could should would can cannot must seem seems uncertain unsure unclear sure doubt doubtful hopefully somewhere something so
    tentative provisional speculative hypothetical dubious questionable arguable debatable ballpark thereabouts
    hmm hm huh um uh eh er idk dunno lol whatever whichever whoever too
    least most minimum maximum upwards upward onwards onward up under below above beyond between through thru until till within
    exceeding exceeds lower upper bound limit range ranging tops max odd change lots counting depending depends varies
    """
    # Alternatives, negation, verdicts.
    """
    or and nor not no never none neither either both but yet though although however except excluding unless if whether rather
    instead versus vs alternatively otherwise else also wrong incorrect false invalid untrue mistaken impossible nonsense wait
    actually sorry oops correction nope nah without minus negative error mistake unknown undefined unverified rejected disproved
    inaccurate inexact erroneous flawed bogus unproven untested refuted miscalculated misread fails contradicts ignoring
    disregarding nobody nothing nowhere hardly barely scarcely denied denies rough rounded opposite
    """
    # Unfinished arithmetic, and parts of a larger number.
    """
    plus add adding added subtracting divided multiplied subtracted squared cubed root roots factorial remainder rem modulo mod
    incremented decremented looks appears sounds approximated reversed inverted backwards binary octal hex hexadecimal mega giga
    thou googol googols myriad myriads grosses dx dy dt choose over by point
    power doubled tripled halved quadrupled fewer short shy pair pairs couple couples trio trios twice double triple half
    recurring itself pi sin cos tan cot csc sqrt ln exp infinity et al etc
    """
    # Clauses.
    """
    i we you it is was are were be been isn wasn aren weren don doesn didn won cant wont because since where when which who
    """
)
_LARGE_OR_PART = re.compile(
    r"[a-z]*illions?|(?:[a-z]+teen|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|[a-z]+illion|[a-z]+tie)ths?"
)
"""Further names of large numbers and of fractions: gazillion, elevenths."""
_BEHIND_A_NOUN = _words(
    """
    and who which that is are was were be been have has had do did does can will must off out until till when since between over
    above below under beyond around through within because where there it you they
    """
)
"""Words that change a number directly before them ("5 and a half", "5 over 2"), but are harmless
after a noun."""
_NO_NOUN = _words("a an the another other some several many more few one any in of on for with then this those")
_MORE = re.compile(
    r"\b(?:and|plus|with)\s+(?:an?|another|some|several|many|more|few|extra|counting|also|then|so)\b"
    r"|\b(?:is|was|does|it)\b(?!.*\b(?:left|remaining|needed)\b)|\b(?:be|been|it|you|are|were|there|that)\s*$",
    re.IGNORECASE,
)
"""Words that add to a number or comment on it, even after a noun."""
_SENTENCE_GOES_ON = _words(
    """
    and or but so i we you it is was are were be by can would will since because where when which who if though although however
    also yet while then not no max wait actually point
    """
)
"""Words after a box that continue a sentence about it."""
_FIRST_WORD = re.compile(r"(?:\s|\$|\\[ ,;)]|\\(?:text|mathrm)\{|\()*([A-Za-z]+)(?![A-Za-z-])")
_GOES_ON = re.compile(
    r"(?:\s|\$|\\\)|\\text\{)*(?:[A-Za-z]{2,12},?\s(?:and\s)?[0-9]+(?![0-9]*[,.:]?[0-9]*\s?[-+*/=])"
    r"|(?:to|with|out of|in|for|per|and|over|by)\s[0-9]|and (?:a|an|one|some|then|counting|change|more)\b|too (?:many|few|much)\b"
    r"|at (?:least|most)\b|times (?:two|three|four|five|six|ten|[0-9])|I (?:guess|think|believe)\b|in (?:binary|hex|octal)\b)",
    re.IGNORECASE,
)
"""The continuation of a number after its first part: 5 feet 6 inches, 5 and a half, 5 out of 6."""
_COMPOUND = re.compile(
    r"(?<=\s)(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|fifty|hundred|first|second|third|"
    r"fourth|fifth|half|double|triple|short|over|under|above|low|odd|[A-Za-z])-(?=([A-Za-z]{3,}))",
    re.IGNORECASE,
)
"""The first half of an adjective or noun: two-liter bottles, third-graders, T-shirts."""
_HARMLESS_AFTER = re.compile(
    r"\b(?:left over|(?:is|are|was|were) (?:left(?: over)?|remaining|needed|the (?:final |correct |right )?answer)|"
    r"is (?:correct|right)|"
    r"(?:who|that) (?:do|did|does|are|were|is|was|have|has) not|"
    r"point\b(?! (?:five|one|two|three|four|six|seven|eight|nine|zero))|"
    r"(?:square|cube) roots|for sure|in between|about$|so far|or so of)\b|-and-",
    re.IGNORECASE,
)
_LY = _words(
    """
    daily weekly monthly yearly hourly quarterly annually only exactly precisely family early jelly lily fly butterfly firefly
    belly supply assembly bully ply friendly elderly totally finally originally initially individually equally
    """
)
"""Words that end in -ly and neither change a number nor express doubt about it."""
_ORDINAL = frozenset({"st", "nd", "rd", "th", "ths"})
_LONE_LETTERS = frozenset("a s")
_UNIT_LETTERS = frozenset("mgshlLpcdtWVANJFCPRQ")
_UNIT = re.compile(
    r"""
    (?:\ ?(?:%|°\ ?[CFK]?\b|°|[$€£¥¢₹]|'{1,2}|"))?                  # a sign of its own
    # A unit, close or after a space.
    \ ?(?:[A-Za-zµÀ-ÿ][A-Za-zµÀ-ÿ.'’]*(?:\ ?\^\ ?\{?[23]\}?|[²³]|(?<=m)[23]\b|(?<=ft)[23]\b)?)?
    (?:[\ /·*-]{1,3}(?:[A-Za-zÀ-ÿ][A-Za-zÀ-ÿ.'’]*)(?:\ ?\^\ ?\{?[23]\}?|[²³])?)*   # more words
    \ ?
    """,
    re.VERBOSE,
)
_AREA = re.compile(r"\s?(?:sq|cu|square|cubic)\b")
_FACTOR = re.compile(r"[A-Za-z](?![A-Za-z])|\ ?-\ ?[A-Za-z](?![A-Za-z])")
_PARENTHESIS = re.compile(r"\(([A-Za-z$€£%°/ .'-]{1,60})\)$")
_PERCENT = re.compile(r"%|\b(?:percent|per ?cent|pct)\b", re.IGNORECASE)
_CLOCK = re.compile(r"(?:o'?clock|[ap]\.?\ ?m\.?)", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-zÀ-ÿ]+")

_CURRENCY = re.compile(
    r"(?:US|AU|A|CA|C|NZ|HK|S)?[$€£¥¢₹₩]|(?:USD|AUD|CAD|NZD|HKD|EUR|GBP|INR|JPY|CNY|CHF|Rs\.?|RM)(?=\s|$)",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(?:\\?[A-Za-z]\w{0,15}(?:\ [A-Za-z]\w{0,15})?(?:_\{[^{}]{1,8}\})?(?:\([^()=]{1,9}\))?|\|[A-Z]{2}\|)\ ?(?:=|\\approx|≈|:)"
)
_MATHEMATICAL = _words("mod pi sin cos tan cot csc sqrt ln exp max add is are point points")
"""Words that are part of an expression."""
_NAMES = _words("i point sin cos tan pi limit minimum maximum")
"""Words that may be part of a quantity's name, and express doubt about a number elsewhere."""
_VERBS = _words(
    """
    is are was were be equals equal has have had get gets got make makes made earn earns earned cost costs need needs needed
    take takes took spend spends spent ends ended pay pays paid save saves saved sell sells sold eat eats ate buy buys bought
    use uses used leave leaves left remain remains contain contains weigh weighs charge charges drive drives drove walk walks
    walked run runs ran read reads score scores scored bake bakes baked pick picks picked plant plants planted lose loses lost
    win wins won find finds found donate donates donated travel travels traveled work works worked hold holds fit fits grow
    grows grew catch catches caught receive receives received owe owes give gives gave produce produces collect collects
    collected total totals totaling
    """
)
"""Last words of a sentence that introduces its number."""
_AMOUNT_OF = re.compile(
    r"\b(?:total|amount|answer|result|value|profit|cost|price|distance|average|number) of$", re.IGNORECASE
)
_DISOWNED = _words(
    "bad draft previous old first earlier former another other second counterexample example hint trap decoy"
)
"""Words before a number that mark it as an answer that does not count."""
_LINKING = _words("is are was were be it we you i so can would by when which")
"""Words that express doubt after a number, but not before it."""
_MODAL = re.compile(r"\b(?:must|should|could)(?= (?!be\b|have\b|not\b)[a-z])", re.IGNORECASE)
"""A modal verb with another verb: "She should pay 42" states 42, "It could be 42" does not."""
_NAMED = re.compile(
    r"\b(?:change|(?<!a )(?<!at )(?:minimum|maximum)|remainder|range|limit|the (?:least|most))\b"
    r"(?=[a-z' ]*\b(?:is|was|are|equals)$)",
    re.IGNORECASE,
)
"""Names of quantities whose words express doubt in other places: "Her change is 5", "The minimum
number of buses is 5"."""
_OBJECT = re.compile(
    r"\b(gets?|got|takes?|took|costs?|leaves?|left|gives?|gave|earns?|earned|makes?|made|ends?|ended|saves?|saved|pays?|paid|need|needs)"
    r" (?:(?:him|her|them|us|you|me|it|each|[A-Z][a-z]+)(?: with)?|up with|with|back)$"
)
"""A verb with its object or preposition: "It takes Tom", "She ends up with"."""
_ADVERBS = re.compile(
    r"(?:\b(?:exactly|precisely|just|so|thus|hence|therefore|finally|now|then|only|still|in total|in all|altogether)\b[\s,:]*)+$",
    re.IGNORECASE,
)


class Unit(NamedTuple):
    """Meaning of the words after a number."""

    factor: int = 1
    """Factor by which the words multiply the number."""
    is_percent: bool = False
    is_clock: bool = False
    """True for a time of day."""


def read_unit(text: str, in_prose: bool = True) -> Unit | None:
    """Return the meaning of the words after a number; None if the words may change the number or
    express doubt.

    Args:
        text: text directly after the number, with its first space, and without LaTeX spaces and
            \\text{}.
        in_prose: True if an adjacent single letter is a unit or multiplier (5m, 5K); otherwise it
            is a factor.

    Example:
        >>> [read_unit(text) is not None for text in (" golden retrievers", " km/h", "%", " left over", " (eggs)", "min")]
        [True, True, True, True, True, True]
        >>> [read_unit(text) for text in (" or so", " is wrong", "?", "x", " fewer", " and a half", " divided by two", "+")]
        [None, None, None, None, None, None, None, None]
        >>> read_unit(" dozen eggs").factor, read_unit("K").factor
        (12, 1000)
    """
    if not text:
        return Unit()
    if _CLOCK.fullmatch(text.strip()):
        return Unit(is_clock=True)
    factor = 1
    if not in_prose and _FACTOR.match(text):
        return None
    if text[0] in _LETTER_MULTIPLIERS and not text[1:2].isalpha():
        factor, text = _LETTER_MULTIPLIERS[text[0]], text[1:]
    while (word := _WORD.match(text.lstrip(" -"))) is not None and text[0] in " -":
        scale = _MULTIPLIERS.get(word.group().lower().removesuffix("s"), _MULTIPLIERS.get(word.group().lower()))
        if scale is None:
            break
        factor, text = factor * scale, text.lstrip(" -")[word.end() :]
    if (aside := _PARENTHESIS.search(text)) is not None:
        text = f"{text[: aside.start()].rstrip()} {aside[1]}"
    if not _UNIT.fullmatch(text) or text.rstrip().endswith(("-", "/")) or not _is_harmless(text):
        return None
    return Unit(factor, bool(_PERCENT.search(text)))


def are_harmless(words: Iterable[str]) -> bool:
    """Return True if no word beside an expression expresses doubt, negates the expression, or is a
    number or a multiplier.

    Example:
        >>> are_harmless(["cm"]), are_harmless(["is", "wrong"]), are_harmless(["maybe"])
        (True, False, False)
    """
    refused = (_DOUBT - _MATHEMATICAL) | NUMBER_WORDS | _MULTIPLIERS.keys()
    return not any(word.lower() in refused for word in words)


def begins_with_change(text: str) -> bool:
    """Return True if the words after a box continue the number in the box, express doubt, or change
    the number.

    The rest of the sentence does not matter.

    Example:
        >>> [begins_with_change(text) for text in (" fewer", " halves", " feet 6 inches", " and a half", " to 45", " out of 50")]
        [True, True, True, True, True, True]
        >>> [begins_with_change(text) for text in (" apples", " years old in 3 years.", " is the total", ". Half of them", "")]
        [False, False, False, False, False]
    """
    if _GOES_ON.match(text):
        return True
    first = _FIRST_WORD.match(text)
    if first is None:
        return False
    word = first[1].lower()
    return (word in _DOUBT and word not in _SENTENCE_GOES_ON) or _is_number_word(word)


def _is_harmless(text: str) -> bool:
    """Return True if none of the words after a number may change the number or express doubt."""
    is_close = not text.startswith((" ", "-"))
    text = _COMPOUND.sub(lambda match: match.group() if _is_number_word(match[1].lower()) else "", text)
    words = _WORD.findall(_HARMLESS_AFTER.sub(" ", text).replace("'s", "").replace("’s", ""))
    noun = next((index for index, word in enumerate(words) if _may_be_noun(word.lower())), len(words))
    for index, word in enumerate(words):
        lower = word.lower()
        tells_more = noun < index < len(words) - 1 and lower in _BEHIND_A_NOUN
        if (lower in _DOUBT and not tells_more) or _is_number_word(lower) or lower in _ORDINAL:
            return False
        if lower.endswith("ly") and lower not in _LY:
            return False
        if len(word) == 1 and not _may_stand_alone(word, index, text):
            return False
        if lower == "than" and index + 1 == len(words):
            return False
    if re.match(r"\s?-\s?[A-Za-z]\b", text) or (noun < len(words) and _MORE.search(text)):
        return False
    if words and not is_close and words[0].lower() == "off":
        return False
    return not (is_close and words and words[0].lower() in ("ish", "x", "e"))


def _is_number_word(word: str) -> bool:
    """Return True if a lower-case word is a number, part of one, or a multiplier."""
    is_listed = (
        word in NUMBER_WORDS or word in PART_WORDS or word.removesuffix("s") in _MULTIPLIERS or word in _MULTIPLIERS
    )
    return is_listed or _LARGE_OR_PART.fullmatch(word) is not None


def _may_be_noun(word: str) -> bool:
    """Return True if a lower-case word may name what is counted."""
    return word not in _DOUBT and word not in _NO_NOUN and len(word) > 1


def _may_stand_alone(letter: str, index: int, text: str) -> bool:
    """Return True if a single letter is an article, a unit or a name: a week, 60 m, John D."""
    is_unit = letter in _UNIT_LETTERS and (index == 0 or "/" in text or bool(_AREA.match(text)))
    return letter in _LONE_LETTERS or is_unit or (index > 1 and letter.isupper())


def read_introduction(text: str) -> int | None:
    """Return the sign that the words before a number give it: 1 or -1.

    The result is None if the words may be more than an introduction.

    Args:
        text: text before the number, with sign and currency.

    Example:
        >>> [read_introduction(text) for text in ("$", "x = ", "Janet has ", "Total cost: ", "= ", "US$", "#", "-", "minus ")]
        [1, 1, 1, 1, 1, 1, 1, -1, -1]
        >>> [read_introduction(text) for text in ("at least ", "not ", "about ", "5 or ", ">", "The total isn't ", "~", "--")]
        [None, None, None, None, None, None, None, None]
    """
    text = text.strip()
    sign = 1
    if text.endswith(("-", "+")):
        sign, text = (-1 if text[-1] == "-" else 1), text[:-1].rstrip()
    elif (word := re.search(r"(?:\A|\s)(?:negative|minus|a loss of)\Z", text, re.IGNORECASE)) is not None:
        sign, text = -1, text[: word.start()].rstrip()
    currency = next((match for match in _CURRENCY.finditer(text[-5:]) if match.end() == len(text[-5:])), None)
    if currency is not None:
        text = text[: len(text) - len(text[-5:]) + currency.start()].rstrip()
        if text.endswith(("-", "+")):
            if sign < 0:
                return None
            sign, text = (-1 if text[-1] == "-" else 1), text[:-1].rstrip()
    text = text.removesuffix("\\approx").removesuffix("≈").removesuffix("#").rstrip()
    return sign if _leads_up(text) else None


def _leads_up(text: str) -> bool:
    """Return True if a text is empty, a name with "=", a label with ":" or an introduction."""
    if text in ("", "="):
        return True
    if _NAME.fullmatch(text):
        return not any(word.lower() in (_DOUBT | _DISOWNED) - _NAMES for word in _WORD.findall(text))
    if len(text) > 120 or re.search(r"[0-9\\<>~|?!^+*/;]", text):
        return False
    is_label = text.endswith((":", "="))
    body = _OBJECT.sub(r"\1", _ADVERBS.sub("", f" {text.rstrip(':= ')}")).strip()
    body = _NAMED.sub(" ", _MODAL.sub("", body)).strip()
    if not body:
        return not is_label
    words = [word.lower() for word in _WORD.findall(body)]
    if not words or any(
        w in _DISOWNED or w in _DOUBT - _LINKING or w in NUMBER_WORDS or w in PART_WORDS for w in words
    ):
        return False
    if "n't" in text or "n’t" in text or "(" in text or "=" in body:
        return False
    return is_label or words[-1] in _VERBS or bool(_AMOUNT_OF.search(body))
