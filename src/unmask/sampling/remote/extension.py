"""What `unmask` adds to SGLang's format: fields under the key `unmask` of a request and of each
answer, with which a rollout on a server is the rollout that the same weights give in this process,
bit for bit.

Numbers are JSON numbers. A float32 number is written with enough digits to be read back as the same
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from unmask.core.branches import Branches
from unmask.core.by_path import is_path
from unmask.core.config import SamplerConfig
from unmask.core.records import GIVEN, Needs, Trajectory
from unmask.functional.selection import RULES, selected_path_steps
from unmask.sampling.remote.counts import check_fixed_counts
from unmask.sampling.remote.format import (
    MAX_LENGTH,
    FormatError,
    Request,
    SamplingParams,
    Strict,
    Token,
    Tokens,
    parsed,
    quoted,
)

MAX_SELECTED = 2**10
"""Maximum number of selected steps, and of branches of a step."""
MAX_SEED = 2**63 - 1
"""Largest seed of a row."""
ROUNDING = 1e-5
"""Largest amount by which rounding takes a log-probability above 0, or an entropy below 0."""

SMALLEST_SCALE, LARGEST_SCALE = 1e-6, 1e6
"""Smallest and largest temperature of a request, other than 0, and its largest guidance weight. Far
beyond them, logits overflow."""

FIELDS: dict[str, tuple[torch.dtype, str]] = {
    "tokens": (torch.int64, "L"),
    "unmask_step": (torch.int32, "L"),
    "logprob": (torch.float32, "L"),
    "entropy": (torch.float32, "L"),
    "choice_rank": (torch.int32, "L"),
    "choice_logprob": (torch.float32, "L"),
    "support": (torch.int32, "L A"),
    "one_step_tokens": (torch.int32, "K L"),
    "branch_tokens": (torch.int32, "K M L"),
}
"""Tensors of a trajectory that an answer holds, with their dtype and their shape without the rows;
see `Trajectory`. The selected steps follow from the others."""


class BranchesFields(Strict):
    """Settings of branches; see `Branches`."""

    num: int = Field(ge=1, le=MAX_SELECTED)
    scope: Literal["step", "all"] = "step"
    finish: Literal["greedy", "sampled", "rollout"] = "greedy"
    with_taken: bool = False


class NeedsFields(Strict):
    """Requirements of a method that the engine fulfils; see `Needs`."""

    greedy: bool = False
    # JSON has lists in place of tuples.
    selection: tuple[str, Annotated[int, Field(ge=1, le=MAX_SELECTED)]] = Field(("entropy_topk", 1), strict=False)
    branches: BranchesFields | None = None

    def needs(self) -> Needs:
        """Return the requirements.

        Raises:
            FormatError: there is no selection rule of this name.
        """
        if self.selection[0] not in RULES:
            raise FormatError(f"there is no selection rule {quoted(self.selection[0])}. Available: {', '.join(RULES)}.")
        branches = Branches(**self.branches.model_dump()) if self.branches else None
        return Needs(greedy=self.greedy, selection=self.selection, branches=branches)


class UnmaskFields(Strict):
    """The fields under `unmask` in a request."""

    sampler: dict[str, Any] = {}
    """Settings of the sampler that `sampling_params` does not have, by their names in a recipe."""
    seeds: list[Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)]] | None = None
    """Seed of each row. By default the seeds follow from `sampling_seed`, and without it they are
    random."""
    needs: NeedsFields | None = None
    """Requirements of a method."""
    entropy_temperature: float | None = Field(None, ge=SMALLEST_SCALE, le=LARGEST_SCALE, allow_inf_nan=False)
    """Temperature of the recorded entropies; by default that of the sampler."""
    completion: list[Tokens] | None = None
    """Completion of each row to start from; by default all masked."""
    first_step: list[Annotated[int, Field(ge=0, le=MAX_LENGTH)]] | None = None
    """First denoising step of each row; by default 0."""
    weight_version: str | None = None
    """Version of the weights that must sample the rollout; the request is refused if the server has
    another one."""
    batch_size: int | None = Field(None, ge=1)
    """Maximum number of completions that are denoised together."""
    max_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens that are denoised together; it replaces `batch_size`."""
    return_record: bool = False
    """True to return the record of each row under `unmask`."""


class RowRecord(Strict):
    """The fields under `unmask` in the answer to one prompt: one row of the tensors of a
    `Trajectory`, whose docstring describes them."""

    tokens: list[Token]
    unmask_step: list[int]
    logprob: list[float]
    entropy: list[float]
    choice_rank: list[int] | None = None
    choice_logprob: list[float] | None = None
    support: list[list[int]] | None = None
    one_step_tokens: list[list[Token]] | None = None
    branch_tokens: list[list[list[Token]]] | None = None
    token_passes: int = Field(0, ge=0, le=2**62)
    """Token passes of the whole request."""


def sampler_of(params: SamplingParams, settings: dict[str, Any]) -> SamplerConfig:
    """Return the sampler settings of a request.

    Raises:
        FormatError: a setting is wrong, so large or small that logits overflow, or names code.
    """
    for name in settings:
        if name not in SamplerConfig.model_fields or name in ("temperature", "top_k", "top_p", "max_completion_length"):
            raise FormatError(f"unmask.sampler has the setting {quoted(name)}, which is not one of its settings.")
    if is_path(settings.get("order")):
        raise FormatError(
            f"unmask.sampler.order = {quoted(settings['order'])} is the path of a function, and a request cannot name code. "
            "Use an order of the package."
        )
    known: dict[str, Any] = params.settings() | {"max_completion_length": params.max_new_tokens}
    try:
        sampler = SamplerConfig.model_validate(known | settings)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise FormatError(f"{place or 'sampler'}: {fault['msg'].removeprefix('Value error, ')}") from error
    for name, smallest in (("temperature", SMALLEST_SCALE), ("order_temperature", SMALLEST_SCALE), ("guidance", 0)):
        value = getattr(sampler, name)
        if value and not smallest <= value <= LARGEST_SCALE:
            raise FormatError(f"{name} = {value:g} is not between {smallest:g} and {LARGEST_SCALE:g}.")
    return sampler


def settings_of(sampler: SamplerConfig) -> dict[str, Any]:
    """Return the settings of a sampler that `sampling_params` does not have."""
    apart = {"temperature", "top_k", "top_p", "max_completion_length"}
    return {name: value for name, value in sampler.model_dump(mode="json").items() if name not in apart}


def needs_fields(needs: Needs | None) -> dict[str, Any] | None:
    """Return the requirements as JSON values."""
    if needs is None:
        return None
    branches = asdict(needs.branches) if needs.branches else None
    return {"greedy": needs.greedy, "selection": list(needs.selection), "branches": branches}


def num_stored(needs: Needs | None, sampler: SamplerConfig) -> int:
    """Return the number of one-step completions and branches that an answer holds for each
    completion."""
    if needs is None or not (needs.greedy or needs.branches):
        return 0
    num_selected = sampler.steps if needs.selection[0] == "all" else needs.selection[1]
    return num_selected * (1 + (needs.branches.count if needs.branches else 0))


def unmask_fields(request: Request) -> UnmaskFields:
    """Return the fields under `unmask` in a request, with their defaults.

    Raises:
        FormatError: a field has a wrong value.
    """
    given = (request.model_extra or {}).get("unmask")
    return parsed(UnmaskFields, {} if given is None else given, "unmask")


def row_records(path: Trajectory, token_passes: int) -> list[dict[str, Any]]:
    """Return the fields under `unmask` of the answers, one for each row of a trajectory."""
    columns = {name: getattr(path, name) for name in FIELDS if getattr(path, name) is not None}
    values = {name: tensor.cpu().tolist() for name, tensor in columns.items()}
    rows = [{name: rows[i] for name, rows in values.items()} for i in range(len(path))]
    return [row | {"token_passes": token_passes} for row in rows]


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer must hold: the vocabulary and the request."""

    vocab_size: int
    mask_id: int
    eos_id: int
    sampler: SamplerConfig
    needs: Needs | None
    has_choice: bool
    """True if the order draws positions, so that the answer has their ranks."""
    is_given: Tensor | None
    """[B, L] bool, True for tokens that were given with the request; None if there are none."""
    first_step: Tensor | None = None
    """[B] int64 first step of each row; None for 0."""


def tensors_of(records: Sequence[RowRecord], seeds: Tensor, expected: Expected) -> dict[str, Tensor]:
    """Return the tensors of a trajectory from the records of its rows, which may be hostile.

    Args:
        records: B records.
        seeds: [B] int64 seeds of the rows.
        expected: what the records must hold.

    Raises:
        FormatError: a tensor is missing, has another shape or values out of range, or the steps do
            not describe a rollout of this sampler.
    """
    length, needs = expected.sampler.max_completion_length, expected.needs
    names = ["tokens", "unmask_step", "logprob", "entropy"]
    names += ["choice_rank", "choice_logprob"] if expected.has_choice else []
    tensors = {name: _tensor(name, records, (length,)) for name in names}
    _check_tokens("tokens", tensors["tokens"], expected)
    _check_steps(tensors["unmask_step"], expected)
    check_fixed_counts(tensors["unmask_step"], expected.sampler, expected.first_step)
    for name in {"logprob", "choice_logprob"} & tensors.keys():
        if not (torch.isfinite(tensors[name]) & (tensors[name] <= ROUNDING)).all():
            raise FormatError(f"{name} has values that are no log-probabilities.")
    if not (torch.isfinite(tensors["entropy"]) & (tensors["entropy"] >= -ROUNDING)).all():
        raise FormatError("entropy has values that are no entropies.")
    if needs is not None and expected.sampler.top_k:
        tensors["support"] = _tensor("support", records, (length, expected.sampler.top_k))
        _check_support(tensors["support"], tensors["tokens"], tensors["unmask_step"], expected)
    if needs is not None and (needs.greedy or needs.branches):
        tensors |= _completions(records, tensors, seeds, expected, needs)
    unasked = [
        name for name in FIELDS if name not in tensors and any(getattr(one, name) is not None for one in records)
    ]
    if unasked:
        raise FormatError(f"the record has {unasked[0]}, which was not requested.")
    return tensors


def _completions(
    records: Sequence[RowRecord], tensors: dict[str, Tensor], seeds: Tensor, expected: Expected, needs: Needs
) -> dict[str, Tensor]:
    """Return the selected steps, their one-step completions and their branches. Each completion
    must hold the tokens that were committed before its step."""
    tokens, when = tensors["tokens"], tensors["unmask_step"]
    is_eos = tokens == expected.eos_id
    steps = selected_path_steps(needs.selection, when, tensors["entropy"], is_eos, seeds, expected.sampler.steps)
    num, length = steps.shape[1], tokens.shape[1]
    found = {"selected_step": steps.int(), "one_step_tokens": _tensor("one_step_tokens", records, (num, length))}
    if needs.branches:
        found["branch_tokens"] = _tensor("branch_tokens", records, (num, needs.branches.count, length))
    row, slot = (steps >= 0).nonzero(as_tuple=True)
    is_committed = (when[row] < steps[row, slot].unsqueeze(-1)).unsqueeze(1)
    for name in found.keys() - {"selected_step"}:
        completions = found[name][row, slot].view(len(row), -1, length)
        _check_tokens(name, completions, expected)
        if ((completions != tokens[row].unsqueeze(1)) & is_committed).any():
            raise FormatError(f"{name} differs from the completion where its state has tokens already.")
    return found


def _tensor(name: str, records: Sequence[RowRecord], shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of a name, whose rows must have a shape."""
    rows = [getattr(record, name) for record in records]
    if any(row is None for row in rows):
        raise FormatError(f"the record lacks {name}.")
    try:
        tensor = torch.tensor(rows, dtype=FIELDS[name][0])
    except (ValueError, RuntimeError, OverflowError, TypeError) as error:
        raise FormatError(f"{name} is not a table of numbers: {str(error).splitlines()[0]}.") from error
    if tuple(tensor.shape[1:]) != shape:
        raise FormatError(f"{name} has the shape {list(tensor.shape[1:])} in a row, not {list(shape)}.")
    return tensor


def _check_tokens(name: str, tokens: Tensor, expected: Expected) -> None:
    if tokens.numel() and (int(tokens.max()) >= expected.vocab_size or (tokens == expected.mask_id).any()):
        raise FormatError(
            f"{name} has tokens that are not in the vocabulary of {expected.vocab_size}, or the MASK token {expected.mask_id}."
        )


def _check_support(support: Tensor, tokens: Tensor, unmask_step: Tensor, expected: Expected) -> None:
    """Check that the allowed tokens of a position are tokens, and that the drawn one is among
    them."""
    if ((support < -1) | (support >= expected.vocab_size) | (support == expected.mask_id)).any():
        raise FormatError("support has tokens that are not in the vocabulary, or the MASK token.")
    is_sampled = (unmask_step >= 0) & (unmask_step < expected.sampler.steps)
    if not (support == tokens.unsqueeze(-1)).any(-1)[is_sampled].all():
        raise FormatError("support lacks a token that was drawn.")


def _check_steps(unmask_step: Tensor, expected: Expected) -> None:
    """Check that every position was committed by a step of its block, was given, or was filled in
    after the end."""
    sampler, steps = expected.sampler, expected.sampler.steps
    in_block = unmask_step.unflatten(1, (-1, sampler.block))
    is_sampled = (in_block >= 0) & (in_block < steps)
    if sampler.is_adaptive:
        # The steps of a row count on through its blocks.
        ends = in_block.masked_fill(~is_sampled, -1).max(-1).values.cummax(-1).values
        first = torch.nn.functional.pad(ends, (1, 0), value=-1)[:, :-1] + 1
        last = torch.full_like(first, steps - 1)
    else:
        first = torch.arange(in_block.shape[1]).expand(len(in_block), -1) * sampler.steps_per_block
        last = first + sampler.steps_per_block - 1
    is_in_block = is_sampled & (in_block >= first.unsqueeze(-1)) & (in_block <= last.unsqueeze(-1))
    is_right = (is_in_block | (in_block == steps)).flatten(1)
    if expected.is_given is not None:
        is_right = torch.where(expected.is_given, unmask_step == GIVEN, is_right)
    if not is_right.all():
        row, position = (int(index) for index in (~is_right).nonzero()[0])
        raise FormatError(
            f"position {position} of row {row} has the step {int(unmask_step[row, position])}, which is no step of its block."
        )
