"""A stand-in for the model and the rewards of a run, with an engine that records the size of every
forward pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unmask.core.denoising import KeyValueCache
from unmask.core.records import Trajectory
from unmask.functional.noise import named_generator
from unmask.models import Policy, char_tokenizer
from unmask.rewards import per_completion
from unmask.sampling.engine import BatchLimits, LocalEngine


class Forward(NamedTuple):
    """Size of one forward pass."""

    rows: int
    """Number of sequences in the forward pass."""
    length: int
    """Number of tokens of each sequence that run."""
    width: int
    """Largest number of positions of a sequence that get logits."""
    read: int
    """Number of positions of all sequences that get logits."""
    attended: int
    """Number of positions that each token attends to, which may be in a cache."""


class StandIn(nn.Module):
    """A denoiser that draws random logits, never predicts EOS, and records its forward passes."""

    pad_id, mask_id, eos_id = 0, 1, 2
    position_head = True

    def __init__(self, vocab_size: int, block_length: int | None) -> None:
        super().__init__()
        self.block_length = block_length
        self.vocab_size, self.generator = vocab_size, named_generator(0, "stand-in")
        self.device_of_inputs = nn.Parameter(torch.zeros(1))
        self.backbone = SimpleNamespace(config=None)
        self.calls: list[list[Forward]] = []

    def forward(
        self,
        ids: Tensor,
        _attention_mask: Tensor | None,
        positions: Tensor,
        *,
        cache: KeyValueCache | None = None,
        begin: int = 0,
        scores: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return random logits, and scores of 0; see `DenoiserLike`."""
        rows, length = ids.shape
        attended = begin + length
        if cache is not None:
            attended = max(attended, cache.length)
            whole = torch.zeros(rows, 1, attended, 0)
            cache.layers = [(whole, whole)]
        self.calls[-1].append(Forward(rows, length, positions.shape[1], positions.numel(), attended))
        logits = torch.rand(*positions.shape, self.vocab_size, generator=self.generator)
        logits[..., [self.pad_id, self.eos_id]] = -torch.inf
        return (logits, torch.zeros(positions.shape)) if scores else logits


class RecordingEngine(LocalEngine):
    """An engine that keeps the forward passes of each of its calls separately."""

    def rollout(self, *args: Any, **options: Any) -> Trajectory:
        """Denoise with the stand-in; see `RolloutEngine.rollout`."""
        cast("StandIn", self.policy.denoiser).calls.append([])
        return super().rollout(*args, **options)


@per_completion
def stand_in_reward(completions: list[str], **_: Any) -> list[float]:
    """Return a reward that differs between completions: how often the digit 1 occurs."""
    return [float(text.count("1")) for text in completions]


def recording_engine(limits: BatchLimits, block_length: int | None) -> tuple[RecordingEngine, StandIn]:
    """Return an engine that records, and its stand-in of a model."""
    tokenizer = char_tokenizer("0123456789")
    denoiser = StandIn(len(tokenizer), block_length)
    return RecordingEngine(Policy(denoiser, tokenizer), limits), denoiser  # type: ignore[arg-type]
