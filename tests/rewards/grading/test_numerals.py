"""Numbers as people and models write them, and texts that are not one number."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.rewards.grading.numerals import LONGEST, read_number

NUMBERS = {
    "18": 18,
    "-18": -18,
    "+18": 18,
    "−18": -18,
    "18.": 18,
    "18.0": 18,
    ".5": Fraction(1, 2),
    "0.50": Fraction(1, 2),
    "1,000": 1000,
    "1,000,000.25": Fraction(4000001, 4),
    r"10,\!080": 10080,
    r"11,\! 111,\! 111,\! 100": 11111111100,
    "10{,}080": 10080,
    "1/2": Fraction(1, 2),
    r"\frac{1}{2}": Fraction(1, 2),
    r"\dfrac{17}{50}": Fraction(17, 50),
    r"\frac12": Fraction(1, 2),
    r"\frac 34": Fraction(3, 4),
    r"\frac9{19}": Fraction(9, 19),
    r"-\frac{35}{9}": Fraction(-35, 9),
    r"\frac{-35}{9}": Fraction(-35, 9),
    "1 1/2": Fraction(3, 2),
    "1½": Fraction(3, 2),
    r"137 \frac{1}{2}": Fraction(275, 2),
    r"1\frac{4}{5}": Fraction(9, 5),
    "-1 1/2": Fraction(-3, 2),
    "$18": 18,
    "-$18": -18,
    "$-18": -18,
    r"\$32,\!348": 32348,
    "€5": 5,
    "18$": 18,
    "5¢": 5,
    "$ 18 $": 18,
    "**18**": 18,
    r"\(18\)": 18,
    r"\text{18}": 18,
    "18 dollars": 18,
    "18 miles per hour": 18,
    "60 km/h": 60,
    "100km": 100,
    "5 m": 5,
    r"5.4 \text{ cents}": Fraction(27, 5),
    r"15\mbox{ cm}^2": 15,
    r"106^\circ": 106,
    r"\frac{270}7\text{ degrees}": Fraction(270, 7),
    "2 million": 2_000_000,
    "x = 5": 5,
    "50%": 50,
    r"50\%": 50,
    "50 percent": 50,
    "The answer is 18.": 18,
    "Final answer: $18": 18,
    "Answer:18": 18,
    "#### 18": 18,
    "= 18": 18,
    "(18)": 18,
    "(-18)": -18,
    "{18}": 18,
    "`18`": 18,
    '"18"': 18,
    r"\frac{1}{-2}": Fraction(-1, 2),
    r"1.8 \times 10^4": 18_000,
    r"-1.8\cdot 10^{-4}": Fraction(-18, 100_000),
    "18 months": 18,
}

NO_NUMBERS = r"""
- | . | --18 | +-18 | $-$18 | 1..5 | 1.2.3 | 1.000.000 | 1,00 | 10,00,000 | 1,0000 | 1/0 |
\frac{1}{0} | \frac{18}{} | 1/2/3 | 18! | 2x | 2i | 2\pi | xy | x | 0x12 | ٣ | 1² | 2^3 | 2(9) |
[18 | 18) | ((18)) | (18)(19) | (18, 19) | {1}{8} |
nan | inf | \infty | eighteen | 18%% | 5:30 | = | 9+9 | 9*2 | 18-19 | ½or | 18 19 | 1 00 |
 17 or 18 | 18 and 19 | 18 to 19 | not 18 | about 18 | 18 is wrong | 18 minus 1 | 18 times 2 |
 18 half | 5 squared | 2 pi | 2 sqrt(3) | 18 % 5 | 9 * 2 = 18 | a=b=18 | 18\cdot 2 | 3\frac{1}{2}x | The
answer is not 18 | The answer is 17 or 18 | answers 18 | 18 tenths | 18 below zero | 2 x 18 | 2 \times 10^{999} |
answer = 9 + 9
"""


IN_PROSE = """
Hence, 42 | The minimum number of buses is 42. | Her change is $42 | 42 laps around the track | <b>42</b> | _42_ | 42 ✓ | The
remainder is 42 | 42 students who passed | 42 people who like tea | 42 kids who did not eat | 42 guests who were invited | 42
girls that play chess | 42 red and white marbles | 42 cats and dogs | 42 pens and pencils left | 42 cookies were eaten | 42
will be left | 42 people can fit | 42 boxes will be needed | 42 minutes until the movie starts | 42 feet above ground | 42
points above average | 42 days off | 42 two-liter bottles | 42 ten-dollar bills | 42 third-graders | 42 half-price tickets |
42 T-shirts | 42 short-sleeved shirts | 42 students failed | 42 bad apples | 42 tickets sold | exactly 42 | only 42 | just 42
minutes | 42 sq. m | It takes him 42 minutes | It takes Tom 42 minutes | This leaves her with 42 apples | She ends up with 42
dollars | She should pay $42 | He could make 42 sandwiches | Tom must drive 42 miles | 42 \\mathrm{~cm} | \\text{\\$}42 | 84
\\div 2 | \\Rightarrow 42 | \\left.42\\right. | \\textcolor{blue}{42} | \\bigl(42\\bigr) | 42\\hspace{1mm} | {84 \\over 2} |
\\nicefrac{84}{2} | 42\\ | 42 \\quad
"""

NOT_IN_PROSE = """
a minimum of 42 | There are at least 42 | The minimum is at least 42 | a change of 42 or 43 | 42 gazillion | 42 zillions | 42
quintillion | 42 elevenths | 42 twentieths | 42 sevenths | 42 grosses | 42 thou | 42 myriads | 42 in binary | 42 hmm | 42 idk
| 42 dubious | 42 tentative | 42 inaccurate | 42 bogus | 42 refuted | 42 fails the check | 42 looks suspicious | 42 too high |
42 ignoring tax | 42 off | 42 and change | 42 and counting | 42 dollars and a dime | 42 apples and some pears | 42 apples and
another apple | 42 apples and one pear | 42 hours and a half | 42 apples and ten pears | 42 apples is it | 42 dollars is too
much | 42 over two | 42 until ten | 42 students who maybe passed | 42 half-dozen | 42 twenty-one | It could be 42 | It should
not be 42 | counterexample: 42 | about 42 | almost 42 | It takes about 42 | 42 incremented | 42 apples are ten
"""


@pytest.mark.parametrize("text", [" ".join(part.split()) for part in IN_PROSE.split("|")])
def test_the_counted_thing_may_have_a_long_description(text: str) -> None:
    number = read_number(text, in_prose=True)
    assert number is not None
    assert number.value == 42


@pytest.mark.parametrize("text", [" ".join(part.split()) for part in NOT_IN_PROSE.split("|")])
def test_words_that_change_or_doubt_a_number_make_it_none(text: str) -> None:
    number = read_number(text, in_prose=True)
    assert number is None or number.value != 42


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_however_it_is_written(text: str) -> None:
    number = read_number(text)
    assert number is not None
    assert number.value == NUMBERS[text]
    assert number.is_percent == ("%" in text or "percent" in text)


@pytest.mark.parametrize("text", ["", " ", *(" ".join(part.split()) for part in NO_NUMBERS.split("|"))])
def test_a_text_that_is_not_one_number_is_none(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("a", "b", "are_equal"),
    [
        ("1,000", "1000", True),
        ("3.0", "3", True),
        (r"\frac{6}{4}", "1.5", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("5000%", "50", False),
        ("50%", "5", False),
        ("1/3", "0.333333", False),
        ("-3", "3", False),
        ("18", "18.0001", False),
    ],
)
def test_numbers_are_compared_as_values(a: str, b: str, are_equal: bool) -> None:
    first, second = read_number(a), read_number(b)
    assert first is not None
    assert second is not None
    assert first.equals(second) == second.equals(first) == are_equal


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.0", "${:,}", "{} apples", r"\({}\)", "n = {}"])
)
@settings(max_examples=200)
def test_an_integer_survives_every_way_of_writing_it(value: int, way: str) -> None:
    number = read_number(way.format(value))
    assert number is not None
    assert number.value == value


@given(st.text(max_size=60) | st.text("0123456789.,-+/%$ xm\\{}frac", max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_number_or_none(text: str) -> None:
    number = read_number(text)
    assert number is None or isinstance(number.value, Fraction)


@pytest.mark.parametrize(
    "text", ["9" * 200, "1," * 100, "1" + " per" * 49, "1" + " a" * 99, "1" + "m" * 199, "$" * 200]
)
def test_the_longest_text_that_is_read_has_200_characters(text: str) -> None:
    padded = text.ljust(LONGEST)
    assert read_number(padded) == read_number(text)
    assert read_number("5".ljust(LONGEST)) is not None
    assert read_number("5".ljust(LONGEST + 1)) is None
    assert read_number(text * 10_000) is None
