"""Time of a training step and of a whole run, from the work and from what a device sustains.

A pass takes the longest of two times: that of its operations, and that of reading the weights that
its tokens use once for each forward pass. Adapters beside the weights add the time of the bytes that
they move, 4-bit weights that of unpacking them for each forward pass, and top-k and top-p that of
limiting the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.cli.estimate.flops import Costs
from unmask.cli.estimate.memory import NF4, weight_size
from unmask.cli.estimate.work import Pass, Work
from unmask.core.errors import ConfigError
from unmask.recipes.schema import TrainRecipe

BALANCE = 140
"""Operations that a device does in the time in which it moves a byte, if its bandwidth is not
given: 4e14 FLOP/s and 2.85e12 bytes/s on an H100."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device sustains."""

    update: float
    """Floating-point operations per second in scoring and updates."""
    rollout: float
    """Floating-point operations per second in rollouts and evaluations."""
    bandwidth: float
    """Bytes per second to and from its memory."""

    @classmethod
    def of(cls, flops: float | None, rollout_flops: float | None, bandwidth: float | None) -> Rates | None:
        """Return the rates with defaults filled in; None if no rate of updates is given.

        Raises:
            ConfigError: another rate is given without the rate of updates.
        """
        if flops is None:
            if rollout_flops or bandwidth:
                raise ConfigError("--rollout-flops and --bandwidth need --flops, the rate of the updates. Give it too.")
            return None
        return cls(flops, rollout_flops or flops, bandwidth or flops / BALANCE)


@dataclass(frozen=True, slots=True)
class Durations:
    """Time of a run on one rank, in seconds."""

    passes: dict[str, float]
    """Time of each kind of pass in a training step."""
    evaluation: float
    """Time of one evaluation."""
    run: float
    """Time of all training steps and evaluations."""

    @property
    def step(self) -> float:
        """Time of a training step."""
        return sum(self.passes.values())


def durations_of(work: Work, costs: Costs, rates: Rates, recipe: TrainRecipe) -> Durations:
    """Estimate the time of a run on one rank.

    Args:
        work: work of the rank in a training step.
        costs: operations of the model.
        rates: what the device sustains.
        recipe: settings of the run.
    """
    size = weight_size(recipe)
    unpacked = (NF4 + size) * costs.trunk / 2 if recipe.lora and recipe.lora.quantize == "4bit" else 0

    def seconds(each: Pass) -> float:
        is_sampling = each.name.startswith(("rollout", "evaluation"))
        limits = each.limited * work.limiting.operations
        operations = (costs.total(each) + limits) / (rates.rollout if is_sampling else rates.update)
        num_forwards = each.forwards * (2 + costs.recomputes if each.backward else 1)
        reading = num_forwards * size * costs.read(each) / rates.bandwidth
        more = costs.moved(each) + num_forwards * unpacked + each.limited * work.limiting.bytes
        return max(operations, reading) + more / rates.bandwidth

    passes = {each.name: seconds(each) for each in work.passes}
    evaluation = seconds(work.evaluation)
    run = work.steps * sum(passes.values()) + work.evaluations * evaluation
    return Durations(passes, evaluation, run)
