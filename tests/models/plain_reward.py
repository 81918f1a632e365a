"""A reward that random weights can tell completions apart by."""

from __future__ import annotations

from typing import Any

from unmask.rewards import per_completion


@per_completion
def plainness(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """Fewer distinct characters are better."""
    return [-float(len(set(text))) for text in completions]
