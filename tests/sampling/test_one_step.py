"""Guesses of any step are the rollout's own one-step completions, whoever asked for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser
from unmask.sampling import denoise
from unmask.sampling.one_step import one_step_guesses

LENGTH, STEPS = 16, 8


def rolled(lively: Denoiser, block: int = LENGTH, **settings: float) -> Trajectory:
    """Three paths, prompts of two lengths, with the one-step completion of every step."""
    sampler = SamplerConfig(
        max_completion_length=LENGTH, num_steps=STEPS, temperature=0.9, block_length=block, **settings
    )
    prompts = torch.tensor([[0, 0, 4, 5], [6, 7, 3, 8], [0, 0, 0, 4]])
    needs = Needs(greedy=True, selection=("all", 1))
    return denoise(lively, prompts, prompts != 0, sampler, torch.tensor([1, 2, 3]), needs=needs)


def kept_by_rollout(path: Trajectory) -> Tensor:
    assert path.one_step_tokens is not None
    return path.one_step_tokens


@pytest.mark.parametrize("block", [LENGTH, 4])
@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_a_guess_is_what_the_rollout_would_have_answered_at_once(lively: Denoiser, block: int, guidance: float) -> None:
    path = rolled(lively, block, guidance=guidance)
    guesses = one_step_guesses(lively, path, range(STEPS), batch_size=5)
    assert guesses.dtype == torch.int32
    steps = path.selected_steps
    found = guesses.gather(1, steps.clamp(min=0).unsqueeze(-1).expand(-1, -1, LENGTH))
    assert torch.equal(found[steps >= 0], kept_by_rollout(path)[steps >= 0])


def test_the_guess_of_another_step_is_another_guess(lively: Denoiser) -> None:
    # What the test above would not notice if all guesses were alike.
    guesses = one_step_guesses(lively, rolled(lively), range(STEPS))
    assert (guesses[:, 1:] != guesses[:, :-1]).any(-1).float().mean() > 0.3


def test_steps_may_be_picked_and_what_is_written_stays(lively: Denoiser) -> None:
    path = rolled(lively)
    guesses = one_step_guesses(lively, path, [2, 5])
    assert torch.equal(guesses, one_step_guesses(lively, path, range(STEPS))[:, [2, 5]])
    for column, step in enumerate((2, 5)):
        is_written = path.unmask_step < step
        assert torch.equal(guesses[:, column][is_written].long(), path.tokens[is_written])
        assert not (guesses[:, column] == path.mask_id).any()
