"""Import of recorded answers as a trajectory. The policy computes the log-probabilities and
entropies by replay, and the import is refused if the tokens cannot be draws from its
distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError
from unmask.core.records import Trajectory
from unmask.functional.noise import named_generator
from unmask.models import Policy
from unmask.sampling.encoding import check_fits_context, row_seeds
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.remote.counts import has_fixed_counts
from unmask.sampling.remote.draws import excluded_token, fault_of_draws, unselected
from unmask.sampling.remote.format import FormatError
from unmask.sampling.remote.paths import AnswerRow, answer_row, path_of
from unmask.sampling.remote.recorded import Recorded
from unmask.sampling.replay import replayed


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
    schedule: str = "fixed",
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
        num_steps: number of denoising steps of a completion; default as many as the answers need,
            or under an adaptive schedule the number of positions.
        order: order in which the engine commits positions.
        schedule: rule for the number of positions that a step commits.
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
    path = _path(
        file, recorded, policy, block_length, {"num_steps": num_steps, "order": order, "schedule": schedule}, seed
    )
    found = replayed(policy.denoiser, path, batch_size=batch_size)
    if (excluded := excluded_token(found)) is not None:
        raise DataError(f"{file}, line {recorded[excluded[0]].line}: {excluded[1]}")
    if (sentence := fault_of_draws(found)) is not None:
        raise DataError(f"{file}: {sentence}")
    other = ~found.is_likeliest[unselected(path)]
    return Imported(
        found.trajectory,
        group_size,
        _mismatch(file, recorded, found.trajectory),
        len(other),
        float(other.float().mean()) if len(other) else 0.0,
    )


def _path(
    file: Path,
    recorded: Sequence[Recorded],
    policy: Policy,
    block_length: int | None,
    own: dict[str, Any],
    seed: int,
) -> Trajectory:
    """Return the paths of all answers, without log-probabilities; `own` are the settings of the
    sampler that the requests do not have."""
    sampler, rows = _read(file, recorded, policy, block_length, own)
    seeds = row_seeds(len(rows), named_generator(seed, "import"))
    try:
        path = path_of(rows, [one.prompt for one in recorded], sampler, seeds, policy)
    except FormatError as fault:
        raise DataError(f"{file}: {fault}") from fault
    if not sampler.is_adaptive and not has_fixed_counts(path.unmask_step, sampler):
        raise DataError(
            f"{file}: the steps do not commit as many tokens as {sampler.steps_per_block} steps for each block of "
            f"{sampler.block} positions would. The engine decides by its predictions how many it commits: name its rule, as in "
            "--schedule threshold=0.95."
        )
    return path


def _read(
    file: Path, recorded: Sequence[Recorded], policy: Policy, block_length: int | None, own: dict[str, Any]
) -> tuple[SamplerConfig, list[AnswerRow]]:
    """Return the sampler settings of all answers, and their tokens and steps; `own` are the settings
    that the requests do not have."""
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
    settings: dict[str, Any] = first.params.settings() | {"max_completion_length": length, "block_length": block} | own
    try:
        longest = SamplerConfig.model_validate(settings | {"num_steps": length})
        needed = (max(step for row in rows for step in row.steps) + 1) * (length // block)
        settings["num_steps"] = settings["num_steps"] or (length if longest.is_adaptive else needed)
        return SamplerConfig.model_validate(settings), rows
    except ValidationError as error:
        raise DataError(f"{file}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


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
