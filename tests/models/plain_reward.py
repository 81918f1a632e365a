"""A reward that differs between completions of random weights."""

from __future__ import annotations

from typing import Any

from unmask.rewards import per_completion


@per_completion
def plainness(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """Return a reward that falls with the number of distinct characters."""
    return [-float(len(set(text))) for text in completions]
