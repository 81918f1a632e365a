"""What resuming a run with another `max_steps` does to its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.functional.schedule import learning_rate_factor


def difference_of(before: Mapping[str, Any], now: Mapping[str, Any], done: int) -> str | None:
    """Describe how a run that continues to another `max_steps` differs from a run that is started with it.

    If the learning rate has not depended on `max_steps` so far, the two are the same, bit for bit. Otherwise the finished steps
    used the rates of the old `max_steps`: the run may continue, but the difference has to be recorded.

    Args:
        before: the settings that the run was started with, as values by dotted key.
        now: the settings that it is resumed with.
        done: number of training steps at the newest checkpoint.

    Returns:
        A few sentences; None if there is no difference.
    """
    old, new = int(before["max_steps"]), int(now["max_steps"])
    rates = [
        [_factor(settings, step, steps) for step in range(done)] for settings, steps in ((before, old), (now, new))
    ]
    if rates[0] == rates[1]:
        return None
    kind, next_rate = now["optim.lr_schedule"], _factor(now, min(done, new - 1), new)
    return (
        f"up to step {done} the learning rate was that of max_steps = {old}, and from there on it is that of max_steps = {new}: "
        f"the {kind} schedule depends on max_steps. It ended at {rates[0][-1]:.3g} of the peak and goes on at {next_rate:.3g}. "
        f"A run that is started with max_steps = {new} comes to another model; with optim.lr_schedule = constant it would not."
    )


def _factor(settings: Mapping[str, Any], step: int, num_steps: int) -> float:
    return learning_rate_factor(
        step,
        num_steps,
        settings["optim.warmup_steps"],
        settings["optim.lr_schedule"],
        settings["optim.lr_floor"],
    )
