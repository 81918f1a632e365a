"""Story: the reasoning, partial credit, and the split by template and by numbers."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest
from pydantic import ValidationError

from unmask.rewards.grading.expressions import evaluate
from unmask.tasks import Story
from unmask.tasks.base import Split, stable_hash
from unmask.tasks.story import LARGEST, split_of_template
from unmask.tasks.story_text import CONTAINERS, EVENTS, Plot, split_words, vocabulary

PLOT = Plot("Anna", "Ben", "apples", 0, 5, ["find", "bags", "give"], [[4], [2, 3], [7]])
ROW = {"running": [9, 6, 15, 8]}
RIGHT = PLOT.working()
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize("options", [{"num_events": 1}, {"num_events": 7}, {"max_number": 3}, {"max_number": 16}])
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Story.model_validate(options)


def test_a_story_and_its_reasoning_never_change() -> None:
    assert PLOT.story() == (
        "Anna has 5 apples. She finds 4 apples on the way. She buys 2 bags with 3 apples each. She gives Ben 7 apples. "
        "How many apples does she have now?"
    )
    assert RIGHT == (
        "Anna starts with 5 apples. With the 4 found, she has 5 + 4 = 9. The 2 bags hold 2 * 3 = 6, so she has 9 + 6 = 15. "
        "Ben takes 7, so she has 15 - 7 = 8. The answer is 8."
    )
    assert PLOT.running() == ROW["running"]
    assert PLOT.numbers == [5, 4, 2, 3, 7]


def test_the_first_items_never_change() -> None:
    first = Story().row("train", 0, 0)
    assert first["numbers"] == [18, 3, 3, 8, 5, 8]
    assert first["prompt"].startswith(
        "David has 18 marbles. He buys 3 bags with 3 marbles each. He leaves 8 marbles on the bus. "
    )


@pytest.mark.parametrize("num_events", [2, 4, 6])
def test_every_equation_is_true_and_continues_from_the_one_before(num_events: int) -> None:
    task = Story(num_events=num_events)
    for row in task.rows("test", 30):
        equations = re.findall(r"(\d+ [-+*] \d+) = (\d+)", row["answer"])
        assert [int(result) for _, result in equations] == row["running"]
        assert all(evaluate(left).value == int(result) for left, result in equations)
        value = row["numbers"][0]
        for left, result in equations:
            if "*" not in left:
                assert int(left.split()[0]) == value
                value = int(result)
        assert row["answer"].endswith(f"The answer is {value}.")
        assert 1 <= min(row["running"]) <= max(row["running"]) <= LARGEST
        assert len(row["running"]) == num_events + 1


def test_every_event_tells_its_numbers_and_uses_them_in_an_equation_of_its_sign() -> None:
    for name, event in (EVENTS | CONTAINERS).items():
        amounts = [2, 3] if name in CONTAINERS else [4]
        plot = Plot("Tom", "Ida", "nuts", 1, 20, [name], [amounts])
        told = plot.story().split(". ", 1)[1]
        assert [int(number) for number in re.findall(r"\d+", told)] == amounts, name
        change = 6 if name in CONTAINERS else 4
        assert plot.running()[-1] == 20 + event.sign * change
        assert f"20 {'+' if event.sign > 0 else '-'} {change} = {20 + event.sign * change}" in plot.working()
        assert "{" not in plot.story() + plot.working()
        assert not {"she", "She", "her"} & set(re.findall(r"\w+", plot.story() + plot.working()))


def test_splits_share_neither_templates_nor_numbers() -> None:
    rows = {split: Story().rows(split, 100) for split in SPLITS}
    templates = [{",".join(sorted(row["plot"]["events"])) for row in rows[split]} for split in SPLITS]
    numbers = [{tuple(sorted(row["numbers"])) for row in rows[split]} for split in SPLITS]
    for parts in (templates, numbers):
        assert all(len(part) > 30 for part in parts)
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(parts, 2))


def test_a_split_by_story_would_share_templates_and_numbers() -> None:
    """Negative control: the comparison above finds what a split by the hash of the story shares."""
    sides: list[list[set[str]]] = [[set(), set()], [set(), set()]]
    for row in Story(num_events=2, max_number=4).rows("train", 400):
        side = sides[stable_hash(row["prompt"]) % 2]
        side[0].add(",".join(sorted(row["plot"]["events"])))
        side[1].add(str(sorted(row["numbers"])))
    assert len(sides[0][0] & sides[1][0]) > 20
    assert len(sides[0][1] & sides[1][1]) > 20


def test_the_split_by_template_never_changes_and_ignores_the_order_of_events() -> None:
    counts = Counter(split_of_template([event, container]) for event in EVENTS for container in CONTAINERS)
    assert counts == {"train": 50, "test": 23, "validation": 11}
    rng = random.Random(0)
    for _ in range(50):
        events = [*rng.sample(sorted(EVENTS), 3), rng.choice(sorted(CONTAINERS))]
        assert split_of_template(events) == split_of_template(rng.sample(events, 4))


def test_every_sentence_of_the_test_stories_is_known_from_training() -> None:
    of = {split: {event for row in Story().rows(split, 100) for event in row["plot"]["events"]} for split in SPLITS}
    assert of["train"] == of["test"] == {*EVENTS, *CONTAINERS}


@pytest.mark.parametrize(
    "text",
    [RIGHT, "The answer is 8.", "The answer is 8", "5 + 4 = 9. The answer is 8. ", "= 1 = 2 = 3 = 4. The answer is 8."],
)
def test_the_stated_answer_decides_whatever_the_reasoning(text: str) -> None:
    assert Story().score(text, ROW) == 1.0
    assert Story().solved(text, ROW)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (RIGHT.replace("is 8.", "is 9."), 1),
        (RIGHT.replace("The answer is 8.", ""), 1),
        (PLOT.working((3, 1)), 3 / 4),
        (PLOT.working((1, 2)), 1 / 4),
        # An error of the first step spoils all that continues from it; the product does not.
        (PLOT.working((0, -1)), 1 / 4),
        ("9, 6, 15, 8", 0),
        ("= 6 = 9 = 15 = 8", 2 / 4),
        ("= 9 = 6 = 15", 3 / 4),
        ("=9 =6 =15 =8 =7. The answer is 7.", 1),
        ("= 00009 = 6", 0),
        ("= 0009", 1 / 4),
        ("9", 0),
    ],
)
def test_a_wrong_answer_earns_a_tenth_of_the_share_of_right_results(text: str, share: float) -> None:
    assert Story().score(text, ROW) == pytest.approx(0.1 * share)
    assert not Story().solved(text, ROW)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 8 or 9.",
        "The answer is 9. The answer is 8.",
        "The answer is 8. The answer is 8.",
        "The answer is 8. Or 9.",
        "The answer is not 8.",
        "My answer is 9, but the answer is 8.",
        "The answer is 88.",
        "The answer is 8.5.",
        "The answer is -8.",
        "The answer is 00008.",
        "answer is 8",
        "8",
        "The answer is 7." * 50_000,
        "The answer is " * 50_000 + "8.",
        "= 8" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_an_unclear_or_hostile_answer_is_not_solved(text: str) -> None:
    assert not Story().solved(text, ROW)
    assert Story().score(text, ROW) <= 0.1


def test_a_tagged_answer_lists_results_or_reasons() -> None:
    task = Story(format="tagged")
    for text in ("9, 6, 15, 8", "8", "5 + 4 = 9, 2 * 3 = 6, 9 + 6 = 15, 15 - 7 = 8", RIGHT):
        assert task.solved(f"Let me think.\n<answer>{text}</answer>", ROW), text
    for text in ("9, 6, 15, 7", "8 or 9", "", RIGHT.replace("is 8.", "is 9.")):
        assert not task.solved(f"<answer>{text}</answer>", ROW), text
    assert task.score("9, 6, 15, 7", ROW) == pytest.approx(0.1 * 3 / 4)


def test_a_sloppy_demonstration_has_one_mistake_and_continues_from_it() -> None:
    task, rng = Story(), random.Random(0)
    places: Counter[int] = Counter()
    for row in task.rows("train", 200):
        text = task.demonstration(row, rng, sloppy=True)
        equations = re.findall(r"(\d+ [-+*] \d+) = (\d+)", text)
        wrong = [i for i, (left, result) in enumerate(equations) if evaluate(left).value != int(result)]
        assert len(wrong) == 1
        places[wrong[0]] += 1
        assert text.endswith(f"The answer is {equations[-1][1]}.")
        assert not task.solved(text, row)
        assert set(split_words(text)) <= set(task.tokens)
    assert set(places) == {0, 1, 2, 3, 4}


def test_the_vocabulary_is_small_and_holds_every_word_of_rows_and_demonstrations() -> None:
    task, rng, used = Story(), random.Random(0), set()
    for row in task.rows("train", 400):
        for text in (row["prompt"], row["answer"], task.demonstration(row, rng, sloppy=True)):
            words = split_words(text)
            assert "".join(words) == text
            used |= {*words}
    assert used <= set(task.tokens)
    # Every word that is not a number occurs.
    assert {word for word in task.tokens if not word.strip().isdigit()} - used <= {" Ella", " Grace", " Ida"}
    assert 150 < len(vocabulary(LARGEST)) < 300
