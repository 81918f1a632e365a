"""Word problems with written reasoning: the number of somebody's items changes a few times, and the
completion works out the number after each change.

The task and its reward come from no paper. The reward is that of `arithmetic`: 1.0 for the correct
answer, otherwise a tenth of the share of correct intermediate results.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unmask.tasks.arithmetic import WORKING, running_results
from unmask.tasks.base import NumbersTask, Split, split_of_hash
from unmask.tasks.story_text import (
    CONTAINERS,
    EVENTS,
    ITEMS,
    NAMES,
    QUESTIONS,
    WORKING_END,
    WORKING_START,
    Plot,
    split_words,
    vocabulary,
)

if TYPE_CHECKING:
    from unmask.core.records import Row

LARGEST = 60
"""Largest number that a story reaches."""
MISTAKE = 3
"""Maximum distance of the wrong result in a sloppy demonstration from the correct one."""
_RESULT = re.compile(r"=\s?([0-9]{1,4})(?![0-9])")
_ANSWER = re.compile(r"\bThe answer is ([0-9]{1,4})\.?\s*\Z")
_STATEMENT = re.compile(r"\banswer is\b", re.IGNORECASE)


class Story(NumbersTask):
    """Word problems about a number of items that changes a few times. Splits share no template and
    no multiset of numbers.

    A template is the set of sentences that change the number. Templates and numbers are split
    independently of each other, and an item belongs to a split only if both do. Every sentence
    occurs in every split, so a test story combines known sentences as no training story does. Names,
    items, the question and the order of the events do not make another template.

    Bare prompt: the story. Completion: a sentence with an equation for each event, then "The answer
    is 12." One event of each story is about several containers with the same content and takes two
    equations. The tokens of a tiny model are words, numbers and punctuation marks.

    The reward is 1.0 if the stated answer is correct, whatever the reasoning. Otherwise it is 0.1
    times the share of correct intermediate results: the result of the k-th equation of the
    completion is compared with that of the k-th equation of the solution.
    """

    type: Literal["story"] = "story"
    num_events: int = Field(4, ge=2, le=6)
    """Number of events of a story. The default makes five equations and up to 73 tokens."""
    max_number: int = Field(9, ge=4, le=15)
    """Largest number of items in an event without containers; the smallest is 2. The number at the
    start is at most twice as large."""

    reward_columns: ClassVar[tuple[str, ...]] = ("running",)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        self.require_every_split()
        return self

    @property
    def completion_length(self) -> int:
        """Number of tokens of the longest completion, plus 1 for EOS."""
        longest = sorted(len(split_words(event.working)) for event in EVENTS.values())[1 - self.num_events :]
        of_containers = max(len(split_words(event.working)) for event in CONTAINERS.values())
        return sum(longest) + of_containers + len(split_words(WORKING_START + " " + WORKING_END)) + 1

    @property
    def alphabet(self) -> str:
        return "".join(sorted(set("".join(self.tokens))))

    @property
    def tokens(self) -> tuple[str, ...]:
        return vocabulary(LARGEST)

    def draw_numbers(self, rng: random.Random) -> list[int]:
        """Return the number at the start, one for each simple event, and the number and content of
        the containers."""
        simple = [rng.randint(2, self.max_number) for _ in range(self.num_events - 1)]
        return [rng.randint(3, 2 * self.max_number), *simple, rng.randint(2, 4), rng.randint(2, 5)]

    def build(self, numbers: list[int], rng: random.Random) -> Row | None:
        """Return a story with these numbers; None if its template belongs to another split, or if
        it reaches a number below 1 or above `LARGEST`."""
        start, *simple, count, content = numbers
        events, amounts = rng.sample(sorted(EVENTS), len(simple)), [[number] for number in simple]
        place = rng.randint(0, len(simple))
        events.insert(place, rng.choice(sorted(CONTAINERS)))
        amounts.insert(place, [count, content])
        if split_of_template(events) != self.split_of(numbers):
            return None
        name, friend = rng.sample(sorted(NAMES), 2)
        plot = Plot(name, friend, rng.choice(ITEMS), rng.randrange(len(QUESTIONS)), start, events, amounts)
        running = plot.running()
        if not 1 <= min(running) <= max(running) <= LARGEST:
            return None
        return {
            "prompt": self._prompt(f"{plot.story()}\n", _instruction(plot.story())),
            "answer": plot.working(),
            "numbers": plot.numbers,
            "running": running,
            "plot": asdict(plot),
        }

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the working. If `sloppy`, one equation has a wrong result, and those after it
        continue from there."""
        plot = Plot(**row["plot"])
        if not sloppy:
            return plot.working()
        at = rng.randrange(len(row["running"]))
        errors = [error for error in range(-MISTAKE, MISTAKE + 1) if error]
        possible = [error for error in errors if all(0 <= result <= LARGEST for result in plot.running((at, error)))]
        return plot.working((at, rng.choice(possible)))

    def score(self, answer: str, row: Row) -> float:
        """Return 1.0 for the correct answer, otherwise 0.1 times the share of correct intermediate
        results."""
        if self.is_right(answer, row):
            return 1.0
        running: list[int] = row["running"]
        results = self._results(answer)
        return WORKING * sum(a == b for a, b in zip(results, running, strict=False)) / len(running)

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the completion states the answer at its end, states no other, and it is
        correct. Answers in tags may also be a list of results, of which the last one counts."""
        running: list[int] = row["running"]
        stated = stated_answer(answer)
        if stated is None and self.format != "bare":
            return running_results(answer)[-1:] == running[-1:]
        return stated == running[-1]

    def _results(self, answer: str) -> list[float]:
        """Return the results of the first equations, as many as a solution can have."""
        found = [float(match[1]) for match in islice(_RESULT.finditer(answer), self.num_events + 1)]
        return found if found or self.format == "bare" else running_results(answer)


def stated_answer(text: str) -> int | None:
    """Return the number that a working states as its answer at its end; None if it states none, or
    if it states an answer more than once.

    Args:
        text: any text.

    Example:
        >>> stated_answer("5 + 3 = 8. The answer is 8."), stated_answer("5 + 3 = 8."), stated_answer("The answer is 8 or 9.")
        (8, None, None)
    """
    found = _ANSWER.search(text)
    return int(found[1]) if found and len(list(islice(_STATEMENT.finditer(text), 2))) == 1 else None


def split_of_template(events: Iterable[str]) -> Split:
    """Return the split to which a template belongs, whatever the order of its events.

    Args:
        events: names of the events of a story.

    Example:
        >>> split_of_template(["buy", "bags", "lose", "win"]) == split_of_template(["win", "lose", "bags", "buy"])
        True
    """
    return split_of_hash(f"story template {','.join(sorted(events))}")


def _instruction(story: str) -> str:
    return (
        f"{story}\n\n"
        "Work out the number after each event; where there are several containers, work out first how many they hold "
        "together. Write all these results in order, separated by commas, so that the last one is the answer to the "
        "question, between <answer> and </answer>."
    )
