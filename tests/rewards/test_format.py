"""Format rewards, with a test for each bug of the released code that is not repeated."""

from __future__ import annotations

import pytest

from unmask.rewards import answer_tag, boxed_answer, integer_answer, reasoning_then_answer, tag_count

WHOLE = "<reasoning>\nfirst\nthen\n</reasoning>\n<answer>\n5\n</answer>"


def test_a_whole_completion_earns_every_format_reward() -> None:
    assert (
        reasoning_then_answer([WHOLE]) == answer_tag([WHOLE]) == tag_count([WHOLE]) == integer_answer([WHOLE]) == [1.0]
    )


def test_reasoning_of_several_lines_gets_the_format_reward() -> None:
    """In the release, `.` without DOTALL makes format rewards 0 for reasoning of several lines."""
    one_line = WHOLE.replace("first\nthen", "first")
    assert reasoning_then_answer([WHOLE]) == reasoning_then_answer([one_line]) == [1.0]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", " "])
def test_the_newline_after_the_last_tag_is_worth_nothing(end: str) -> None:
    """In the release, a thousandth of the length of the whole text is subtracted, even below 0."""
    long = WHOLE.replace("first", "word " * 10_000)
    assert tag_count([long + end]) == reasoning_then_answer([long + end]) == answer_tag([long + end]) == [1.0]


def test_a_box_is_found_by_its_backslash_and_not_by_a_backspace() -> None:
    r"""In the release, "\b" in a plain string means that only a backspace would earn the bonus."""
    assert boxed_answer([r"<answer>\boxed{5}</answer>"]) == [1.0]
    assert boxed_answer(["<answer>\boxed{5}</answer>"]) == [0.5]


def test_a_text_of_neither_tag_nor_box_earns_nothing() -> None:
    """In the release, every text gets a quarter."""
    assert boxed_answer(["", "5", "boxed 5", r"\boxed{", r"\boxed{}", "<answer>"]) == [0.0] * 6


def test_whole_numbers_are_whole_however_they_are_written() -> None:
    """In the release, str.isdigit rejects signs, commas and decimals, and accepts superscripts."""
    texts = ["-3", "1,000", "3.0", "$18", "2.5", "²", "three", ""]
    assert integer_answer([f"<answer>{text}</answer>" for text in texts]) == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "tag", "whole", "count"),
    [
        ("", 0, 0, 0),
        ("5", 0, 0, 0),
        ("<answer>5</answer>", 1, 0, 0.5),
        ("<answer></answer>", 0, 0, 0.5),
        ("</answer>5<answer>", 0, 0, 0.5),
        ("<answer>5</answer><answer>5</answer>", 0, 0, 0),
        ("<reasoning>a</reasoning><answer>5</answer>", 1, 1, 1),
        ("<reasoning></reasoning><answer>5</answer>", 1, 0, 1),
        ("<reasoning>a</reasoning> so <answer>5</answer>", 1, 0, 1),
        ("<reasoning>a</reasoning><answer>5</answer> done", 1, 0, 1),
        ("<answer>5</answer><reasoning>a</reasoning>", 1, 0, 1),
        ("<reasoning>a<answer>5</answer></reasoning>", 1, 0, 1),
        ("<reasoning>a</reasoning><reasoning>a</reasoning><answer>5</answer>", 1, 0, 0.5),
        ("<answer>" * 1000, 0, 0, 0),
    ],
)
def test_each_format_reward_by_example(text: str, tag: float, whole: float, count: float) -> None:
    assert (answer_tag([text]), reasoning_then_answer([text]), tag_count([text])) == ([tag], [whole], [count])
