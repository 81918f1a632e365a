"""The replay of a path gives the log-probabilities and entropies that the rollout recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmask.core.config import SamplerConfig
from unmask.models import Denoiser
from unmask.sampling import denoise
from unmask.sampling.replay import replayed

PROMPTS = torch.tensor([[0, 0, 4, 5], [6, 7, 3, 8], [0, 0, 0, 4]])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block_length": 4},
        {"top_k": 3},
        {"top_p": 0.8, "temperature": 0.7},
        {"guidance": 0.5},
        {"temperature": 0.0},
        {"order": "random", "num_steps": 16},
    ],
    ids=str,
)
def test_a_replay_gives_the_recorded_numbers(lively: Denoiser, settings: dict[str, object]) -> None:
    sampler = SamplerConfig(**{"max_completion_length": 16, "num_steps": 8, "temperature": 0.9} | settings)
    path = denoise(lively, PROMPTS, PROMPTS != 0, sampler, torch.tensor([1, 2, 3]))
    blank = replace(path, logprob=torch.zeros_like(path.logprob), entropy=torch.zeros_like(path.entropy))
    found = replayed(lively, blank, batch_size=5)
    torch.testing.assert_close(found.trajectory.logprob, path.logprob, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.trajectory.entropy, path.entropy, atol=1e-5, rtol=0)
    if sampler.temperature == 0:
        assert found.is_likeliest[path.unmask_step < sampler.steps].all()
    # The probability of the most likely token bounds that of the committed one.
    assert (found.largest + 1e-6 >= path.logprob.exp())[path.unmask_step < sampler.steps].all()


def test_another_model_gives_other_numbers(lively: Denoiser) -> None:
    sampler = SamplerConfig(max_completion_length=16, num_steps=8, temperature=0.9)
    path = denoise(lively, PROMPTS, PROMPTS != 0, sampler, torch.tensor([1, 2, 3]))
    with torch.no_grad():
        next(lively.parameters()).mul_(1.1)
    assert (replayed(lively, path).trajectory.logprob - path.logprob).abs().max() > 1e-2


def test_entropies_at_a_temperature_of_their_own(lively: Denoiser) -> None:
    sampler = SamplerConfig(max_completion_length=16, num_steps=8, temperature=0.9)
    path = denoise(lively, PROMPTS, PROMPTS != 0, sampler, torch.tensor([1, 2, 3]), entropy_temperature=2.0)
    torch.testing.assert_close(
        replayed(lively, path, entropy_temperature=2.0).trajectory.entropy, path.entropy, atol=1e-5, rtol=0
    )
    assert (replayed(lively, path).trajectory.entropy - path.entropy).abs().max() > 1e-2
