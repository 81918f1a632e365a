"""The effect of a new `max_steps` on the learning rate of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.functional.schedule import learning_rate_factor


def difference_of(before: Mapping[str, Any], now: Mapping[str, Any], done: int) -> str | None:
    """Describe how a run that is resumed with a new `max_steps` differs from a run that uses this
    value from the start.

    If the learning rate has not depended on `max_steps` so far, the two runs are equal bit for bit.
    Otherwise the finished steps used the rates of the old `max_steps`: the run may continue, but
    the difference is recorded.

    Args:
        before: settings at the start of the run, by dotted key.
        now: settings of the resumed run, by dotted key.
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
        f"up to step {done} the learning rate followed max_steps = {old}, and from now on it follows max_steps = {new}, because "
        f"the {kind} schedule depends on max_steps. The learning rate changes from {rates[0][-1]:.3g} to {next_rate:.3g} of "
        f"its peak. A new run with max_steps = {new} would give another model; with "
        "optim.lr_schedule = constant it would not."
    )


def _factor(settings: Mapping[str, Any], step: int, num_steps: int) -> float:
    return learning_rate_factor(
        step,
        num_steps,
        settings["optim.warmup_steps"],
        settings["optim.lr_schedule"],
        settings["optim.lr_floor"],
    )
