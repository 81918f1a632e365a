"""Tests of the building blocks of a recipe: defaults, and rules between fields."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.helpers.messages import raises
from unmask.core.config import ORDER_NAMES, EvalConfig, OptimConfig, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.settings import Config
from unmask.sampling import ORDERS


def message(**fields: object) -> str:
    """Return the message about a sampler's fields."""
    with pytest.raises(ConfigError) as caught:
        SamplerConfig(**fields)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_default_is_half_as_many_steps_as_positions_and_one_block() -> None:
    sampler = SamplerConfig(max_completion_length=48)
    assert (sampler.steps, sampler.block) == (24, 48)
    assert SamplerConfig(max_completion_length=1).steps == 1
    sampler = SamplerConfig(max_completion_length=48, num_steps=12, block_length=8)
    assert (sampler.steps, sampler.block) == (12, 8)


def test_a_block_that_does_not_tile_is_refused_with_the_divisors() -> None:
    assert message(max_completion_length=256, block_length=48) == (
        "block_length = 48 does not tile max_completion_length = 256. "
        "Use a divisor of 256 (8, 16, 32, 64, 128, 256) or another length."
    )


def test_more_steps_than_positions_are_refused() -> None:
    assert message(max_completion_length=16, num_steps=17) == (
        "num_steps = 17 is more than max_completion_length = 16: each step commits at least one token. "
        "Set num_steps to 16 or less."
    )


def test_steps_that_blocks_cannot_share_evenly_are_refused() -> None:
    assert message(max_completion_length=16, num_steps=6, block_length=4) == (
        "num_steps = 6 cannot be shared evenly by 4 blocks of 4 positions. Use a multiple of 4."
    )


def test_a_refresh_without_a_cache_is_refused() -> None:
    assert message(cache_refresh_steps=4) == (
        "cache_refresh_steps = 4 has no effect without a cache. Set cache to prefix or dual, or leave out cache_refresh_steps."
    )


def test_settings_of_a_sampler_in_python_are_refused_in_plain_words() -> None:
    assert message(temperature=-1, num_steps="many").splitlines() == [
        "num_steps = 'many': input should be a valid integer, unable to parse string as an integer.",
        "temperature = -1: input should be greater than or equal to 0.",
    ]
    assert message(num_step=4).startswith('unknown setting of the sampler "num_step". Did you mean "num_steps"?')


def test_a_rollout_is_exact_without_a_cache_or_with_a_refresh_at_every_step() -> None:
    assert SamplerConfig().is_exact
    assert SamplerConfig(cache="dual", cache_refresh_steps=1).is_exact
    assert not SamplerConfig(cache="dual", cache_refresh_steps=2).is_exact
    assert not SamplerConfig(cache="prefix").is_exact


@settings(max_examples=50)
@given(length=st.integers(1, 64), steps=st.integers(1, 70), block=st.integers(1, 70))
def test_every_block_of_accepted_settings_gets_a_step_and_no_more_steps_than_positions(
    length: int, steps: int, block: int
) -> None:
    try:
        SamplerConfig(max_completion_length=length, num_steps=steps, block_length=block)
    except ConfigError:
        assert steps > length or length % block or steps % (length // block)
    else:
        num_blocks = length // block
        assert num_blocks * block == length
        assert 1 <= steps // num_blocks <= block
        assert steps % num_blocks == 0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SamplerConfig, {"temperature": -0.1}),
        (SamplerConfig, {"top_p": 0.0}),
        (SamplerConfig, {"top_p": 1.1}),
        (SamplerConfig, {"top_k": -1}),
        (SamplerConfig, {"guidance": -1.0}),
        (SamplerConfig, {"cache": "on"}),
        (SamplerConfig, {"cache_refresh_steps": 0}),
        (SamplerConfig, {"max_completion_length": 0}),
        (OptimConfig, {"learning_rate": 0.0}),
        (OptimConfig, {"lr_floor": 1.5}),
        (OptimConfig, {"warmup_steps": -1}),
        (OptimConfig, {"lr_schedule": "step"}),
        (OptimConfig, {"max_grad_norm": 0.0}),
        (EvalConfig, {"num_rows": 0}),
        (EvalConfig, {"split": "train"}),
        (EvalConfig, {"batch_size": 0}),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(kind: type[Config], fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert [fault["loc"] for fault in caught.value.errors()] == [tuple(fields)]


def test_a_sampler_takes_exactly_the_names_of_the_orders() -> None:
    assert sorted(ORDERS) == sorted(ORDER_NAMES)
    for order in ORDERS:
        assert SamplerConfig(order=order).order == order
    with raises(ConfigError, 'unknown order "randm". Did you mean "random"?'):
        SamplerConfig(order="randm")
