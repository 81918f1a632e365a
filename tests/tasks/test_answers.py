"""Answer tags, digits and numbers in arbitrary text."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.tasks.answers import first_digits, last_answer, numbers_in

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
