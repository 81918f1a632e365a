"""The fast denoising loop equals the plain reference loop: same tokens, steps and
log-probabilities."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.helpers import reference_sampler as reference
from tests.helpers.reference_sampler import denoise_plain
from unmask.core.config import SamplerConfig
from unmask.sampling import denoise

ORDERS = ["low_confidence", "max_probability", "margin", "entropy", "random", "left_to_right"]
SCHEDULES = ["threshold=0.6", "factor=1.2", "entropy_bound=0.7"]
ROWS = 6


def both(denoiser, sampler, plain=denoise_plain):
    """Return the fast loop's record of a batch, and the stacked records of the plain loop for each
    row."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 9, (ROWS, 5), generator=generator)
    fast = denoise(denoiser, prompts, torch.ones_like(prompts, dtype=torch.bool), sampler, torch.arange(ROWS))
    with torch.no_grad():
        rows = [plain(denoiser, prompt, sampler, seed) for seed, prompt in enumerate(prompts)]
    return fast, [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(("num_steps", "block_length"), [(8, 8), (3, 8), (4, 4), (4, 2)])
@pytest.mark.parametrize("eos", [-9.0, 3.0])
@pytest.mark.slow
def test_the_fast_loop_equals_the_plain_loop(spy, order, temperature, num_steps, block_length, eos):
    sampler = SamplerConfig(
        max_completion_length=8, num_steps=num_steps, block_length=block_length, order=order, temperature=temperature
    )
    fast, (tokens, steps, logprobs) = both(spy(eos=eos, mask=-torch.inf), sampler)
    assert torch.equal(fast.tokens, tokens)
    assert torch.equal(fast.unmask_step.long(), steps)
    torch.testing.assert_close(fast.logprob, logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_steps", "block_length"), [(5, 8), (8, 2)])
@pytest.mark.slow
def test_the_fast_loop_equals_the_plain_loop_under_adaptive_schedules(spy, order, schedule, num_steps, block_length):
    for temperature, eos in ((0.0, -9.0), (0.9, 1.0)):
        sampler = SamplerConfig(
            max_completion_length=8,
            num_steps=num_steps,
            block_length=block_length,
            order=order,
            temperature=temperature,
            schedule=schedule,
        )
        fast, (tokens, steps, logprobs) = both(spy(eos=eos, mask=-torch.inf), sampler)
        assert torch.equal(fast.tokens, tokens)
        assert torch.equal(fast.unmask_step.long(), steps)
        torch.testing.assert_close(fast.logprob, logprobs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("line", "altered"),
    [
        ("ranked[:share]", "ranked[: share + 1]"),
        (">= bound", "<= bound"),
        ("(m + 1) * (1", "m * (1"),
        ("total - largest", "total"),
        ("-priority[i]", "priority[i]"),
        ("TOKEN_STREAM, step, i", "TOKEN_STREAM, step, 0"),
        ("sampler.temperature or 1.0", "1.0"),
        ("if len(ends) and not", "if False and not"),
    ],
)
@pytest.mark.slow
def test_another_algorithm_is_noticed(spy, line, altered):
    # Each altered line stands for a fault in either loop: schedule, priority, draws, temperature,
    # the end of a row.
    source = inspect.getsource(reference)
    assert source.count(line) == 1
    namespace = {}
    exec(source.replace(line, altered), namespace)
    are_same = []
    for schedule in ("fixed", *SCHEDULES):
        sampler = SamplerConfig(
            max_completion_length=8, num_steps=4, order="margin", temperature=0.9, schedule=schedule
        )
        fast, (tokens, steps, logprobs) = both(spy(eos=3.0, mask=-torch.inf), sampler, namespace["denoise_plain"])
        is_same = torch.equal(fast.tokens, tokens) and torch.equal(fast.unmask_step.long(), steps)
        are_same.append(is_same and torch.allclose(fast.logprob, logprobs, rtol=0, atol=2e-5))
    assert not all(are_same)
