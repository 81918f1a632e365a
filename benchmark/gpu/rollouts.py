"""Checks of rollouts at 8B: a denoising step against a bare forward pass, caches and their behaviour
ratio, adapters, compilation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmark.gpu.bench import Bench
from benchmark.gpu.harness import Outcome, check, timed
from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Trajectory
from unmask.methods.views import step_views
from unmask.models import Denoiser
from unmask.models.adapters import remove_layers
from unmask.models.shell import filled, without_weights
from unmask.sampling import LogprobSettings, denoise, view_logprobs

NEEDS = Needs(greedy=True, selection=("entropy_topk", 8))
"""What EGSPO asks of a rollout: the one-step completions of eight steps."""


def rollout(bench: Bench, denoiser: Denoiser, rows: int, sampler: SamplerConfig, **options: Any) -> Trajectory:
    """Return completions of a model."""
    return denoise(denoiser, *bench.prompts(rows), sampler, torch.arange(rows, device=bench.device), **options)


def bare(bench: Bench, denoiser: Denoiser, rows: int) -> float:
    """Return the seconds of a forward pass of the trunk over all tokens."""
    ids = torch.cat([bench.prompts(rows)[0], bench.half_filled(rows)], 1)
    with torch.no_grad():
        return timed(lambda: denoiser.backbone.base_model(input_ids=ids, use_cache=False))


def step(bench: Bench, denoiser: Denoiser, rows: int, needs: Needs | None = NEEDS) -> float:
    """Return the seconds of a denoising step of half-filled completions."""
    sampler = bench.one_step_a_block()
    completion = bench.half_filled(rows)
    whole = timed(lambda: rollout(bench, denoiser, rows, sampler, completion=completion.clone(), needs=needs), 2)
    return whole / sampler.steps


@check(10)
def block_causal_rollout(bench: Bench) -> Outcome:
    """A block-causal model, whose rollouts keep keys and values exactly."""
    block = bench.scale.sampler["block_length"]
    sampler = bench.sampler(max_completion_length=2 * block, num_steps=4, guidance=0.5)
    path = rollout(bench, bench.made(2, block), 4, sampler, needs=NEEDS)
    return Outcome(bool((path.tokens != bench.scale.mask_id).all()), {"completions": len(path)})


@check(70)
def step_against_bare_forward(bench: Bench) -> Outcome:
    """A denoising step costs what its forward pass costs."""
    facts: dict[str, Any] = {}
    ratios = []
    for rows in bench.scale.rows:
        forward, with_one_step, without = (
            bare(bench, bench.model, rows),
            step(bench, bench.model, rows),
            step(bench, bench.model, rows, None),
        )
        ratios.append(with_one_step / forward)
        facts[f"{rows} rows"] = {
            "ms, forward": 1e3 * forward,
            "ms, step": 1e3 * with_one_step,
            "ms, step without one-step completions": 1e3 * without,
            "step / forward": ratios[-1],
            "tokens/s of a rollout at two tokens a step": 2 * rows / with_one_step,
        }
    facts["a step's launches and synchronizations"] = _launches(bench)
    return Outcome(min(ratios) < 1.15 if bench.has_bounds else None, facts)


def _launches(bench: Bench) -> list[float] | str:
    """Return the number of kernel launches and of synchronizations of a denoising step."""
    if not bench.is_gpu:
        return "no GPU"
    from torch.profiler import ProfilerActivity, profile

    sampler = bench.one_step_a_block()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        rollout(bench, bench.model, bench.scale.rows[0], sampler, needs=NEEDS)
    names = [event.name for event in recorded.events()]
    return [sum(word in name for name in names) / sampler.steps for word in ("LaunchKernel", "Synchronize")]


@check(70)
def cached_rollouts(bench: Bench) -> Outcome:
    """Rollouts that keep keys and values within a block: time, token passes, and the ratio of the
    policy to what sampled them. The ratios of an uncached rollout are the rounding of the card."""
    rows, block = bench.scale.rows[0], bench.scale.sampler["block_length"]
    settings = {"max_completion_length": 2 * block, "num_steps": block}
    facts = {}
    for cache in ("off", "dual", "prefix"):
        sampler = bench.sampler(**settings, cache=cache)
        count = _TokenPasses(bench.model)
        path = rollout(bench, bench.model, rows, sampler)
        passes = count.stop()
        seconds = timed(lambda sampler=sampler: rollout(bench, bench.model, rows, sampler), 1)  # type: ignore[misc]
        facts[cache] = {"s": seconds, "token passes a completion": passes / rows, **_behaviour(bench.model, path)}
    off, dual = facts["off"], facts["dual"]
    is_faster = dual["s"] < off["s"] or not bench.has_bounds
    exact = off["ratio, largest deviation from 1"] < 0.5
    return Outcome(is_faster and exact, {**facts, "off / dual, time": off["s"] / dual["s"]})


class _TokenPasses:
    """Counts the tokens of forward passes."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.count = 0
        self.handle = denoiser.register_forward_pre_hook(self._see)

    def _see(self, _module: object, arguments: tuple[Any, ...]) -> None:
        self.count += arguments[0].numel()

    def stop(self) -> int:
        """Return the number of tokens, and count no more."""
        self.handle.remove()
        return self.count


def _behaviour(denoiser: Denoiser, path: Trajectory) -> dict[str, float]:
    """Return statistics of the ratios of the policy to what sampled the tokens of some steps."""
    steps = torch.linspace(0, path.num_steps - 1, 8, device=path.tokens.device).long().expand(len(path), -1)
    views = step_views(path, steps, torch.ones(steps.shape, device=path.tokens.device))
    with torch.no_grad():
        parts = [
            view_logprobs(denoiser, path, views.take(slice(i, i + 16)), LogprobSettings.of(path, "sampling")).logprob
            for i in range(0, len(views), 16)
        ]
    log_ratio = (torch.cat(parts) - path.logprob[views.row])[views.target]
    ratio = log_ratio.double().exp()
    return {
        "ratio, mean": float(ratio.mean()),
        "ratio, largest": float(ratio.max()),
        "ratio, largest deviation from 1": float((ratio - 1).abs().max()),
        "effective share": float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio)),
    }


@check(40)
def adapters(bench: Bench) -> Outcome:
    """LoRA: forward passes with separate adapters, and updates, against those without; and updates
    with adapters in float32, as peft makes them. The rows are those of an update of the recipes."""
    denoiser, rows = bench.model, bench.scale.rows[0]
    ids = torch.cat([bench.prompts(rows)[0], bench.half_filled(rows)], 1)
    at = torch.arange(ids.shape[1] - 2, ids.shape[1], device=bench.device).expand(rows, -1)

    def update() -> Tensor:
        loss = denoiser(ids, None, at).float().log_softmax(-1)[..., 0].sum()
        loss.backward()
        denoiser.zero_grad(set_to_none=True)
        return loss

    plain = step(bench, denoiser, rows)
    denoiser.backbone.get_input_embeddings().weight.requires_grad_(True)
    bare_update = timed(update)
    denoiser.requires_grad_(False)
    _, separate = bench.adapted
    with_adapters, with_update = step(bench, denoiser, rows), timed(update)
    with separate.off():
        switched_off = step(bench, denoiser, rows)
    kept = [(weight, weight.data) for _, weight in separate.parameters()]
    for weight, data in kept:
        weight.data = data.float()
    as_peft_makes_them = timed(update)
    for weight, data in kept:
        weight.data = data
    facts = {
        "step with adapters / without": with_adapters / plain,
        "step, adapters off / without": switched_off / plain,
        "update with adapters / forward and backward without": with_update / bare_update,
        "update with adapters in float32 / forward and backward without": as_peft_makes_them / bare_update,
    }
    return Outcome(with_update <= 1.3 * bare_update if bench.has_bounds else None, facts)


@check(50)
def merged_rollouts(bench: Bench) -> Outcome:
    """Rollouts on merged weights: the cost of a step, of the merge, and the ratios of the policy
    with separate adapters to what merged weights sampled. The policy's own weights stay."""
    rows = bench.scale.rows[len(bench.scale.rows) // 2]
    denoiser, separate = bench.adapted
    with torch.no_grad():
        for name, weight in separate.parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.01)
    with separate.off():
        plain = step(bench, denoiser, rows)
    before = [weight.detach().clone() for weight in list(denoiser.parameters())[:20]]
    own = {n.removeprefix("backbone."): p for n, p in denoiser.named_parameters(remove_duplicate=False)}
    shell = without_weights(denoiser)
    remove_layers(shell)

    def merged() -> dict[str, Tensor]:
        tensors = separate.merging(own, torch.Tensor.detach, at_random=True)
        return {f"backbone.{name}": tensor for name, tensor in tensors} | dict(denoiser.named_buffers())

    seconds = timed(merged, 1)
    with filled(shell, merged()) as whole:
        of_merged = step(bench, whole, rows)
        path = rollout(bench, whole, bench.scale.rows[0], bench.one_step_a_block())
    ratios = _behaviour(denoiser, path)
    stays = all(map(torch.equal, before, list(denoiser.parameters())[:20]))
    is_cheap = of_merged <= 1.05 * plain or not bench.has_bounds
    facts = {"step, merged / without adapters": of_merged / plain, "s, merge": seconds, "weights stay": stays, **ratios}
    return Outcome(is_cheap and stays and abs(ratios["ratio, mean"] - 1) < 0.2, facts)


@check(75)
def compilation(bench: Bench) -> Outcome:
    """A compiled model is faster, and few graphs serve all batch sizes and paddings."""
    import torch._dynamo

    bench.drop_model()
    denoiser, rows = bench.made(min(8, bench.scale.layers)), bench.scale.rows[len(bench.scale.rows) // 2]
    sampler = bench.one_step_a_block()
    eager = timed(lambda: rollout(bench, denoiser, rows, sampler), 2)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    denoiser.compile_layers("inductor" if bench.is_gpu else "eager")
    started = time.perf_counter()
    rollout(bench, denoiser, rows, sampler)
    first = time.perf_counter() - started
    for fewer in (rows - 1, 2):
        rollout(bench, denoiser, fewer, sampler)
    ids, mask = bench.prompts(rows, padded=True)
    denoise(denoiser, ids, mask, sampler, torch.arange(rows, device=bench.device))
    compiled = timed(lambda: rollout(bench, denoiser, rows, sampler), 2)
    stats = torch._dynamo.utils.counters["stats"]
    facts = {"eager / compiled": eager / compiled, "s, first rollout": first, "graphs": stats["unique_graphs"]}
    return Outcome(compiled < 1.02 * eager if bench.has_bounds else None, facts)
