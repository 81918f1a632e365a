"""The protocol of a rollout engine, which turns prompts into trajectories, and the engine that
samples in this process.

Training, evaluation, `unmask sample` and the lm-eval adapter call an engine and do not depend on
where it samples. An engine returns a `Trajectory`: tokens, the step that committed each of them,
and the sampler settings. A remote engine, such as a server, implements the same three methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser, Policy
from unmask.sampling import Snapshot, denoise
from unmask.sampling.encoding import Prompt, batches_by_length, check_fits_context, encode_all, left_pad, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DEFAULT_ROWS = {"cpu": 64}
"""Default maximum number of completions in a batch by type of device; 256 on all others. On a CPU,
the activations of a smaller batch stay in the cache."""
DEFAULT_TOKENS = 2**15
"""Default maximum number of tokens in a batch. At the width of an 8B model, their activations take
about 4 GB."""
DEFAULT_LOGITS = 2**30
"""Default maximum number of logits of a denoising step: 4 GB in float32."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits on the size of a forward pass. They change speed and memory, but never results."""

    batch_size: int | None = None
    """Maximum number of completions that are denoised together; None for `default_batch_size`."""
    max_tokens: int | None = None
    """Maximum number of prompt and completion tokens in a batch, including padding; replaces
    `batch_size` if given."""


def default_batch_size(width: int, positions: int, vocab_size: int, device: str = "cpu") -> int:
    """Return a number of completions whose logits and activations fit beside the weights of an 8B
    model, and with which a device is busy.

    Args:
        width: number of tokens of a prompt and its completion.
        positions: number of positions of a completion whose logits a denoising step computes.
        vocab_size: number V of logits at a position.
        device: type of the device.

    Example:
        >>> default_batch_size(26, 16, 33)
        64
        >>> [default_batch_size(712, block, 126_464, "cuda") for block in (512, 32)]
        [16, 46]
    """
    rows = min(DEFAULT_ROWS.get(device, 256), DEFAULT_TOKENS // width, DEFAULT_LOGITS // (positions * vocab_size))
    return max(1, rows)


def batch_size_for(
    limits: BatchLimits, denoiser: Denoiser, prompt_lengths: Sequence[int], sampler: SamplerConfig, needs: Needs | None
) -> int:
    """Return the number of completions in a batch, by the limits or by `default_batch_size`."""
    length, device = sampler.max_completion_length, next(denoiser.parameters()).device.type
    # One-step completions need the logits at all positions.
    positions = sampler.block if needs is None else length
    default = default_batch_size(max(prompt_lengths) + length, positions, denoiser.vocab_size, device)
    return limits.batch_size or default


class RolloutEngine(Protocol):
    """Interface that turns prompts into trajectories, in this process or elsewhere."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the policy that the engine samples from."""
        ...

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
        """Denoise one completion for each prompt.

        Args:
            prompts: B prompts, at least 1. A prompt is repeated if several completions of it are
                needed.
            sampler: sampler settings.
            seeds: [B] int64 seeds on the CPU. A completion depends on its own prompt and seed, not
                on the rest of the batch.
            needs: requirements of the method in addition to the completions, such as one-step
                completions.
            entropy_temperature: temperature of the recorded entropies; see `denoise`.
            completion: [B, L] int64 completions to start from; default all masked. See `denoise`.
            first_step: [B] int64 first denoising step of each row; default 0. See `denoise`.
            observe: function that is called after each denoising step of a batch, if the engine
                supports it.

        Returns:
            The trajectory of all rows in the order of the prompts, with the `policy_version` that
            sampled them.

        Raises:
            DataError: a prompt cannot be encoded, or is too long for the model.
        """
        ...

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Use the weights of `model` from now on, and record `version` in the trajectories."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Open a block of rollouts that use the same weights.

        All ranks enter the block together. Within the block, the number of calls and of forward
        passes may differ between ranks.
        """
        ...


@dataclass(slots=True)
class LocalEngine:
    """Engine that samples in this process.

    Args:
        policy: model and tokenizer; the model is in evaluation mode during a rollout.
        limits: limits on the size of a forward pass.
        weights: function that opens a block and provides the denoiser to sample from in it, such as
            one with whole and merged weights; by default that of the policy.
        version: version of the weights, recorded in the trajectories.
    """

    policy: Policy
    limits: BatchLimits = field(default_factory=BatchLimits)
    weights: Callable[[], AbstractContextManager[Denoiser]] | None = None
    version: int = 0
    _provided: Denoiser | None = field(default=None, init=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the policy."""
        return self.policy.tokenizer

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
        """Denoise one completion for each prompt; see `RolloutEngine.rollout`.

        Rows with prompts of similar length share a batch, which keeps padding small.
        """
        return self.rollout_of_tokens(
            encode_all(self.policy.tokenizer, prompts),
            sampler,
            seeds,
            needs=needs,
            entropy_temperature=entropy_temperature,
            completion=completion,
            first_step=first_step,
            observe=observe,
        )

    def rollout_of_tokens(
        self,
        encoded: Sequence[list[int]],
        sampler: SamplerConfig,
        seeds: Tensor,
        *,
        needs: Needs | None = None,
        entropy_temperature: float | None = None,
        completion: Tensor | None = None,
        first_step: Tensor | None = None,
        observe: Callable[[Snapshot], None] | None = None,
    ) -> Trajectory:
        """Denoise one completion for each prompt, given as token ids; see `rollout`."""
        denoiser, tokenizer = self._provided or self.policy.denoiser, self.policy.tokenizer
        device = next(denoiser.parameters()).device
        lengths, limits = [len(ids) for ids in encoded], self.limits
        check_fits_context(denoiser, max(lengths), sampler.max_completion_length)
        length = sampler.max_completion_length
        batch_size = batch_size_for(limits, denoiser, lengths, sampler, needs)
        batches = batches_by_length(lengths, length, batch_size, limits.max_tokens)
        was_training = denoiser.training
        denoiser.eval()
        parts = []
        for index in batches:
            ids, mask = left_pad([encoded[i] for i in index], denoiser.pad_id)
            parts.append(
                denoise(
                    denoiser,
                    ids.to(device),
                    mask.to(device),
                    sampler,
                    seeds[index].to(device),
                    completion=None if completion is None else completion[index].to(device),
                    first_step=None if first_step is None else first_step[index].to(device),
                    needs=needs,
                    entropy_temperature=entropy_temperature,
                    observe=observe,
                )
            )
        denoiser.train(was_training)
        back = torch.tensor([i for index in batches for i in index]).argsort()
        whole = Trajectory.cat(parts).rows(back.to(device))
        return replace(whole, turn_end_id=turn_end(tokenizer), policy_version=self.version)

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Record `version` from now on.

        No weights are copied, because training changes the tensors that this engine samples from.
        """
        self.version = version

    @contextmanager
    def session(self) -> Iterator[None]:
        """Open a block of rollouts that use the same weights; see `RolloutEngine.session`."""
        if self.weights is None:
            yield
            return
        with self.weights() as self._provided:
            try:
                yield
            finally:
                self._provided = None
