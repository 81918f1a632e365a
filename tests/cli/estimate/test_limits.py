"""The cost of top-k and top-p: counts against the calls of a real rollout and of real views, and the
time by hand."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from unmask.cli.estimate.flops import costs_of
from unmask.cli.estimate.limits import BYTES, OPERATIONS
from unmask.cli.estimate.shapes import build_fake, config_of
from unmask.cli.estimate.time import Rates, durations_of
from unmask.cli.estimate.work import Setup, work_of
from unmask.functional import distribution
from unmask.recipes.load import load_recipe
from unmask.sampling import LogprobSettings, view_logprobs

SHAPE = "layers=2,width=32,heads=4,ffn=64,vocab=50"
TOP_P, TOP_K = ("sampler.top_p=0.9",), ("sampler.top_k=5", "sampler.top_p=0.9")
BLOCKS = ("sampler.block_length=8", "method.stepwise_weight=0")


class Uniform:
    """A denoiser whose tokens are equally likely."""

    mask_id, eos_id = 0, 1

    def __call__(self, ids, attention_mask, positions):
        return torch.zeros(*positions.shape, 20)


@pytest.fixture
def limited(monkeypatch):
    """Return a list of the numbers of positions whose logits have been limited."""
    counts, real = [], distribution._support

    def counting(scaled, top_k, top_p):
        counts.append(scaled[..., 0].numel())
        return real(scaled, top_k, top_p)

    monkeypatch.setattr(distribution, "_support", counting)
    return counts


@pytest.mark.parametrize("limits", [TOP_P, TOP_K])
@pytest.mark.parametrize("method", ["method.type=egspo", "method.type=espo", "method.type=egspo_sa"])
def test_the_positions_that_are_limited_are_those_of_a_real_rollout_and_of_real_views(limited, limits, method) -> None:
    blocks = ["sampler.block_length=8"] if method.endswith("egspo") else []
    recipe = load_recipe("sudoku-tiny", [method, *limits, *blocks, "num_prompts=2", "num_generations=3"])
    work = work_of(recipe, 18)
    [rollout], [old] = work.of("rollout"), work.of("old policy")
    # The evaluation is greedy, so all calls so far are those of the rollout.
    assert rollout.limited == sum(limited)
    limited.clear()
    path = work.rollout.trajectory
    # View by view, because a batch without a limit on its logits also reads columns that pad it.
    for n in range(len(work.views)):
        view_logprobs(Uniform(), path, work.views.take(slice(n, n + 1)), LogprobSettings.of(path, "sampling"))
    assert old.limited == (2 if recipe.method.fresh_views else 1) * sum(limited)


def test_without_limits_nothing_is_limited(limited) -> None:
    work = work_of(load_recipe("sudoku-tiny", ["num_prompts=2"]), 18)
    assert (work.limiting, [each.limited for each in work.passes], limited) == ((0, 0), [0] * len(work.passes), [])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_time_of_the_limits_is_that_of_their_operations_or_bytes(device) -> None:
    recipe = load_recipe("sudoku-tiny", BLOCKS)
    config, _ = config_of(recipe, SHAPE)
    with FakeTensorMode():
        costs = costs_of(build_fake(config, recipe, 2), config, 2, recomputes=False)
    rates = Rates(1e9, 5e8, 2e9)

    def more(*limits):
        """Return the seconds that limits add to each pass."""
        changed = load_recipe("sudoku-tiny", [*BLOCKS, *limits])
        with_limits, without = (
            durations_of(work_of(each, 18, setup=Setup(50, device=device)), costs, rates, each).passes
            for each in (changed, recipe)
        )
        return {name: seconds - without[name] for name, seconds in with_limits.items()}

    def seconds(rows, kind, rate):
        return rows * 50 * (OPERATIONS[kind] / rate if device == "cpu" else BYTES[kind] / 2e9)

    # 64 completions: in each of two blocks 8 + 6 + 4 + 2 positions are proposed, and 16 are committed.
    rows = 64 * (2 * 20 + 16)
    sorting, searching = more(*TOP_P), more(*TOP_K)
    assert sorting["rollout"] == pytest.approx(seconds(rows, "top_p", 5e8))
    # Two steps of each completion are trained, each with two tokens.
    assert sorting["update"] == pytest.approx(seconds(64 * 2 * 2, "top_p", 1e9))
    assert searching["rollout"] == pytest.approx(seconds(rows + 64 * 16, "top_k", 5e8))
    # The views of this method are states of the path: all policies keep the recorded top-k tokens.
    assert searching["update"] == pytest.approx(0, abs=1e-12)
