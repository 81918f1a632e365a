"""Groups without signal, and how further rollouts replace them (dynamic sampling of DAPO,
arXiv:2503.14476).

A group has no signal if all of its advantages are 0, as the method computes them. For a method that
compares the completions of a group these are the groups of equal rewards. A method with other credit,
such as stepwise advantages, may learn from these groups, too.

DAPO samples until the batch is full. Here the number of extra rollouts is limited, because a task
that is too hard or solved has no groups with signal. Each extra rollout samples as many other prompts
as there are groups to replace. The prompts and the random draws depend on the seed, the training step
and the round alone, so a resumed run and any number of ranks make the same rollouts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from unmask.core.records import Rollout, Row
from unmask.functional.noise import named_generator
from unmask.methods import Method
from unmask.trainer.collect import indices_of_step
from unmask.trainer.metrics import Tally

NO_SIGNAL_STEPS = 5
"""Number of consecutive steps without a group that has signal. After this number, a warning is
logged."""

logger = logging.getLogger("unmask")


def further_prompts(rows: Sequence[Row], step: int, num_prompts: int, seed: int) -> Iterator[Row]:
    """Yield examples that can replace those of a training step, without end. All examples that are
    not among those of the step come first, in a random order; then all examples come again in
    another order, and so on."""
    shown = set(indices_of_step(len(rows), step, num_prompts, seed))
    times = 0
    while True:
        order = torch.randperm(len(rows), generator=named_generator(seed, "refill", step, times)).tolist()
        yield from (rows[i] for i in order if times or i not in shown)
        times += 1


def refilled(
    rollout: Rollout,
    prompts: Sequence[Row],
    method: Method,
    further: Iterator[Row],
    max_rounds: int,
    sample: Callable[[list[Row], int], Rollout],
    tally: Tally,
) -> tuple[Rollout, list[Row]]:
    """Replace groups without signal, and return a rollout of the same size and the example of each of
    its groups. All ranks have the same groups and do the same.

    Args:
        rollout: the groups of all ranks.
        prompts: the example of each group.
        method: method that says which groups have signal.
        further: examples that replace others.
        max_rounds: maximum number of extra rollouts.
        sample: function that returns one group for each example, of all ranks; its other argument is
            the number of the extra rollout, from 1.
        tally: object to which the metrics are added.
    """
    prompts, rounds, sampled = list(prompts), 0, 0
    has_signal = method.has_signal(rollout)
    while rounds < max_rounds and not has_signal.all():
        rounds += 1
        places = (~has_signal).nonzero().squeeze(-1).tolist()
        others = [next(further) for _ in places]
        rollout = _with_groups(rollout, places, sample(others, rounds))
        for place, row in zip(places, others, strict=True):
            prompts[place] = row
        sampled += len(others)
        has_signal = method.has_signal(rollout)
    tally.add("advantage/frac_flat_groups", (~has_signal).float())
    if max_rounds:
        tally.add("refill/rounds", float(rounds))
        tally.add("refill/extra_share", sampled / len(prompts))
    return rollout, prompts


def _with_groups(rollout: Rollout, places: list[int], others: Rollout) -> Rollout:
    """Return the rollout with other groups at some places."""
    order = torch.arange(len(rollout.trajectory) // rollout.group_size)
    order[places] = len(order) + torch.arange(len(places))
    return Rollout.cat([rollout, others]).groups(order)


class SignalWatch:
    """Warns once if no group of a run has had signal for several steps."""

    def __init__(self) -> None:
        self._identical: list[float] = []
        self._is_told = False

    def see(self, frac_flat: float, frac_identical: float) -> None:
        """Take note of a training step.

        Args:
            frac_flat: share of groups without signal.
            frac_identical: share of groups whose completions are all the same text.
        """
        self._identical = [*self._identical, frac_identical] if frac_flat == 1 else []
        if len(self._identical) == NO_SIGNAL_STEPS and not self._is_told:
            self._is_told = True
            logger.warning(_warning(sum(self._identical) / NO_SIGNAL_STEPS))


def _warning(identical: float) -> str:
    return (
        f"for {NO_SIGNAL_STEPS} steps the advantages of all groups have been 0, so the model learns nothing. In {identical:.0%} "
        "of the groups all completions are the same text. Usual causes: the reward function does not find the answer in the "
        "completion (look at rollouts/), the task is too hard or already solved, or num_generations or sampler.temperature "
        "is too small."
    )
