"""Comparison of answers without algebra: correct, wrong, or left to math-verify."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.rewards.grading.latex import same_answer


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("10080", r"10,\!080", True),
        (r"\dfrac{3}{2}", "1.5", True),
        ("1 2", "12", False),
        ("600 + 650", "1250", False),
        (r"\sqrt{4}", "2", False),
        (r"\text{Evelyn}", r"\text{Evelyn}", True),
        ("evelyn", r"\text{Evelyn}", True),
        (r"\textbf{ Evelyn }.", r"\text{Evelyn}", True),
        ("Navin", r"\text{Evelyn}", False),
        ("B", r"\text{(B)}", True),
        (r"\text{(C)}", r"\text{(B)}", False),
        ("2516_{8}", "2516_8", True),
        ("2516", "2516_8", True),
        ("2516_7", "2516_8", False),
        ("1358", "2516_8", False),
        (r"\left(3,\, \dfrac{\pi}{2}\right)", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"$90^{\circ} + x$", r"90^\circ+x", True),
        (r"\sqrt{8}", r"2\sqrt{2}", None),
        ("q - p", "p - q", None),
        ("", r"\pi", False),
        (" ", "0", False),
        ("x" * 1001, "x", False),
    ],
)
def test_a_verdict_is_right_wrong_or_open(answer: str, gold: str, verdict: bool | None) -> None:
    assert same_answer(answer, gold) is verdict


@given(st.text(max_size=80), st.text(max_size=20) | st.sampled_from(["12", r"\text{(B)}", "2516_8", "p - q"]))
@settings(max_examples=300)
@pytest.mark.slow
def test_any_two_texts_can_be_compared(answer: str, gold: str) -> None:
    assert same_answer(answer, gold) in (True, False, None)
    assert same_answer(gold, gold) is bool(gold.strip())
