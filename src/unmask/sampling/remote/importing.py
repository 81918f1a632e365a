"""Import of recorded answers as a trajectory. The policy computes the log-probabilities and
entropies by replay, and the import is refused if the tokens cannot be draws from its
distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError
from unmask.core.records import Trajectory
from unmask.functional.drawn import draw_evidence
from unmask.functional.noise import named_generator
from unmask.functional.schedule import tokens_at_step
from unmask.models import Policy
from unmask.sampling.encoding import check_fits_context, row_seeds
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.remote.format import FormatError
from unmask.sampling.remote.paths import AnswerRow, answer_row, path_of
from unmask.sampling.remote.recorded import Recorded
from unmask.sampling.replay import Replayed, replayed

TEST_SIZE = 1e-6
"""Size of the test of whether tokens are draws from the policy, on each side: the largest
probability with which it refuses a rollout that is one."""

BY_STATE = frozenset({"entropy", "left_to_right", "margin", "random"})
"""Orders whose choice of positions does not depend on the drawn tokens."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Difference of the engine's log-probabilities from those of the replay."""

    num_tokens: int
    """Number of tokens that the engine gave a log-probability."""
    mean: float
    """Mean absolute difference, nats."""
    largest: float
    """Largest absolute difference, nats."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A trajectory of recorded answers."""

    trajectory: Trajectory
    """The paths, with log-probabilities and entropies of the policy."""
    group_size: int
    """Number of successive answers to the same prompt."""
    mismatch: Mismatch | None
    """Difference of the log-probabilities; None if the engine gave none."""
    num_tested: int
    """Number of tokens that the test of the draws could use."""
    other_share: float
    """Share of these tokens that are not the most likely one."""


def imported(
    file: Path,
    recorded: Sequence[Recorded],
    policy: Policy,
    *,
    block_length: int | None = None,
    num_steps: int | None = None,
    order: str = "low_confidence",
    seed: int = 0,
    batch_size: int = 64,
) -> Imported:
    """Return the trajectory of recorded answers, under the weights of a policy.

    Args:
        file: file of the answers, for messages.
        recorded: the answers.
        policy: policy that sampled them, in evaluation mode.
        block_length: number of positions in a block; default that of a block-causal model, or the
            whole completion.
        num_steps: number of denoising steps of a completion; default as many as the answers need.
        order: order in which the engine commits positions.
        seed: seed of the rows' seeds, on which later random choices depend, such as that of
            selected steps.
        batch_size: maximum number of states in a forward pass of the replay.

    Raises:
        DataError: an answer cannot be the path of a completion of this policy; the message names
            its line.
    """
    if order in POSITION_LOGITS:
        raise DataError(
            f"the order {order} draws positions, and the format does not hold the order of the draws within a step. "
            "Import rollouts of another order."
        )
    group_size = _group_size(file, recorded)
    sampler, rows = _read(file, recorded, policy, block_length, num_steps, order)
    seeds = row_seeds(len(rows), named_generator(seed, "import"))
    path = path_of(rows, [one.prompt for one in recorded], sampler, seeds, policy)
    found = replayed(policy.denoiser, path, batch_size=batch_size)
    _check_support(file, recorded, found)
    is_tested = _unselected(path)
    other = ~found.is_likeliest[is_tested]
    _check_draws(file, found, is_tested)
    return Imported(
        found.trajectory,
        group_size,
        _mismatch(file, recorded, found.trajectory),
        int(is_tested.sum()),
        float(other.float().mean()) if len(other) else 0.0,
    )


def _read(
    file: Path,
    recorded: Sequence[Recorded],
    policy: Policy,
    block_length: int | None,
    num_steps: int | None,
    order: str,
) -> tuple[SamplerConfig, list[AnswerRow]]:
    """Return the sampler settings of all answers, and their tokens and steps."""
    first = recorded[0]
    for one in recorded:
        if (differing := _differing(one, first)) is not None:
            raise DataError(
                f"{file}, line {one.line}: {differing} differs from line {first.line}. One rollout has one sampler: import the "
                "answers of each in a file of its own."
            )
    block = block_length or policy.denoiser.block_length or first.params.max_new_tokens
    length = -(-first.params.max_new_tokens // block) * block
    check_fits_context(policy.denoiser, max(len(one.prompt) for one in recorded), length)
    rows = []
    for one in recorded:
        try:
            rows.append(answer_row(one.answer, one.prompt, length, block, policy))
        except FormatError as fault:
            raise DataError(f"{file}, line {one.line}: {fault}") from fault
    needed = (max(step for row in rows for step in row.steps) + 1) * (length // block)
    settings: dict[str, Any] = first.params.settings() | {"max_completion_length": length, "block_length": block}
    try:
        sampler = SamplerConfig(**settings, num_steps=num_steps or needed, order=order)
    except ValidationError as error:
        raise DataError(f"{file}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    if sampler.steps < needed:
        raise DataError(f"{file} has completions of {needed} denoising steps, more than --steps {num_steps}. Raise it.")
    return sampler, rows


def _differing(one: Recorded, first: Recorded) -> str | None:
    """Return the name and the value of a sampling parameter in which two requests differ."""
    for name in ("temperature", "top_k", "top_p", "max_new_tokens"):
        if getattr(one.params, name) != getattr(first.params, name):
            return f"sampling_params.{name} = {getattr(one.params, name)}"
    return None


def _group_size(file: Path, recorded: Sequence[Recorded]) -> int:
    """Return the number of successive answers to the same prompt, which must be the same for all
    prompts."""
    starts = [i for i, one in enumerate(recorded) if i == 0 or one.prompt != recorded[i - 1].prompt]
    sizes = [stop - start for start, stop in zip(starts, [*starts[1:], len(recorded)], strict=True)]
    for start, size in zip(starts, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{file}, line {recorded[start].line}: this prompt and the first one have {size} and {sizes[0]} successive "
                "answers. Every prompt needs the same number of answers, next to each other."
            )
    return sizes[0]


def _check_support(file: Path, recorded: Sequence[Recorded], found: Replayed) -> None:
    """Refuse tokens that the sampling distribution excludes, and log-probabilities that are not
    numbers."""
    path = found.trajectory
    row, position = (~torch.isfinite(path.logprob)).nonzero(as_tuple=True)
    if not len(row):
        return
    at, where = int(row[0]), int(position[0])
    sampler = path.sampler
    raise DataError(
        f"{file}, line {recorded[at].line}: the token {int(path.tokens[at, where])} at position {where} cannot be drawn under "
        f"this policy with temperature = {sampler.temperature:g}, top_k = {sampler.top_k or -1}, top_p = {sampler.top_p:g}: its "
        f"log-probability is {float(path.logprob[at, where])}. The engine sampled from another support, or with other weights."
    )


def _unselected(path: Trajectory) -> Tensor:
    """Return [B, L] bool, True for tokens whose draw had no part in the choice of their position.

    Under an order that looks at the drawn tokens, these are the tokens of a step that had to commit
    all positions that were left in the block: the last position of a block, and everything in the
    last step of a block if the number of tokens of each step is fixed.
    """
    is_sampled = (path.unmask_step >= 0) & (path.unmask_step < path.num_steps)
    if path.sampler.order in BY_STATE:
        return is_sampled
    in_block = path.unmask_step.unflatten(1, (-1, path.sampler.block))
    is_alone = (in_block.unsqueeze(-1) <= in_block.unsqueeze(-2)).sum(-1) == 1
    is_forced = is_alone.flatten(1)
    if _has_fixed_counts(path):
        per_block = path.sampler.steps_per_block
        is_forced = is_forced | (path.unmask_step % per_block == per_block - 1)
    return torch.logical_and(is_sampled, is_forced)


def _has_fixed_counts(path: Trajectory) -> bool:
    """Return True if every finished block has committed as many tokens in each step as the fixed
    schedule of the sampler does."""
    block, per_block = path.sampler.block, path.sampler.steps_per_block
    in_block = path.unmask_step.unflatten(1, (-1, block))
    in_block = in_block[(in_block < path.num_steps).all(-1)] % per_block
    counts = (in_block.unsqueeze(-1) == torch.arange(per_block, device=in_block.device)).sum(1)
    left, expected = torch.tensor([block]), []
    for step in range(per_block):
        expected.append(tokens_at_step(left, per_block - step))
        left = left - expected[-1]
    return bool((counts == torch.cat(expected).to(counts.device)).all())


def _check_draws(file: Path, found: Replayed, is_tested: Tensor) -> None:
    """Refuse tokens that cannot be draws from the policy; see `draw_evidence`."""
    sampler = found.trajectory.sampler
    if sampler.temperature == 0:
        return
    is_likeliest, largest = found.is_likeliest[is_tested], found.largest[is_tested]
    few, many = draw_evidence(is_likeliest, largest)
    if max(few, many) < -math.log(TEST_SIZE):
        return
    num, expected = int((~is_likeliest).sum()), float((1 - largest).sum())
    cause = (
        "The engine took the most likely token, or sampled at a lower temperature."
        if few > many
        else "The engine has other weights, another tokenizer or a fault: the tokens are unlikely under this policy."
    )
    raise DataError(
        f"{file}: {num} of {len(is_likeliest)} tokens are not the most likely one, and {expected:.1f} are expected at "
        f"temperature {sampler.temperature:g}. A rollout of this policy differs as much with a probability of at most "
        f"{TEST_SIZE:g}. {cause}"
    )


def _mismatch(file: Path, recorded: Sequence[Recorded], path: Trajectory) -> Mismatch | None:
    """Compare the log-probabilities that the engine gave with those of the replay."""
    differences = []
    for row, one in enumerate(recorded):
        given = one.answer.meta_info.output_token_logprobs
        if given is None:
            continue
        if len(given) != len(one.answer.output_ids):
            raise DataError(
                f"{file}, line {one.line}: output_token_logprobs has {len(given)} entries for {len(one.answer.output_ids)} "
                "output tokens."
            )
        for position, entry in enumerate(given):
            value = entry[0] if isinstance(entry, list) and entry else entry
            if isinstance(value, int | float) and path.unmask_step[row, position] < path.num_steps:
                differences.append(abs(float(value) - float(path.logprob[row, position])))
    if not differences:
        return None
    return Mismatch(len(differences), sum(differences) / len(differences), max(differences))
