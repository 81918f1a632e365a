"""Denoisers for tests: a table of free logits that can be enumerated, and a wrapper that records its calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.models import Denoiser
from unmask.models.position_head import add_position_head


class TableDenoiser(nn.Module):
    """Denoiser with a free logit for every token, position and partially masked completion of length L.

    The tokens are 0, ..., V - 1, and MASK is V. By the chain rule, a gradient identity that holds for
    this table holds for any network. The denoiser ignores prompts.

    After `add_scores` it has a position head as well, with a free score for every position of every state.
    """

    def __init__(self, num_tokens: int, length: int, eos_id: int, seed: int) -> None:
        super().__init__()
        self.num_tokens, self.length = num_tokens, length
        self.mask_id, self.eos_id = num_tokens, eos_id
        generator = torch.Generator().manual_seed(seed)
        states = (num_tokens + 1) ** length
        # Logits of about ±2: far from uniform, and no probability below 1e-4.
        table = 1.5 * torch.randn(states, length, num_tokens + 1, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table)
        self.register_parameter("position_head", None)
        self.register_buffer("place", (num_tokens + 1) ** torch.arange(length))

    def add_scores(self, seed: int = 1) -> None:
        """Add scores of about ±1, for the order `learned`."""
        generator = torch.Generator().manual_seed(seed)
        self.position_head = nn.Parameter(torch.randn(self.table.shape[:2], generator=generator, dtype=torch.float64))

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor, *, scores: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        prompt_length = ids.shape[1] - self.length
        state = (ids[:, prompt_length:] * self.place).sum(-1)
        place = (state.unsqueeze(-1), positions - prompt_length)
        return (self.table[place], self.position_head[place]) if scores else self.table[place]


def add_lively_head(denoiser: Denoiser) -> None:
    """Add a position head whose scores depend on the state; those of a new head are 0."""
    head = add_position_head(denoiser.backbone, seed=0)
    with torch.no_grad():
        head.last.weight.normal_(generator=torch.Generator().manual_seed(0))


@dataclass
class Call:
    """Arguments of one forward pass."""

    ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor


class Spy(nn.Module):
    """Denoiser that records the arguments of each call and may add a bias [V] to the logits.

    It has the position head of the denoiser that it wraps.
    """

    def __init__(self, denoiser: nn.Module, bias: Tensor | None = None) -> None:
        super().__init__()
        self.denoiser, self.bias = denoiser, bias
        self.mask_id, self.eos_id = denoiser.mask_id, denoiser.eos_id
        self.position_head = denoiser.position_head
        self.calls: list[Call] = []

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor, *, scores: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        self.calls.append(Call(ids.clone(), attention_mask, positions.clone()))
        output = self.denoiser(ids, attention_mask, positions, scores=scores)
        logits, *score = output if scores else (output,)
        logits = logits if self.bias is None else logits + self.bias
        return (logits, *score) if scores else logits
