"""A model that answers requests: what a server does, without HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmask import __version__
from unmask.core.config import SamplerConfig
from unmask.core.counter import Counter
from unmask.core.errors import ModelError, UnmaskError, reason
from unmask.core.records import Trajectory
from unmask.functional.noise import named_generator
from unmask.models import Policy
from unmask.sampling.encoding import check_fits_context, decode, encode_all, row_seeds
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.remote.extension import MAX_SEED, UnmaskFields, num_stored, row_records, sampler_of, unmask_fields
from unmask.sampling.remote.format import FormatError, Request, parsed, quoted
from unmask.sampling.remote.step_maps import FILLED
from unmask.sampling.remote.weights import ServedWeights

MAX_NUMBERS = 2**27
"""Maximum number of tokens in the completions of an answer, one-step completions and branches
included."""
REQUEST_FIELDS = frozenset({"unmask", "stream"})
"""Fields of a request that are known here, besides those of `Request`."""


class WrongVersionError(UnmaskError):
    """The server has other weights than those that a request names."""


class Passes(Counter):
    """Counts the tokens that forward passes of a module read."""

    def watch(self, module: nn.Module) -> None:
        """Count the forward passes of a module, too."""
        module.register_forward_pre_hook(self._see)

    def _see(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.count += args[0].numel()


class ServedModel:
    """Answers requests with the weights of one model, one request at a time.

    Args:
        policy: model and tokenizer.
        name: folder or hub id of the model.
        weights_dir: folder from which weights may be loaded; None to refuse all updates.
        max_rows: maximum number of completions of a request.
        limits: limits on the size of a forward pass, which a request can only lower.
    """

    def __init__(
        self,
        policy: Policy,
        name: str,
        weights_dir: Path | None = None,
        *,
        max_rows: int = 4096,
        limits: BatchLimits | None = None,
    ) -> None:
        self.weights, self.name, self.max_rows = ServedWeights(policy), name, max_rows
        self.weights_dir = weights_dir.resolve() if weights_dir else None
        self.limits = limits or BatchLimits()
        self.version = "default"
        """Name of the weights."""
        self._passes = Passes()
        self._watched: set[int] = set()

    def info(self) -> dict[str, Any]:
        """Return facts about the model, as SGLang's `/get_model_info` does, and those that a client
        compares with its own model."""
        denoiser, _ = self.weights.policy
        return {
            "model_path": self.name,
            "is_generation": True,
            "weight_version": self.version,
            "unmask": {
                "version": __version__,
                "vocab_size": denoiser.vocab_size,
                "mask_id": denoiser.mask_id,
                "eos_id": denoiser.eos_id,
                "block_length": denoiser.block_length,
                "logit_shift": denoiser.logit_shift,
                "dtype": str(denoiser.backbone.dtype).removeprefix("torch."),
                "takes_weights": self.weights_dir is not None,
            },
        }

    def request(self, content: Any) -> tuple[Request, UnmaskFields]:
        """Check the content of a request.

        Raises:
            FormatError: it is not a request, or asks for something that is not offered.
        """
        request = parsed(Request, content, "request")
        fields = unmask_fields(request)
        extra = request.model_extra or {}
        unknown = sorted(extra.keys() - REQUEST_FIELDS)
        unknown += [f"unmask.{name}" for name in sorted((fields.model_extra or {}).keys())]
        if unknown or extra.get("stream"):
            name = unknown[0] if unknown else "stream = true"
            raise FormatError(f"the request has {name}, which this server does not offer.")
        request.sampling_params.check()
        if isinstance(request.rid, list) and len(request.rid) != request.num_prompts:
            raise FormatError(f"rid has {len(request.rid)} names, but the number of prompts is {request.num_prompts}.")
        return request, fields

    def generate(self, content: Any, working: Callable[[], None] = lambda: None) -> Any:
        """Answer a request.

        Args:
            content: the request, as JSON values.
            working: function that is called after each denoising step; it may raise to give up.

        Raises:
            FormatError: the request is wrong.
            WrongVersionError: the request names other weights.
            DataError: a prompt is too long for the model.
            ConfigError: the sampler settings do not fit the model.
        """
        started = time.perf_counter()
        request, fields = self.request(content)
        if fields.weight_version not in (None, self.version):
            raise WrongVersionError(
                f"the server has the weights {quoted(self.version)}, and the request is for {quoted(fields.weight_version)}. "
                "Update the weights first."
            )
        prompts = self._prompts(request)
        path = self._rollout(request, fields, prompts, working)
        answers = self._answers(request, fields, path, time.perf_counter() - started)
        return answers if request.is_batch else answers[0]

    def update(self, path: str, version: str) -> str:
        """Replace the weights by those of a folder, and return the fingerprint of the base model of
        an adapter; see `ServedWeights.replace`.

        Raises:
            PermissionError: the folder is not in the folder of weights.
            ModelError: the folder has no weights for this model. The weights stay as they were.
        """
        if self.weights_dir is None:
            raise PermissionError("this server takes no weights. Start it with --weights-dir FOLDER.")
        try:
            folder = Path(path).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that form a loop
            raise _unusable(path, error) from error
        if not folder.is_relative_to(self.weights_dir):
            raise PermissionError(
                f"{quoted(path)} is not in {self.weights_dir}, the only folder that weights are read from."
            )
        try:
            fingerprint = self.weights.replace(folder)
        except (OSError, ValueError, TypeError) as error:  # a file has other content than its name says
            raise _unusable(path, error) from error
        self.version = version
        return fingerprint

    def _prompts(self, request: Request) -> list[list[int]]:
        """Return the tokens of the prompts, which the model must know."""
        denoiser, tokenizer = self.weights.policy
        if request.input_ids is None and request.text is not None:
            prompts = encode_all(tokenizer, [request.text] if isinstance(request.text, str) else request.text)
            if not prompts or not all(prompts):
                raise FormatError("the request has no prompt, or an empty one.")
        else:
            prompts = request.prompts()
        if len(prompts) > self.max_rows:
            raise FormatError(
                f"the request has {len(prompts)} prompts, and this server takes {self.max_rows} at a time."
            )
        if (largest := max(max(prompt) for prompt in prompts)) >= denoiser.vocab_size:
            raise FormatError(f"input_ids has the token {largest}, but the model has {denoiser.vocab_size} tokens.")
        return prompts

    def _rollout(
        self, request: Request, fields: UnmaskFields, prompts: list[list[int]], working: Callable[[], None]
    ) -> Trajectory:
        policy, count = self.weights.policy, len(prompts)
        sampler, length = sampler_of(request.sampling_params, fields.sampler), request.sampling_params.max_new_tokens
        needs = fields.needs.needs() if fields.needs else None
        num_tokens = count * length * (1 + num_stored(needs, sampler) + (sampler.top_k if needs else 0))
        if num_tokens > MAX_NUMBERS:
            raise FormatError(
                f"the answer would have {num_tokens:,} tokens, more than {MAX_NUMBERS:,}. Send fewer prompts at a time."
            )
        check_fits_context(policy.denoiser, max(map(len, prompts)), length)
        completion = _table("completion", fields.completion, count, length)
        if completion is not None and int(completion.max()) >= policy.denoiser.vocab_size:
            raise FormatError("unmask.completion has tokens that are not in the vocabulary.")
        first_step = _table("first_step", fields.first_step, count)
        if first_step is not None:
            _check_first_step(first_step, completion, sampler, policy.denoiser.mask_id, policy.denoiser.eos_id)
        seeds = _table("seeds", fields.seeds, count)
        if seeds is None:
            seeds = row_seeds(count, named_generator(_seed(request), "sample"))
        if id(policy.denoiser) not in self._watched:
            self._passes.watch(policy.denoiser)
            self._watched.add(id(policy.denoiser))
        self._passes.take()
        return LocalEngine(policy, self._limits(fields)).rollout_of_tokens(
            prompts,
            sampler,
            seeds,
            needs=needs,
            entropy_temperature=fields.entropy_temperature,
            completion=completion,
            first_step=first_step,
            observe=lambda _: working(),
        )

    def _limits(self, fields: UnmaskFields) -> BatchLimits:
        """Return the limits of a request, lowered to those of the server."""

        def lower(own: int | None, asked: int | None) -> int | None:
            return min(filter(None, (own, asked)), default=None)

        return BatchLimits(
            lower(self.limits.batch_size, fields.batch_size), lower(self.limits.max_tokens, fields.max_tokens)
        )

    def _answers(
        self, request: Request, fields: UnmaskFields, path: Trajectory, seconds: float
    ) -> list[dict[str, Any]]:
        """Return the answers of a rollout, one for each row.

        Raises:
            ModelError: the model does not compute numbers.
        """
        numbers = (path.logprob, path.entropy, path.choice_logprob)
        if not all(torch.isfinite(tensor).all() for tensor in numbers if tensor is not None):
            raise ModelError(
                "the log-probabilities of the rollout are not finite. The weights of the server are damaged."
            )
        sampler, texts = path.sampler, decode(self.weights.policy.tokenizer, path.tokens)
        records = row_records(path, self._passes.take()) if fields.return_record else [None] * len(path)
        rid = request.rid if isinstance(request.rid, list) else [request.rid or ""] * len(path)
        columns = zip(path.tokens.tolist(), path.unmask_step.tolist(), path.logprob.tolist(), strict=True)
        answers = []
        for row, (tokens, steps, logprobs) in enumerate(columns):
            sampled = [i for i, step in enumerate(steps) if step != sampler.steps]
            end = (sampled[-1] // sampler.block + 1) * sampler.block if sampled else 0
            stop = path.eos_id in tokens[:end]
            meta: dict[str, Any] = {
                "id": rid[row],
                "finish_reason": {"type": "stop", "matched": path.eos_id}
                if stop
                else {"type": "length", "length": end},
                "prompt_tokens": int(path.prompt_mask[row].sum()),
                "completion_tokens": end,
                "cached_tokens": 0,
                "weight_version": self.version,
                "e2e_latency": round(seconds, 6),
                "blocks_from": "completion",
            }
            if _asks(request.return_step_maps, row):
                meta["step_maps"] = _step_map(steps[:end], sampler)
            if _asks(request.return_logprob, row):
                pairs = zip(logprobs[:end], tokens[:end], strict=True)
                meta["output_token_logprobs"] = [[logprob, token, None] for logprob, token in pairs]
            answer: dict[str, Any] = {"text": texts[row], "output_ids": tokens[:end], "meta_info": meta}
            answers.append(answer if records[row] is None else answer | {"unmask": records[row]})
        return answers


def _unusable(path: str, error: Exception) -> ModelError:
    """Return the error for a folder whose weights cannot be used."""
    fault = getattr(error, "strerror", None) or reason(error).removesuffix(".")
    return ModelError(f"the weights in {quoted(path)} cannot be used: {fault}.")


def _seed(request: Request) -> int:
    """Return the `sampling_seed` of a request; without one, a random seed."""
    seed = (request.sampling_params.model_extra or {}).get("sampling_seed")
    if seed is None:
        return secrets.randbits(62)
    if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) > MAX_SEED:
        raise FormatError(f"sampling_params.sampling_seed = {quoted(seed)} is not a whole number below 2^63.")
    return seed


def _step_map(steps: Sequence[int], sampler: SamplerConfig) -> list[int]:
    """Return the step map of whole blocks, which counts the steps of each block from 1; -1 stands
    for a given token."""
    entries: list[int] = []
    for start in range(0, len(steps), sampler.block):
        block = steps[start : start + sampler.block]
        first = start // sampler.block * sampler.steps_per_block
        if sampler.is_adaptive:
            first = min((step for step in block if step >= 0), default=0)
        entries += [FILLED if step == sampler.steps else step - first + 1 if step >= 0 else step for step in block]
    return entries


def _asks(flag: bool | Sequence[bool], row: int) -> bool:
    """Return the flag of a row."""
    return flag if isinstance(flag, bool) else row < len(flag) and flag[row]


def _check_first_step(
    first_step: torch.Tensor, completion: torch.Tensor | None, sampler: SamplerConfig, mask_id: int, eos_id: int
) -> None:
    """Check that every masked position has a denoising step left.

    Raises:
        FormatError: a masked position has none, or a row begins after the end.
    """
    length, steps = sampler.max_completion_length, sampler.steps
    is_masked = torch.ones(len(first_step), length, dtype=torch.bool)
    if completion is not None:
        # What follows the end is filled without a step.
        is_masked = (completion == mask_id) & ((completion == eos_id).cumsum(-1) == 0)
    # Under an adaptive schedule, only the end tells that a block is over.
    steps_per_block = steps if sampler.is_adaptive else sampler.steps_per_block
    block = length if sampler.is_adaptive else sampler.block
    is_over = torch.arange(length) // block < (first_step // steps_per_block).unsqueeze(-1)
    if (first_step > steps).any() or (is_masked & is_over).any():
        raise FormatError(
            f"unmask.first_step = {quoted(first_step.tolist())} leaves a masked position without a denoising step: num_steps = "
            f"{steps}. Begin earlier."
        )


def _table(name: str, rows: Sequence[Any] | None, count: int, length: int | None = None) -> torch.Tensor | None:
    """Return a list with one entry for each row as a tensor."""
    if rows is None:
        return None
    widths = {len(row) for row in rows} if length is not None else {length}
    if len(rows) != count or widths != {length}:
        shape = f"[{count}]" if length is None else f"[{count}, {length}]"
        raise FormatError(f"unmask.{name} must have the shape {shape}.")
    return torch.tensor(rows)
