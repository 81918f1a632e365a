"""Tests of the forward passes of the denoising loop: which rows they run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unmask.core.config import SamplerConfig
from unmask.core.records import Trajectory
from unmask.models import Denoiser
from unmask.sampling import denoise


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Turn torch's deterministic mode on for a test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def rollout(denoiser: Denoiser) -> tuple[Trajectory, list[int]]:
    """Return trajectories that end at different steps, and the number of rows in each forward pass."""
    rows: list[int] = []
    handle = denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    prompt = torch.randint(3, 9, (6, 4), generator=torch.Generator().manual_seed(1))
    sampler = SamplerConfig(max_completion_length=8, num_steps=8, order="left_to_right", temperature=1.5)
    path = denoise(denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(6))
    handle.remove()
    return path, rows


def test_rows_leave_a_batch_when_they_end(lively: Denoiser) -> None:
    assert rollout(lively)[1][-1] < 6


@pytest.mark.usefixtures("deterministic")
def test_in_deterministic_mode_every_forward_pass_has_all_rows_of_the_batch(lively: Denoiser) -> None:
    path, rows = rollout(lively)
    assert set(rows) == {6}
    torch.use_deterministic_algorithms(False)
    fewer, _ = rollout(lively)
    assert torch.equal(path.tokens, fewer.tokens)
    assert torch.equal(path.unmask_step, fewer.unmask_step)
    torch.testing.assert_close(path.logprob, fewer.logprob, rtol=0, atol=1e-5)
