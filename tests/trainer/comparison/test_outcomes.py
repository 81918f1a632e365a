"""Outcomes of examples are packed without loss, and damaged ones are named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.messages import raises
from unmask.core.errors import RunError
from unmask.trainer.comparison.outcomes import packed, solved_shares


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20), samples=st.integers(1, 3)
)
def test_what_is_packed_can_be_read(rows: list[list[bool]], samples: int) -> None:
    solved = [row[:samples] for row in rows]
    entry = packed([right for row in solved for right in row], samples)
    assert solved_shares(entry).tolist() == [sum(row) / samples for row in solved]
    assert len(entry["solved"]) == -(-len(rows) * samples // 4)


def test_every_outcome_counts() -> None:
    entries = [packed([i == j for j in range(9)])["solved"] for i in range(9)]
    assert len(set(entries)) == 9


@pytest.mark.parametrize(
    "damage", [{"solved": "8"}, {"solved": "xyz"}, {"rows": None}, {"samples": 0}, {"rows": -1}, {"solved": 5}]
)
def test_damaged_outcomes_are_named(damage: dict[str, Any]) -> None:
    with raises(RunError, "cells.jsonl", "Remove their line"):
        solved_shares(packed([True] * 9) | damage)
