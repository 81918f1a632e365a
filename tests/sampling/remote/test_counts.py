"""The steps of answers commit as many tokens as the fixed schedule, from any state, or the answers are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unmask.core.config import SamplerConfig
from unmask.models import Denoiser, Policy, char_tokenizer
from unmask.sampling.engine import LocalEngine
from unmask.sampling.remote.counts import check_fixed_counts, has_fixed_counts
from unmask.sampling.remote.format import FormatError
from unmask.tasks.sudoku import Sudoku

PROMPTS = [f"{i}{j}4" for i in range(1, 5) for j in range(1, 5)]


@pytest.fixture
def engine(lively: Denoiser) -> LocalEngine:
    return LocalEngine(Policy(lively, char_tokenizer(Sudoku().alphabet)))


def sampler(**settings: Any) -> SamplerConfig:
    return SamplerConfig(**{"max_completion_length": 8, "num_steps": 4, "block_length": 4} | settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_steps": 8}, {"num_steps": 6}, {"num_steps": 2}, {"num_steps": 3, "block_length": 8}],
    ids=str,
)
def test_rollouts_of_our_own_sampler_have_the_counts_of_the_fixed_schedule(
    engine: LocalEngine, settings: dict[str, Any]
) -> None:
    fixed, seeds = sampler(**settings), torch.arange(len(PROMPTS))
    path = engine.rollout(PROMPTS, fixed, seeds)
    assert fixed.block == 8 or (path.unmask_step == fixed.steps).any(), "a row must end early"
    assert has_fixed_counts(path.unmask_step, fixed)
    for step in range(1, fixed.steps):
        first = torch.full((len(PROMPTS),), step)
        rest = engine.rollout(PROMPTS, fixed, seeds, completion=path.state_before(step), first_step=first)
        assert has_fixed_counts(rest.unmask_step, fixed, first), step
    # Given tokens at other places than those that a sampler commits first.
    given = torch.where(seeds.unsqueeze(-1) % 8 == torch.arange(8), path.tokens, path.mask_id)
    given = given.masked_fill(given == path.eos_id, path.mask_id)
    rest = engine.rollout(PROMPTS, fixed, seeds, completion=given)
    assert (rest.unmask_step == -1).any()
    assert has_fixed_counts(rest.unmask_step, fixed)


# Two blocks of four tokens, each of two steps; 4 is a token that was filled in, and -1 a given one.
@pytest.mark.parametrize(
    ("steps", "first", "is_right"),
    [
        ([0, 1, 0, 1, 2, 2, 3, 3], 0, True),
        ([0, 0, 0, 1, 2, 2, 3, 3], 0, False),
        ([0, 0, 0, 0, 2, 2, 3, 3], 0, False),
        ([0, 1, 0, 1, 2, 3, 3, 3], 0, False),
        # The row ends with step 0, with step 2 or with a step that commits too few tokens.
        ([0, 0, 4, 4, 4, 4, 4, 4], 0, True),
        ([0, 1, 0, 1, 2, 2, 4, 4], 0, True),
        ([0, 4, 4, 4, 4, 4, 4, 4], 0, False),
        ([0, 1, 0, 1, 2, 4, 4, 4], 0, False),
        ([0, 0, 4, 4, 2, 2, 4, 4], 0, False),
        # Three tokens are left for two steps; two tokens for one step, as the first is not taken.
        ([-1, 0, 1, 0, 2, 2, 3, 3], 0, True),
        ([-1, 0, 1, 1, 2, 2, 3, 3], 0, False),
        ([-1, -1, 1, 1, 2, 2, 3, 3], 1, True),
        ([-1, -1, 1, 1, 2, 2, 3, 3], 0, False),
        ([-1, -1, 0, 1, 2, 2, 3, 3], 1, False),
    ],
    ids=str,
)
def test_counts_are_those_worked_out_by_hand(steps: list[int], first: int, is_right: bool) -> None:
    path, fixed = torch.tensor([steps], dtype=torch.int32), sampler()
    assert has_fixed_counts(path, fixed, torch.tensor([first])) is is_right
    # A right row does not hide a wrong one.
    both = torch.cat([torch.tensor([[-1] * 8], dtype=torch.int32), path])
    assert has_fixed_counts(both, fixed, torch.tensor([first, first])) is is_right
    if not is_right:
        with pytest.raises(FormatError, match=r"sampler\.schedule = fixed"):
            check_fixed_counts(path, fixed, torch.tensor([first]))
        check_fixed_counts(path, sampler(schedule="threshold=0.9"))
