"""Rewards for correct answers, as functions that a recipe names by path."""

from __future__ import annotations

import pytest

from unmask.recipes.load import load_recipe
from unmask.rewards import correct_math, correct_number, exact_answer
from unmask.rewards.protocol import Score, load_reward, reasons_of
from unmask.rewards.scorer import Scorer


def test_numbers_are_compared_as_values_and_not_as_strings() -> None:
    """In the release, strings are compared, so "3.0" and "1000" are wrong for "3" and "1,000"."""
    texts = ["3.0", "1000", "-3", "$18.00", "17", "17 or 18", ""]
    golds = ["3", "1,000", "#### -3", "work\n#### 18", "18", "18", "18"]
    scores = correct_number([f"so\n<answer>{text}</answer>" for text in texts], golds)
    assert scores == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert [isinstance(score, Score) for score in scores] == [False] * 5 + [True] * 2


def test_an_exact_answer_is_letter_for_letter() -> None:
    texts = ["<answer>\nOslo </answer>", "<answer>oslo</answer>", "Oslo", "<answer>7</answer>"]
    assert exact_answer(texts, ["Oslo", "Oslo", "Oslo", 7]) == [1.0, 0.0, 0.0, 1.0]


def test_expressions_are_compared_by_algebra() -> None:
    pytest.importorskip("math_verify")
    texts = [r"\boxed{\sqrt{8}}", r"<answer>2\sqrt{2}</answer>", r"\boxed{\sqrt{6}}", r"2\sqrt{2}"]
    scores = correct_math(texts, [r"2\sqrt{2}"] * 4)
    assert scores == [1.0, 1.0, 0.0, 0.0]
    assert getattr(scores[3], "reason", None) == "unparsed"


def test_a_recipe_names_them_by_path_with_the_papers_weights() -> None:
    """In d1 and EGSPO, a correct full answer to GSM8K earns 2.0 + 0.5 + 0.5 + 0.5 + 0.5."""
    names = ["correct_number", "integer_answer", "reasoning_then_answer", "answer_tag", "tag_count"]
    recipe = load_recipe(
        "sudoku-tiny",
        [f"reward_funcs=[{','.join(f'unmask.rewards:{n}' for n in names)}]", "reward_weights=[2.0,0.5,0.5,0.5,0.5]"],
    )
    scorer = Scorer(dict(map(load_reward, recipe.reward_funcs)), recipe.reward_weights)
    row = {"prompt": "6 * 3?", "answer": "18"}
    right = "<reasoning>\n6 * 3\nis 18\n</reasoning>\n<answer>18</answer>"
    scores = scorer([row] * 3, [right, right.replace(">18<", ">17<"), "18"])
    assert scores.total == [4.0, 2.0, 0.0]
    assert scores.reasons["correct_number"] == {"unparsed": [False, False, True]}
    assert reasons_of(correct_math) == ("unparsed", "timeout")
