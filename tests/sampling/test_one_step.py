"""One-step completions computed afterwards equal those that the rollout stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser
from unmask.sampling import denoise
from unmask.sampling.one_step import one_step_completions

LENGTH, STEPS = 16, 8


def rolled(lively: Denoiser, block: int = LENGTH, **settings: float) -> Trajectory:
    """Return three paths with prompts of two lengths and the one-step completion of every step."""
    sampler = SamplerConfig(
        max_completion_length=LENGTH, num_steps=STEPS, temperature=0.9, block_length=block, **settings
    )
    prompts = torch.tensor([[0, 0, 4, 5], [6, 7, 3, 8], [0, 0, 0, 4]])
    needs = Needs(greedy=True, selection=("all", 1))
    return denoise(lively, prompts, prompts != 0, sampler, torch.tensor([1, 2, 3]), needs=needs)


def stored_by_rollout(path: Trajectory) -> Tensor:
    assert path.one_step_tokens is not None
    return path.one_step_tokens


@pytest.mark.parametrize("block", [LENGTH, 4])
@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_a_computed_one_step_completion_equals_the_stored_one(lively: Denoiser, block: int, guidance: float) -> None:
    path = rolled(lively, block, guidance=guidance)
    completions = one_step_completions(lively, path, range(STEPS), batch_size=5)
    assert completions.dtype == torch.int32
    steps = path.selected_steps
    at_steps = completions.gather(1, steps.clamp(min=0).unsqueeze(-1).expand(-1, -1, LENGTH))
    assert torch.equal(at_steps[steps >= 0], stored_by_rollout(path)[steps >= 0])


def test_one_step_completions_of_different_steps_differ(lively: Denoiser) -> None:
    # Otherwise the test above could not notice a wrong step.
    completions = one_step_completions(lively, rolled(lively), range(STEPS))
    assert (completions[:, 1:] != completions[:, :-1]).any(-1).float().mean() > 0.3


def test_steps_can_be_chosen_and_committed_tokens_stay(lively: Denoiser) -> None:
    path = rolled(lively)
    completions = one_step_completions(lively, path, [2, 5])
    assert torch.equal(completions, one_step_completions(lively, path, range(STEPS))[:, [2, 5]])
    for column, step in enumerate((2, 5)):
        is_written = path.unmask_step < step
        assert torch.equal(completions[:, column][is_written].long(), path.tokens[is_written])
        assert not (completions[:, column] == path.mask_id).any()
