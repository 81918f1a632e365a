"""An engine that samples on servers, in SGLang's format."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.config import SamplerConfig
from unmask.core.errors import EngineError
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser, Policy
from unmask.sampling import Snapshot
from unmask.sampling.encoding import Prompt, batches_by_length, check_fits_context, encode_all, left_pad, turn_end
from unmask.sampling.engine import BatchLimits, batch_size_for
from unmask.sampling.one_step import completions_of, with_completions
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.remote.counts import check_fixed_counts
from unmask.sampling.remote.draws import excluded_token, fault_of_draws
from unmask.sampling.remote.extension import Expected, RowRecord, needs_fields, num_stored, settings_of, tensors_of
from unmask.sampling.remote.format import Answer, FormatError, SamplingParams, parsed, quoted
from unmask.sampling.remote.paths import answer_row, path_of
from unmask.sampling.remote.servers import Servers, as_error, shares
from unmask.sampling.replay import replayed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUEST_ROWS = 512
"""Maximum number of prompts of a request that has several batches."""
BATCH_ROWS = 4096
"""Maximum number of prompts of a request, which is what `unmask serve` takes by default."""
BYTES_PER_NUMBER = 32
"""Largest number of bytes that a number takes in an answer."""
BYTES_PER_ROW = 2**14
"""Number of bytes of an answer to one prompt besides its numbers and its text."""


@dataclass(frozen=True, slots=True)
class _Given:
    """The arguments of a rollout."""

    encoded: list[list[int]]
    """Tokens of the prompts."""
    sampler: SamplerConfig
    seeds: Tensor
    needs: Needs | None
    entropy_temperature: float | None
    completion: Tensor | None
    first_step: Tensor | None

    def rows(self, index: list[int]) -> _Given:
        """Return the arguments for some of the rows."""
        completion = None if self.completion is None else self.completion[index]
        first_step = None if self.first_step is None else self.first_step[index]
        encoded, seeds = [self.encoded[i] for i in index], self.seeds[index]
        return replace(self, encoded=encoded, seeds=seeds, completion=completion, first_step=first_step)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request to a server."""

    index: list[int]
    """Rows of the rollout that it asks for."""
    given: _Given
    """Arguments of these rows."""
    names: list[str]
    """Name of each row, which the answer repeats."""
    content: dict[str, Any]
    """JSON content of the request."""
    max_bytes: int
    """Largest number of bytes of the answer."""


class HttpEngine:
    """Engine that samples on servers; see `RolloutEngine`.

    Servers of unmask return the whole record of a rollout. Servers of SGLang return tokens and step
    maps, from which the policy computes the rest.

    Args:
        policy: model that is trained, and its tokenizer.
        servers: the servers.
        limits: limits on the size of a forward pass.
        weights: function that opens the weights of the model for a replay; by default the model
            itself.
    """

    def __init__(
        self,
        policy: Policy,
        servers: Servers,
        limits: BatchLimits | None = None,
        weights: Callable[[], AbstractContextManager[Denoiser]] | None = None,
    ) -> None:
        self.policy, self.servers, self.limits, self.weights = policy, servers, limits or BatchLimits(), weights
        self._turn_end = turn_end(policy.tokenizer)
        self._encoded: dict[str, list[int]] = {}
        self._replaying: Denoiser | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the policy."""
        return self.policy.tokenizer

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of prompts, and keep them. A thread other than the main one can use
        only prompts that were encoded before."""
        new = {str(prompt): prompt for prompt in prompts if str(prompt) not in self._encoded}
        self._encoded |= dict(zip(new, encode_all(self.tokenizer, list(new.values())), strict=True))
        return [self._encoded[str(prompt)] for prompt in prompts]

    def rollout(
        self,
        prompts: Sequence[Prompt],
        sampler: SamplerConfig,
        seeds: Tensor,
        *,
        needs: Needs | None = None,
        entropy_temperature: float | None = None,
        completion: Tensor | None = None,
        first_step: Tensor | None = None,
        observe: Callable[[Snapshot], None] | None = None,
    ) -> Trajectory:
        """Denoise one completion for each prompt on the servers; see `RolloutEngine.rollout`. The
        function `observe` is not called.

        Raises:
            DataError: a prompt cannot be encoded, or is too long for the model.
            EngineError: a server does not answer, or its answer cannot be used.
        """
        encoded, version = self.encode(prompts), self.servers.version
        if version is None:
            raise ValueError("the servers have no weights yet: call update_weights first")
        check_fits_context(self.policy.denoiser, max(map(len, encoded)), sampler.max_completion_length)
        if completion is not None and not self.servers.is_ours:
            raise EngineError(
                "servers of SGLang do not start from a given completion, which a method with method.finish = rollout needs. "
                "Use unmask serve, or another method.finish."
            )
        given = _Given(encoded, sampler, seeds, needs, entropy_temperature, completion, first_step)
        asked = [self._requests(given, part) for part in shares(len(encoded), len(self.servers.servers))]
        contents = [[(request.content, request.max_bytes) for request in own] for own in asked]
        found, order = [], []
        for server, own, answers in zip(
            self.servers.servers, asked, self.servers.generate(contents, version), strict=False
        ):
            for request, answer in zip(own, answers, strict=True):
                try:
                    rows = self._answers(answer, request.names, version)
                    read = self._recorded if self.servers.is_ours else self._replayed
                    found.append(read(rows, request.given))
                except FormatError as fault:
                    raise as_error(server, fault) from fault
                order += request.index
        device = next(self.policy.denoiser.parameters()).device
        whole = Trajectory.cat(found).to(device).rows(torch.tensor(order, device=device).argsort())
        return replace(whole, turn_end_id=self._turn_end, policy_version=version)

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Write the weights of the run, and let the servers load them. All ranks call this."""
        self.servers.update(version)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Open a block of rollouts that use the same weights; see `RolloutEngine.session`."""
        if self.weights is None or self.servers.is_ours:
            yield
            return
        with self.weights() as self._replaying:
            try:
                yield
            finally:
                self._replaying = None

    def _requests(self, given: _Given, part: slice) -> list[_Asked]:
        """Return the requests for a part of the rows, of limited size, so that none of them takes
        long. Each has whole batches: the forward passes are those of a single request."""
        sampler, rows = given.sampler, range(part.start, part.stop)
        lengths, batch_size = [len(given.encoded[row]) for row in rows], self.limits.batch_size
        indices = [list(rows)]
        if len(rows) > REQUEST_ROWS:
            batch_size = batch_size_for(self.limits, self.policy.denoiser, lengths, sampler, given.needs)
            batches = batches_by_length(lengths, sampler.max_completion_length, batch_size, self.limits.max_tokens)
            indices = [[part.start + i for i in request] for request in joined(batches)]
        found = []
        for index in indices:
            own, names = given.rows(index), [secrets.token_hex(8) for _ in index]
            content = {
                "input_ids": own.encoded,
                "sampling_params": SamplingParams.of(sampler).model_dump(),
                "return_step_maps": True,
                "rid": names,
            }
            if self.servers.is_ours:
                content["unmask"] = self._fields(own, batch_size)
            found.append(_Asked(index, own, names, content, self._largest(len(index), sampler, given.needs)))
        return found

    def _fields(self, given: _Given, batch_size: int | None) -> dict[str, Any]:
        """Return the fields of a request under `unmask`."""
        assert self.servers.version is not None
        return {
            "sampler": settings_of(given.sampler),
            "seeds": given.seeds.tolist(),
            "needs": needs_fields(given.needs),
            "entropy_temperature": given.entropy_temperature,
            "completion": None if given.completion is None else given.completion.tolist(),
            "first_step": None if given.first_step is None else given.first_step.tolist(),
            "weight_version": self.servers.weights.name(self.servers.version),
            "batch_size": batch_size,
            "max_tokens": self.limits.max_tokens,
            "return_record": True,
        }

    def _largest(self, num_rows: int, sampler: SamplerConfig, needs: Needs | None) -> int:
        """Return the largest number of bytes of an answer."""
        stored = 8.0 + (sampler.top_k if needs is not None else 0) + num_stored(needs, sampler)
        # A token may be a long text.
        row = BYTES_PER_ROW + sampler.max_completion_length * (stored * BYTES_PER_NUMBER + 256)
        return int(num_rows * row)

    def _answers(self, content: Any, names: list[str], version: int) -> list[Answer]:
        """Check that an answer has one part for each prompt, in their order, of the right weights."""
        if not isinstance(content, list) or len(content) != len(names):
            given = f"a list of {len(content)}" if isinstance(content, list) else quoted(content)
            raise FormatError(f"it is {given}, not a list of {len(names)} answers.")
        answers = [parsed(Answer, one, f"answer {index}") for index, one in enumerate(content)]
        for index, (answer, name) in enumerate(zip(answers, names, strict=True)):
            meta = answer.meta_info
            if meta.id != name:
                place = f"row {names.index(meta.id)} of this request" if meta.id in names else "another request"
                raise FormatError(f"answer {index} is for {place} (id {quoted(meta.id)}).")
            expected = self.servers.weights.name(version)
            if meta.weight_version != expected:
                raise FormatError(
                    f"answer {index} was sampled with the weights {quoted(meta.weight_version)}, not with {quoted(expected)}."
                )
        return answers

    def _recorded(self, answers: list[Answer], given: _Given) -> Trajectory:
        """Return the trajectory whose record is in answers of `unmask serve`."""
        sampler, seeds, completion = given.sampler, given.seeds, given.completion
        denoiser = self.policy.denoiser
        is_given = None if completion is None else (completion != denoiser.mask_id).cpu()
        has_choice = sampler.order in POSITION_LOGITS
        expected = Expected(
            denoiser.vocab_size,
            denoiser.mask_id,
            denoiser.eos_id,
            sampler,
            given.needs,
            has_choice,
            is_given,
            given.first_step,
        )
        records = [
            parsed(RowRecord, (answer.model_extra or {}).get("unmask"), f"answer {index}.unmask")
            for index, answer in enumerate(answers)
        ]
        tensors = tensors_of(records, seeds, expected)
        if is_given is not None and completion is not None and (tensors["tokens"] != completion.cpu())[is_given].any():
            raise FormatError("a token that was given with the request has changed.")
        self.servers.passes.count += records[0].token_passes
        prompt_ids, prompt_mask = left_pad(given.encoded, denoiser.pad_id)
        return Trajectory(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            seed=seeds,
            sampler=sampler,
            mask_id=denoiser.mask_id,
            eos_id=denoiser.eos_id,
            **tensors,  # type: ignore[arg-type]
        )

    def _replayed(self, answers: list[Answer], given: _Given) -> Trajectory:
        """Return the trajectory of answers of SGLang, replayed by the policy."""
        denoiser, sampler, needs = self._replaying or self.policy.denoiser, given.sampler, given.needs
        rows = [
            answer_row(answer, prompt, sampler.max_completion_length, sampler.block, self.policy)
            for answer, prompt in zip(answers, given.encoded, strict=True)
        ]
        states = self.limits.batch_size or 64
        path = path_of(rows, given.encoded, sampler, given.seeds, self.policy)
        check_fixed_counts(path.unmask_step, sampler)
        was_training = denoiser.training
        denoiser.eval()
        try:
            found = replayed(denoiser, path, entropy_temperature=given.entropy_temperature, batch_size=states)
            if (excluded := excluded_token(found)) is not None:
                raise FormatError(f"row {excluded[0]}: {excluded[1]}")
            if (fault := fault_of_draws(found)) is not None:
                raise FormatError(fault)
            whole = found.trajectory
            if needs is not None and (needs.greedy or needs.branches):
                complete = partial(completions_of, denoiser, whole, branches=needs.branches, batch_size=states)
                whole = with_completions(whole, needs, complete)
            return whole
        finally:
            denoiser.train(was_training)


def joined(batches: Sequence[list[int]]) -> list[list[int]]:
    """Join successive batches to requests of at most `REQUEST_ROWS` rows. A batch that is larger is
    a request of its own, divided if it has more than `BATCH_ROWS` rows.

    Example:
        >>> [len(request) for request in joined([[0] * 300, [0] * 200, [0] * 100, [0] * 5000])]
        [500, 100, 4096, 904]
    """
    requests: list[list[int]] = []
    for batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            rows = batch[start : start + BATCH_ROWS]
            if not requests or len(requests[-1]) + len(rows) > REQUEST_ROWS:
                requests.append([])
            requests[-1] += rows
    return requests
