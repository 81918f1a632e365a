"""Answer tags, digits and numbers in arbitrary text."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.tasks.answers import first_digits, last_answer, last_boxed, numbers_in, unwrapped, written_answer

PIECES = st.lists(st.sampled_from(["<answer>", "</answer>", "a", " ", "\n", "12"]), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("<answer>\n7\n</answer>\n", "7"),
        ("thinking <answer>1</answer>, no: <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "1"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1</answer></answer>", "1"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("</answer>7<answer>", None),
        ("<answer>7", None),
        ("7</answer>", None),
        ("<answer>\n</answer>", None),
        ("<ANSWER>7</ANSWER>", None),
        ("", None),
    ],
)
def test_the_last_complete_tag_holds_the_answer(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


@given(PIECES)
@settings(max_examples=50)
def test_the_answer_is_what_a_dotall_regex_finds_last(text: str) -> None:
    innermost = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    assert last_answer(text) == (innermost[-1].strip() or None if innermost else None)


def test_a_completion_of_opening_tags_is_read_in_linear_time() -> None:
    start = time.perf_counter()
    assert last_answer("<answer>" * 200_000) is None
    assert last_answer("<answer>" * 200_000 + "7</answer>" * 200_000) == "7"
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{ 7 } and so on", "7"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"} \boxed{7}", "7"),
        (r"\boxed{7", None),
        (r"\boxed{}", None),
        (r"\boxed", None),
        ("\boxed{7}", None),
        ("boxed{7}", None),
        ("", None),
    ],
)
def test_the_last_closed_box_holds_the_answer_with_its_braces_matched(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<answer>It is \boxed{2}.</answer>", "2"),
        (r"<answer>2</answer> \boxed{1}", "2"),
        (r"It is \boxed{2}.", "2"),
        (r"<answer>\boxed{2</answer>", None),
        (r"<answer>\boxed{2", None),
        ("2", None),
    ],
)
def test_the_tag_comes_first_and_the_box_within_it_or_without_it(text: str, answer: str | None) -> None:
    assert written_answer(text) == answer


def test_what_surrounds_an_answer_is_taken_off_once() -> None:
    texts = [" 5 ", "5.", "**5**", "$5$", "$$5$$", r"\(5\)", r"\[ 5 \].", r"5\,.", "$5", "5..", ".5", "$", "**", ""]
    assert [unwrapped(text) for text in texts] == ["5"] * 8 + ["$5", "5.", ".5", "$", "**", ""]


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{1}", "{", "}", "\\", r"\boxed{{}"])
def test_a_completion_of_boxes_and_braces_is_read_in_linear_time(piece: str) -> None:
    start = time.process_time()
    written_answer(piece * 50_000)
    assert time.process_time() - start < 2


def test_digits_are_ascii_and_no_more_than_the_limit() -> None:
    assert first_digits("1|2 3²٣4", 16) == "1234"
    assert first_digits("12345", 3) == "123"
    assert first_digits("none", 3) == ""


def test_numbers_are_compared_as_values_not_as_strings() -> None:
    assert numbers_in("+07 7 7.0 007") == [7.0] * 4
    assert numbers_in("-2,3-4") == [-2.0, 3.0, -4.0]
    assert numbers_in("x٣²") == []


def test_a_number_of_a_million_digits_is_no_number_and_costs_nothing() -> None:
    start = time.perf_counter()
    (number,) = numbers_in("9" * 1_000_000)
    assert math.isnan(number)
    assert time.perf_counter() - start < 1
