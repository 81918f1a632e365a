"""Check of the memory of an update at 8B against `unmask estimate`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from benchmark.gpu.bench import Bench
from benchmark.gpu.harness import CheckSkippedError, Outcome, check, timed
from unmask.cli.estimate import estimate
from unmask.cli.estimate.work import work_of
from unmask.core.records import Views
from unmask.recipes.load import load_recipe
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.model_limits import positions_at_once
from unmask.trainer.peak import peak_bytes

RECIPE = "single-gpu/egspo-sa-llada-80gb"


@check(40)
def update_memory(bench: Bench) -> Outcome:
    """The peak of an update with adapters is within a tenth of the estimate, with and without
    gradient checkpointing."""
    if not bench.has_bounds:
        raise CheckSkippedError("the estimate is that of the full size on a GPU")
    denoiser = bench.adapted.denoiser
    facts: dict[str, Any] = {}
    for name, is_checkpointed in (("stored", False), ("recomputed", True)):
        settings = [f"gradient_checkpointing={str(is_checkpointed).lower()}", "num_prompts=1"]
        recipe = load_recipe(RECIPE, settings)
        lines = estimate(recipe, on_gpu=True).memory.peaks
        expected = next(line.bytes for line in lines if line.name == "update")
        if is_checkpointed:
            denoiser.checkpoint_gradients()
        work = work_of(recipe, bench.scale.prompt)
        path = work.rollout.trajectory.to(bench.device)
        views = _moved(work.views, bench.device).take(slice(0, recipe.views_per_forward))
        scoring = LogprobSettings.of(path, "sampling")

        def update() -> None:
            at_once = positions_at_once(denoiser)
            found = view_logprobs(denoiser, path, views, scoring, positions_at_once=at_once)  # noqa: B023
            found.logprob.sum().backward()

        denoiser.zero_grad(set_to_none=True)
        update()  # makes the gradients, which the estimate counts elsewhere
        measured = peak_bytes(update, device=bench.device)
        facts[name] = {
            "GB, estimated": expected / 1e9,
            "GB, measured": measured / 1e9,
            "s, forward and backward": timed(update, 2),
        }
    is_near = all(abs(fact["GB, estimated"] / fact["GB, measured"] - 1) < 0.1 for fact in facts.values())
    return Outcome(is_near, facts)


def _moved(views: Views, device: torch.device) -> Views:
    values = {f.name: getattr(views, f.name) for f in fields(views)}
    return Views(**{name: value.to(device) if torch.is_tensor(value) else value for name, value in values.items()})
