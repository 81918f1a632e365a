"""Reward functions as Python callers give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError
from unmask.rewards.given import reward_list


def mine(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def test_one_function_a_path_and_lists_of_both_become_a_list() -> None:
    assert reward_list(()) == []
    assert reward_list(mine) == [mine]
    assert reward_list("rewards.py:mine") == ["rewards.py:mine"]
    assert reward_list((mine, "~/rewards.py:mine")) == [mine, str(Path("~/rewards.py:mine").expanduser())]


@pytest.mark.parametrize(
    ("given", "words"),
    [({"mine": mine}, ("dict", "reward_weights")), ([mine, 3], ("reward_funcs holds 3", "rewards.py:mine"))],
    ids=["dict", "number"],
)
def test_anything_else_is_refused(given: Any, words: tuple[str, ...]) -> None:
    with raises(ConfigError, *words):
        reward_list(given)
