"""Resuming a run with another number of steps: what that does to the learning rate, which of the two runs it is then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.functional.schedule import learning_rate_factor


def difference_of(before: Mapping[str, Any], now: Mapping[str, Any], done: int) -> str | None:
    """Say in what a run that goes on to another `max_steps` differs from one that is started with it.

    Where the learning rate has not depended on `max_steps` so far, there is no difference, bit for bit. Otherwise the rates of
    the steps that are done were those of the old number: the run may go on, but has to say so.

    Args:
        before: the settings that the run was started with, as one level of dotted keys.
        now: the settings that it is resumed with.
        done: steps done at the newest checkpoint.

    Returns:
        The difference in a few sentences; None where there is none.
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
