"""Sentences of the task `story`: what happens in a story, how its working is written, and the words
of both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

NAMES = {
    "Anna": "she",
    "Clara": "she",
    "Ella": "she",
    "Grace": "she",
    "Ida": "she",
    "Kate": "she",
    "Mia": "she",
    "Nora": "she",
    "Ben": "he",
    "David": "he",
    "Felix": "he",
    "Hugo": "he",
    "Jack": "he",
    "Leo": "he",
    "Oscar": "he",
    "Tom": "he",
}
"""People, with their pronouns."""
ITEMS = (
    "apples",
    "balls",
    "beads",
    "books",
    "buttons",
    "cards",
    "coins",
    "cups",
    "eggs",
    "flowers",
    "marbles",
    "nuts",
    "pencils",
    "shells",
    "stamps",
    "stickers",
)
QUESTIONS = (
    "How many {items} does {she} have now?",
    "How many {items} are there at the end?",
    "How many {items} does {name} have after that?",
)
START, WORKING_START, WORKING_END = (
    "{name} has {start} {items}.",
    "{name} starts with {start} {items}.",
    "The answer is {answer}.",
)


class Event(NamedTuple):
    """Sentence of a story that changes the number of items, and the sentence of the working that
    computes the change."""

    told: str
    working: str
    """Its equation has the number before, {v}, and after, {w}. An event about containers has a
    product {p} too."""
    sign: int
    """1 for a gain, -1 for a loss."""


EVENTS = {
    "buy": Event("{She} buys {n} more {items}.", "After buying {n}, {she} has {v} + {n} = {w}.", 1),
    "find": Event("{She} finds {n} {items} on the way.", "With the {n} found, {she} has {v} + {n} = {w}.", 1),
    "get": Event("{friend} gives {her} {n} {items}.", "With {n} from {friend}, {she} has {v} + {n} = {w}.", 1),
    "win": Event("{She} wins {n} {items} in a game.", "Winning {n} makes {v} + {n} = {w}.", 1),
    "bring": Event("An uncle brings {n} {items}.", "The uncle adds {n}, which makes {v} + {n} = {w}.", 1),
    "collect": Event("{She} collects {n} {items} in the park.", "The park gives {n}, so {v} + {n} = {w}.", 1),
    "receive": Event("{n} {items} come as a present.", "The present adds {n}, so {v} + {n} = {w}.", 1),
    "give": Event("{She} gives {friend} {n} {items}.", "{friend} takes {n}, so {she} has {v} - {n} = {w}.", -1),
    "lose": Event("{She} loses {n} {items} at school.", "Losing {n} leaves {v} - {n} = {w}.", -1),
    "sell": Event("{She} sells {n} {items} at the market.", "After selling {n}, {she} has {v} - {n} = {w}.", -1),
    "break": Event("{n} of the {items} break.", "As {n} break, {v} - {n} = {w} are left.", -1),
    "lend": Event("A brother borrows {n} {items}.", "The brother has {n}, so {she} has {v} - {n} = {w}.", -1),
    "discard": Event("{She} throws {n} old {items} away.", "Without the {n} old ones, there are {v} - {n} = {w}.", -1),
    "forget": Event("{She} leaves {n} {items} on the bus.", "The bus keeps {n}, so {v} - {n} = {w} are left.", -1),
}
"""Events with one number, by name. The names decide the split of a template, so they never
change."""
CONTAINERS = {
    "bags": Event(
        "{She} buys {a} bags with {b} {items} each.",
        "The {a} bags hold {a} * {b} = {p}, so {she} has {v} + {p} = {w}.",
        1,
    ),
    "boxes": Event(
        "{friend} sends {a} boxes with {b} {items} each.",
        "The {a} boxes hold {a} * {b} = {p}, so {she} has {v} + {p} = {w}.",
        1,
    ),
    "packs": Event(
        "{She} opens {a} packs with {b} {items} each.",
        "The {a} packs add {a} * {b} = {p}, which makes {v} + {p} = {w}.",
        1,
    ),
    "jars": Event(
        "{She} fills {a} jars with {b} {items} each for {friend}.",
        "The {a} jars take {a} * {b} = {p}, so {v} - {p} = {w} are left.",
        -1,
    ),
    "baskets": Event(
        "{She} sells {a} baskets with {b} {items} each.",
        "The {a} baskets hold {a} * {b} = {p}, so {she} has {v} - {p} = {w}.",
        -1,
    ),
    "children": Event(
        "{She} gives {a} children {b} {items} each.",
        "The {a} children take {a} * {b} = {p}, which leaves {v} - {p} = {w}.",
        -1,
    ),
}
"""Events about several containers with the same number of items, by name."""
_WORD = re.compile(r"\n| ?[A-Za-z]+| ?[0-9]+|[.,?:]| ?[-+*=]")


@dataclass(frozen=True, slots=True)
class Plot:
    """Everything that a story tells."""

    name: str
    friend: str
    items: str
    question: int
    """Index of the question in `QUESTIONS`."""
    start: int
    """Number of items at the start."""
    events: list[str]
    """Name of each event, in order."""
    amounts: list[list[int]]
    """Numbers of each event: [n], or [number of containers, content of each]."""

    @property
    def numbers(self) -> list[int]:
        """All numbers of the story in their order."""
        return [self.start, *chain(*self.amounts)]

    def story(self) -> str:
        """Return the story, with a question at the end."""
        told = [self._filled(event.told, **values) for event, values in self._steps()]
        return " ".join([self._filled(START), *told, self._filled(QUESTIONS[self.question])])

    def running(self, slip: tuple[int, int] = (-1, 0)) -> list[int]:
        """Return the result of each equation of the working.

        Args:
            slip: index of an equation and the distance by which its result is wrong; the equations
                after it continue from the wrong result.
        """
        return [values[key] for _, values in self._steps(slip) for key in ("p", "w") if key in values]

    def working(self, slip: tuple[int, int] = (-1, 0)) -> str:
        """Return the written reasoning with the answer at its end; see `running` for `slip`."""
        steps = self._steps(slip)
        lines = [self._filled(event.working, **values) for event, values in steps]
        return " ".join([self._filled(WORKING_START), *lines, self._filled(WORKING_END, answer=steps[-1][1]["w"])])

    def _steps(self, slip: tuple[int, int] = (-1, 0)) -> list[tuple[Event, dict[str, int]]]:
        """Return each event with the values of its sentences."""
        at, error = slip
        steps: list[tuple[Event, dict[str, int]]] = []
        value, index = self.start, 0

        def result(correct: int) -> int:
            nonlocal index
            index += 1
            return correct + error * (index - 1 == at)

        for name, numbers in zip(self.events, self.amounts, strict=True):
            event, values = (EVENTS | CONTAINERS)[name], {"v": value}
            if name in CONTAINERS:
                values |= {"a": numbers[0], "b": numbers[1], "p": result(numbers[0] * numbers[1])}
            else:
                values["n"] = numbers[0]
            value = values["w"] = result(value + event.sign * values.get("p", numbers[0]))
            steps.append((event, values))
        return steps

    def _filled(self, sentence: str, **values: int) -> str:
        she = NAMES[self.name]
        her = {"she": "her", "he": "him"}[she]
        cast = {"name": self.name, "friend": self.friend, "items": self.items, "start": self.start}
        return sentence.format(**cast, she=she, She=she.capitalize(), her=her, **values)


def split_words(text: str) -> list[str]:
    """Return the words, numbers and punctuation marks of a text, each with the space before it.

    Args:
        text: story or working; other characters are left out.

    Example:
        >>> split_words("Anna has 12 apples.")
        ['Anna', ' has', ' 12', ' apples', '.']
    """
    return _WORD.findall(text)


def vocabulary(largest: int) -> tuple[str, ...]:
    """Return all words of stories and workings, as `split_words` gives them, sorted.

    Args:
        largest: largest number of a story; every number up to it is a word.
    """
    sentences = [START, WORKING_START, WORKING_END, *QUESTIONS]
    sentences += [sentence for event in (EVENTS | CONTAINERS).values() for sentence in event[:2]]
    words = {"\n", *(f" {number}" for number in range(largest + 1)), *(f" {items}" for items in ITEMS)}
    for name, she in NAMES.items():
        words |= {name, f" {name}", f" {she}", f" {she.capitalize()}", " her" if she == "she" else " him"}
    for sentence in sentences:
        words |= {word for word in split_words(re.sub(r" ?\{\w+\}", "", " " + sentence))}
    return tuple(sorted(words))
