"""Reward functions that a recipe can name. They have the signature of TRL's reward functions.

Each function is pure and returns a reward between 0 and 1 for each completion. `reward_weights`
holds the factors of the sum of these rewards.

    reward_funcs:
      - unmask.rewards:correct_number
      - unmask.rewards:integer_answer
      - unmask.rewards:tag_count
    reward_weights: [2.0, 0.5, 0.5]
"""

from __future__ import annotations

from unmask.rewards.format import answer_tag, boxed_answer, integer_answer, reasoning_then_answer, tag_count
from unmask.rewards.maths import correct_math, correct_number, exact_answer
from unmask.rewards.protocol import Score, per_completion, reports

__all__ = [
    "Score",
    "answer_tag",
    "boxed_answer",
    "correct_math",
    "correct_number",
    "exact_answer",
    "integer_answer",
    "per_completion",
    "reasoning_then_answer",
    "reports",
    "tag_count",
]
