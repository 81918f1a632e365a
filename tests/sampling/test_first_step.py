"""Tests of the first denoising step, which runs once for completions that begin in the same
state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.adapters import build
from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser
from unmask.sampling import denoise
from unmask.trainer.metrics import TokenPasses

L, P = 8, 5
PROMPTS = torch.randint(3, 11, (2, P), generator=torch.Generator().manual_seed(1)).repeat_interleave(3, dim=0)
MASKS = {
    "no padding": torch.ones(6, P, dtype=torch.bool),
    "padding": (torch.arange(P) >= torch.tensor([[2], [0]])).repeat_interleave(3, dim=0),
}
SEEDS = torch.arange(6)
APART = torch.tensor([0, 3, 1, 4, 2, 5])
"""An order of the rows in which no row follows one of the same prompt."""


class Rows(nn.Module):
    """Records the number of rows of each forward pass of a denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.mask_id, self.eos_id = denoiser, denoiser.mask_id, -1
        if denoiser.block_length is not None:
            self.block_length = denoiser.block_length
        self.rows: list[int] = []

    def forward(self, ids: Tensor, *arguments: Tensor, **options: object) -> Tensor:
        self.rows.append(len(ids))
        return self.denoiser(ids, *arguments, **options)


def run(denoiser: Denoiser, order: Tensor, mask: Tensor, **options: object) -> tuple[Trajectory, list[int]]:
    """Denoise the rows in an order, and return them in their own order with the rows of each
    forward pass."""
    counted = Rows(denoiser)
    given = {key: value[order] for key, value in options.items() if isinstance(value, Tensor)}
    sampler = SamplerConfig(
        max_completion_length=L, **{key: v for key, v in options.items() if key not in given and key != "needs"}
    )
    path = denoise(counted, PROMPTS[order], mask[order], sampler, SEEDS[order], needs=options.get("needs"), **given)
    return path.rows(order.argsort()), counted.rows


def assert_same(one: Trajectory, other: Trajectory) -> None:
    for name, value in one.tensors().items():
        expected = other.tensors()[name]
        if value.is_floating_point():
            torch.testing.assert_close(value, expected, rtol=0, atol=2e-5)
        else:
            assert torch.equal(value, expected), name


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"num_steps": 4}, 4),
        ({"num_steps": 4, "needs": Needs(greedy=True, selection=("entropy_topk", 2))}, 4),
        ({"num_steps": 4, "guidance": 0.5}, 8),
        ({"num_steps": 4, "block_length": 4, "cache": "dual"}, 4),
        ({"num_steps": 4, "block_length": 4, "cache": "prefix", "guidance": 0.5}, 8),
    ],
    ids=["plain", "one-step completions", "guidance", "dual cache", "prefix cache and guidance"],
)
def test_completions_of_a_prompt_share_the_first_step(options: dict, passes: int, mask: Tensor) -> None:
    denoiser = build("LlamaForCausalLM")
    together, rows = run(denoiser, torch.arange(6), mask, **options)
    apart, all_rows = run(denoiser, APART, mask, **options)
    first = 2 if "guidance" in options else 1
    assert all_rows == [6] * passes
    assert rows == [2] * first + [6] * (passes - first)
    assert_same(together, apart)
    assert len({tuple(row) for row in together.tokens.tolist()}) > 2


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_the_exact_cache_of_a_block_causal_model_is_shared_too(mask: Tensor) -> None:
    backbone = build("Qwen3ForCausalLM").backbone
    backbone.config.block_length = 4
    denoiser = Denoiser(backbone, 1, -1, 0).eval()
    together, rows = run(denoiser, torch.arange(6), mask, num_steps=4, block_length=4)
    apart, all_rows = run(denoiser, APART, mask, num_steps=4, block_length=4)
    assert (rows, all_rows) == ([2, 6, 6, 6], [6] * 4)
    assert_same(together, apart)


def test_completions_that_begin_in_different_states_do_not_share_the_step() -> None:
    denoiser = build("LlamaForCausalLM")
    completion = torch.full((6, L), denoiser.mask_id)
    completion[1, 2] = 5
    together, rows = run(denoiser, torch.arange(6), MASKS["no padding"], num_steps=4, completion=completion)
    # The second row differs from the first and the third.
    assert rows == [4, 6, 6, 6]
    assert_same(together, run(denoiser, APART, MASKS["no padding"], num_steps=4, completion=completion)[0])


def test_token_passes_count_the_shared_step_once() -> None:
    denoiser = build("LlamaForCausalLM")
    denoiser.eos_id = -1
    counter = TokenPasses(denoiser)
    sampler = SamplerConfig(max_completion_length=L, num_steps=4)
    denoise(denoiser, PROMPTS, MASKS["no padding"], sampler, SEEDS)
    assert counter.count == (2 + 3 * 6) * (P + L)
