"""Step maps that describe a path are read, and all others are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask.sampling.remote.format import FormatError
from unmask.sampling.remote.step_maps import steps_in_blocks


@pytest.mark.parametrize(
    ("step_map", "block", "steps"),
    [
        ([1, 2, 3, 4], 4, [0, 1, 2, 3]),
        ([2, 1, 1, 2], 2, [1, 0, 0, 1]),
        ([2, 1, 4, 3], 2, [1, 0, 1, 0]),
        ([1, 1, 2, 3], 2, [0, 0, 0, 1]),
        ([1, 2, 0, 0], 4, [0, 1, -1, -1]),
        ([1, 1, 1, 0], 2, [0, 0, 0, -1]),
        ([], 4, []),
    ],
    ids=str,
)
def test_steps_are_counted_in_blocks_or_in_the_completion(step_map: list[int], block: int, steps: list[int]) -> None:
    assert steps_in_blocks(step_map, len(step_map), block) == steps


@pytest.mark.parametrize(
    ("step_map", "tokens", "words"),
    [
        ([1, 2, 1], 4, ("3 entries", "4 output tokens")),
        ([1, 2, 1], 3, ("middle of a block",)),
        ([1, [2, 5], 1, 2], 4, ("position 1", "[2, 5]", "edited")),
        ([1, "2", 1, 2], 4, ("position 1", "'2'")),
        ([1, 2.0, 1, 2], 4, ("position 1", "2.0")),
        ([1, True, 1, 2], 4, ("position 1", "True")),
        ([1, None, 1, 2], 4, ("position 1", "None")),
        ([1, -1, 1, 2], 4, ("position 1", "-1")),
        ([3, 4, 1, 2], 4, ("contradicts", "block 1")),
        ([1, 3, 2, 4], 4, ("contradicts", "block 1")),
        ([1, 3, 1, 2], 4, ("block 0", "without a gap")),
        ([1, 2, 4, 5], 4, ("block 1", "without a gap")),
    ],
    ids=str,
)
def test_a_map_that_is_no_path_is_refused(step_map: list[Any], tokens: int, words: tuple[str, ...]) -> None:
    with raises(FormatError, *words):
        steps_in_blocks(step_map, tokens, block=2)
