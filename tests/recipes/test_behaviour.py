"""The level at which a recipe corrects for the behaviour policy, and the settings that are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.paths import ROOT
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.methods import METHODS
from unmask.recipes.load import load_recipe
from unmask.recipes.schema import TrainRecipe

TOKENS = {"type": "agrpo"}
STEPS = {"type": "egspo"}
COMPLETIONS = {"type": "espo"}
PAIRS = {"type": "vrpo"}


@pytest.fixture
def approximate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamplerConfig, "is_exact", property(lambda self: False))


def recipe(method: dict[str, Any], **behaviour: Any) -> TrainRecipe:
    return load_recipe("sudoku-tiny", {"method": method, "behaviour": behaviour})


def weighted(method: dict[str, Any], **behaviour: Any) -> str | None:
    chosen = recipe(method, **behaviour)
    return chosen.weighted_level


def measured(method: dict[str, Any], **behaviour: Any) -> str | None:
    chosen = recipe(method, **behaviour)
    return chosen.measured_level


@pytest.mark.parametrize("method", [TOKENS, STEPS, COMPLETIONS, PAIRS], ids=str)
def test_an_exact_rollout_is_not_weighted_by_default(method: dict[str, Any]) -> None:
    assert weighted(method) is None
    assert measured(method) is None


@pytest.mark.usefixtures("approximate")
@pytest.mark.parametrize(
    ("method", "level"),
    [
        (TOKENS, "token"),
        (STEPS, "step"),
        (PAIRS, None),
        ({"type": "egspo_ca"}, None),
        ({"type": "egspo_ca", "form": "unbiased"}, "step"),
        ({"type": "dispo", "terminal_weight": 0.0}, None),
    ],
    ids=str,
)
def test_an_approximate_rollout_is_weighted_by_the_unit_of_the_methods_own_ratio(
    method: dict[str, Any], level: str | None
) -> None:
    assert weighted(method) == measured(method) == level


@pytest.mark.usefixtures("approximate")
def test_without_weights_an_approximate_rollout_is_still_measured() -> None:
    assert weighted(STEPS, level="off") is None
    assert measured(STEPS, level="off") == "step"
    assert measured(COMPLETIONS, level="off") is None


def test_a_limit_is_enough_to_measure_an_exact_rollout() -> None:
    assert weighted(STEPS, max_ratio=10.0) is None
    assert measured(STEPS, max_ratio=10.0) == "step"


@pytest.mark.usefixtures("approximate")
def test_the_expensive_level_has_to_be_chosen() -> None:
    with raises(ConfigError, "espo", "behaviour.level = sequence", "behaviour.level = off"):
        recipe(COMPLETIONS)
    assert weighted(COMPLETIONS, level="sequence") == "sequence"


@pytest.mark.parametrize(
    ("method", "level"),
    [
        (STEPS, "token"),
        (COMPLETIONS, "step"),
        (PAIRS, "sequence"),
        ({"type": "egspo_ca"}, "step"),
        ({"type": "step_merge", "num_segments": 2}, "token"),
    ],
    ids=str,
)
def test_a_level_that_the_method_cannot_have_is_refused(method: dict[str, Any], level: str) -> None:
    with raises(ConfigError, f"behaviour.level = {level}", str(method["type"])):
        recipe(method, level=level)


def test_merged_steps_can_be_weighted_by_token_if_every_step_is_a_segment() -> None:
    assert weighted({"type": "step_merge", "num_segments": 0}, level="token") == "token"


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("cap", 0.5, "below 1"),
        ("max_ratio", 0.9, "below 1"),
        ("band", [1.5, 2.0], "contain 1"),
        ("band", [-1.0, 2.0], "contain 1"),
    ],
)
def test_a_bound_that_excludes_equal_policies_is_refused(key: str, value: Any, word: str) -> None:
    with raises(ConfigError, f"behaviour.{key}", word):
        recipe(STEPS, **{key: value})


def test_a_limit_without_measured_ratios_is_refused() -> None:
    with raises(ConfigError, "behaviour.max_ratio = 5", "espo", "behaviour.level = sequence"):
        recipe(COMPLETIONS, max_ratio=5.0)


def levels_on_the_page() -> dict[str, set[str]]:
    """Return the level that docs/behaviour.md gives each method for approximate rollouts; several if it depends on
    options."""
    page = (ROOT / "docs" / "behaviour.md").read_text().partition("## Which levels a method has")[2]
    levels: dict[str, set[str]] = {}
    for methods, auto in re.findall(r"^\| (.*?) \| (`\w+`|must be set)", page, flags=re.MULTILINE):
        for name in set(re.findall(r"`(\w+)`", methods)) & METHODS.keys():
            levels.setdefault(name, set()).add("sequence" if auto == "must be set" else auto.strip("`"))
    return levels


@pytest.mark.parametrize("name", METHODS)
def test_the_page_has_the_level_of_every_method(name: str) -> None:
    method = METHODS[name].model_validate({})
    level = method.behaviour_levels(SamplerConfig())[0]
    assert level in levels_on_the_page()[name]
