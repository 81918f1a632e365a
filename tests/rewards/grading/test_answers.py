"""Answer tags, digits and numbers in arbitrary text."""

from __future__ import annotations

import math

import pytest

from unmask.rewards.grading.answers import (
    answer_in,
    before_end,
    first_digits,
    numbers_in,
    tagged_answer,
)
from unmask.rewards.grading.boxes import last_boxed
from unmask.rewards.grading.wrapping import unwrapped


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("<answer>\n7\n</answer>\n", "7"),
        ("thinking <answer>1</answer>, no: <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "2"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1</answer></answer>", "1"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer>7", "7"),
        ("<answer>7</answer", "7"),
        ("<answer>7</answer}", "7"),
        ("<answer>7\n```", "7"),
        ("</answer>7<answer>", None),
        ("7</answer>", None),
        ("<answer>\n</answer>", None),
        ("<ANSWER>7</ANSWER>", None),
        ("", None),
    ],
)
def test_the_last_tag_with_something_in_it_holds_the_answer(text: str, answer: str | None) -> None:
    assert tagged_answer(text) == answer


@pytest.mark.parametrize(
    "mention",
    [
        "I put it between <answer> and </answer>.",
        "It stands between `<answer>` and `</answer>` tags as asked.",
        "The <answer> tag holds it </answer>",
        "The form was <answer>...</answer>",
        "The form was <answer>your answer here</answer>.",
        "<answer></answer>",
        "<answer> </answer> <answer>\n</answer>",
        "It is in <answer>.",
        "</answer>",
    ],
)
def test_tags_that_are_spoken_of_or_empty_do_not_count(mention: str) -> None:
    for answer in ("18", "def f(x):\n    return x", "\\text{Evelyn}"):
        assert tagged_answer(f"<answer>{answer}</answer> {mention}") == answer
        assert tagged_answer(f"{mention} <answer>{answer}</answer>") == answer


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|endoftext|>", "<|im_end|>", "</s>", "<eos>", "<end_of_turn>"])
def test_text_after_the_end_of_the_turn_is_ignored(token: str) -> None:
    assert before_end(f"18{token}17") == "18"
    assert before_end(f"{token}{token}18{token}") == "18"
    for text in (
        f"<answer>18{token}</answer>",
        f"<answer>18</answer>{token}<answer>17</answer>",
        f"\\boxed{{18{token}}}",
    ):
        assert answer_in(text) == "18"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{ 7 } and so on", "7"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{7}", "7"),
        (r"\Boxed{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7", "7"),
        (r"\boxed7.", "7"),
        (r"boxed{7}", "7"),
        (r"\.boxed{7}", "7"),
        (r"\boxed{}7", "7"),
        (r"\boxed{}7 * 8 + 12", "7 * 8 + 12"),
        (r"\boxed{}7 is it", "7"),
        (r"\boxed{7} then \boxed{}", "7"),
        (r"\boxed>" + "\n" + r"\boxed{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{1} and \boxed{2", "2"),
        (r"} \boxed{7}", "7"),
        (r"\boxed{7", "7"),
        ("\\boxed{7\nand more", "7"),
        (r"\boxed{7>", "7"),
        (r"\boxed{7\text{ minutes>", r"7\text{ minutes}"),
        (r"\boxed{}", None),
        (r"\boxed", None),
        ("He boxed 7 eggs", None),
        (r"\fracboxed{7}{2}", None),
        ("\boxed{7}", None),
        ("", None),
    ],
)
def test_the_last_box_holds_the_answer_whether_closed_or_broken(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<answer>It is \boxed{2}.</answer>", "2"),
        (r"<answer>2</answer> \boxed{1}", "2"),
        ("<answer>\n</answer>\n\\boxed{2}", "2"),
        (r"It is \boxed{2}.", "2"),
        ("<answer>\n\\boxed{2\n</answer>", "2"),
        ("<answer>\n\\boxed{2\n</answer}", "2"),
        (r"<answer>\boxed{2", "2"),
        ("It is so.\n</answer>\n\\boxed{2}", "2"),
        (r"<answer\boxed{2}", "2"),
        ("</reasoning>\n2\n</answer>", "2"),
        ("2 eggs</answer>", "2 eggs"),
        ("So she has 54 + 25 = 79 miles to go.\n</answer>", None),
        # A brace and a tag are missing on one line, so the number may be cut off.
        (r"<answer>\boxed{2</answer>", None),
        ("<think>\\boxed{1}</think> It is \\boxed{2}.", "2"),
        ("<reasoning>It is \\boxed{2}.</reasoning>", "2"),
        ("2", None),
    ],
)
def test_the_tag_comes_first_and_the_box_within_it_or_without_it(text: str, answer: str | None) -> None:
    assert answer_in(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3} or \boxed{4}", "3 or 4"),
        (r"\boxed{3}\boxed{4}", "3, 4"),
        (r"\boxed{3}, $\boxed{4}$", "3, 4"),
        (r"\boxed{3}\boxed{3}", "3"),
        (r"First \boxed{3} eggs, then \boxed{4} more.", "4"),
        (r"It is not \boxed{5}.", "not 5"),
        (r"\boxed{5} is wrong.", "5 is wrong"),
        (r"\boxed{5} dozen", "5 dozen"),
        (r"\boxed{5} or so.", "5 or so"),
        (r"maybe $\boxed{5}$", "maybe 5"),
        (r"\boxed{5}?", "5 ?"),
        (r"\boxed{5} miles.", "5"),
        (r"\boxed{5} more cupcakes", "5"),
        (r"\boxed{8}\  years old.", "8"),
    ],
)
def test_boxes_side_by_side_and_words_of_doubt_are_part_of_the_answer(text: str, answer: str) -> None:
    assert answer_in(f"So {text}") == answer
    assert answer_in(f"<answer>{text}</answer>") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is not <answer>5</answer>.", "not 5"),
        ("<answer>5</answer> is wrong.", "5 is wrong."),
        ("<answer>4</answer> or <answer>5</answer>", "or 5"),
        ("maybe <answer>5</answer>", "maybe 5"),
        ("<answer>5</answer>?", "5 ?"),
        ("<answer>4</answer>, no: <answer>5</answer>", "5"),
        ("<answer>5</answer> miles", "5"),
    ],
)
def test_words_of_doubt_beside_a_tag_are_part_of_the_answer(text: str, answer: str) -> None:
    found = answer_in(text)
    assert found is not None
    assert found.rstrip(".") == answer.rstrip(".")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>17</think>\nThe answer is 18.", "18"),
        ("The answer is **18**.", "18"),
        ("**Answer:** 18", "18"),
        ("**Final Answer: 18**", "18"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("Answer: 17\n\nSo the answer is: 18 eggs. I am sure.", "18 eggs"),
        ("The answer is 18. Wait, it is 17.", None),
        ("The answer is 18.\nActually, 17.", None),
        ("The answer is not 18.", "not 18"),
        ("She answers 18 letters.", None),
        ("So she has 18 eggs.", None),
    ],
)
def test_an_announcement_is_read_without_a_tag_or_box(text: str, answer: str | None) -> None:
    found = answer_in(text)
    assert (unwrapped(found) if found else found) == answer


def test_what_surrounds_an_answer_is_taken_off() -> None:
    fives = [
        " 5 ",
        "5.",
        "**5**",
        "*5*",
        "__5__",
        "`5`",
        "$5$",
        "$$5$$",
        r"\(5\)",
        r"\[ 5 \].",
        r"5\,.",
        "5,",
        "5..",
        "5…",
        r"5 \\",
        '"5"',
        "'5'",
        "“5”",
        "```\n5\n```",
        "```text\n5\n```",
    ]
    led_in = ["The answer is 5", "**Answer:** 5", "**The answer is 5**", "Total: 5", "Total = $5$", "#### 5", "5 <br>"]
    assert [unwrapped(text) for text in fives + led_in] == ["5"] * (len(fives) + len(led_in))
    assert [
        unwrapped(text) for text in ["$5", ".5", "$", "**", "", "$5$ and $6$", '"5" or "6"', "5'", "```\n5\n6\n```"]
    ] == [
        "$5",
        ".5",
        "$",
        "**",
        "",
        "$5$ and $6$",
        '"5" or "6"',
        "5'",
        "5\n6",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<answer>",
            "</answer>",
            "<answer>7",
            "7</answer>",
            "<answer> </answer>",
            "<answer>and</answer>",
            "</",
            "> ",
            "and ",
        ),
        *(r"\boxed{", r"\boxed{1}", "{", "}", "\\", r"\boxed{{}", r"\boxed{}", r"\boxed 5", r"not \boxed{5} or "),
        *("the answer is ", "answer: 5\n", "#### 5", "</reasoning>", "<|eot_id|>", "**", "...", " , ", "\n", "$"),
    ],
)
def test_a_piece_repeated_many_times_is_read_like_a_few_of_them(piece: str) -> None:
    for read in (answer_in, tagged_answer, last_boxed, unwrapped):
        few, many = read(piece * 300), read(piece * 30_000)  # a quadratic search would take minutes
        assert (few is None) == (many is None)
        assert (few or "")[:20] == (many or "")[:20]


@pytest.mark.parametrize(
    "text",
    [
        r"x = \boxed{42}",
        r"$23 + 19 = \boxed{42}$",
        r"- \boxed{42}",
        r"* \boxed{42}",
        r"**\boxed{42}**",
        r"\boxed{42}!",
        r"--> \boxed{42}",
        r"\boxed{42} (= 23 + 19)",
        r"\boxed{42} = 23 + 19",
        r"\boxed{42}{42}",
        r"\boxed{42}^\circ",
        r"\boxed{42}\%",
        r"\$\boxed{42}",
        r"\boxed{42} - the total",
        r"is\boxed{42}",
        r"they received 42\boxed{42}",
        r"\mathbf{\boxed{42}}",
        r"\boxed{42} \text{ cm}^2",
        r"\approx \boxed{42}",
    ],
)
def test_what_leads_up_to_a_box_leaves_it_alone(text: str) -> None:
    assert answer_in(f"so\n<answer>\n{text}\n</answer>") == answer_in(f"so\n{text}") == "42"


TOLD_OF = """
\\boxed{42} apples | \\boxed{42} years old in 3 years. | \\boxed{42} dollars per week. | \\boxed{42}. Half of them are red.
| \\boxed{42} is the total. | \\boxed{42} more cupcakes | \\boxed{42} \\text{ hours} | \\(\\boxed{42}\\) seconds |
\\boxed{42} days to save his money. | Thus, he has \\boxed{42} screws left over. | \\boxed{42} eggs in a week.
"""
CHANGED = """
\\boxed{42} gazillion | \\boxed{42} and counting | \\boxed{42} times two | \\boxed{42} out of 50 | \\boxed{42} fewer |
\\boxed{42} I guess | \\boxed{42} to 45 | \\boxed{42} in binary | \\boxed{42} hundredths | \\boxed{42} feet 6 inches |
\\boxed{42}:30 | \\boxed{42} remainder 2 | \\boxed{42} hours and 30 minutes | \\boxed{42} with 2 left | \\boxed{42} too many
| \\boxed{42} halves | \\boxed{42} at least | anything but \\boxed{42} | double \\boxed{42} | half of \\boxed{42} | twice
\\boxed{42} | \\boxed{42} \\text{ thousandths}
"""


def test_a_sentence_around_the_box_of_a_tag_is_read_unless_it_changes_the_number() -> None:
    def found(line: str) -> str | None:
        return answer_in(f"so\n<answer>\n{' '.join(line.split())}\n</answer>")

    assert [line for line in TOLD_OF.split("|") if found(line) != "42"] == []
    assert [line for line in CHANGED.split("|") if found(line) in ("42", None)] == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"-\boxed{42}", "-42"),
        (r"$-$\boxed{42}", "-42"),
        (r"x = - \boxed{42}", "-42"),
        (r"-\boxed{x-2}", "-(x-2)"),
        (r"\boxed{5}K", "5K"),
        (r"\boxed{42}x", "42x"),
        (r"\boxed{42} - 3", "(42)- 3"),
        (r"3 \times \boxed{42}", r"\times (42)"),
        (r"\boxed{42}^2", "(42)^2"),
        (r"\sqrt{\boxed{42}}", r"\sqrt{(42)}"),
        (r"\boxed{42}\pi", r"(42)\pi"),
        (r"\boxed{1}000", "(1)000"),
        (r"\boxed{42}{3}", "(42){3}"),
        (r"x \le \boxed{42}", r"\le (42)"),
        (r"about \boxed{42}", "about 42"),
        (r"\boxed{}\frac{7}{12}", r"\frac{7}{12}"),
        ("**Final Answer**\n\n42 miles.", "42 miles"),
    ],
)
def test_a_box_in_a_formula_is_read_with_it(text: str, answer: str) -> None:
    found = answer_in(f"so\n{text}")
    assert found is not None
    assert found.replace(" ", "") == answer.replace(" ", "")


def test_digits_are_ascii_and_no_more_than_the_limit() -> None:
    assert first_digits("1|2 3²٣4", 16) == "1234"
    assert first_digits("12345", 3) == "123"
    assert first_digits("none", 3) == ""


def test_numbers_are_compared_as_values_not_as_strings() -> None:
    assert numbers_in("+07 7 7.0 007") == [7.0] * 4
    assert numbers_in("-2,3-4") == [-2.0, 3.0, -4.0]
    assert numbers_in("x٣²") == []


def test_a_number_with_too_many_digits_is_not_a_number() -> None:
    assert numbers_in("9" * 32) == [1e32]
    for digits in (33, 1_000_000):
        (number,) = numbers_in("9" * digits)
        assert math.isnan(number)
