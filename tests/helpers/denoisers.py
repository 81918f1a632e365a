"""Denoisers for tests: a table of free logits that can be enumerated, and a wrapper that records its calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class TableDenoiser(nn.Module):
    """Denoiser with a free logit for every token, position and partially masked completion of length L.

    The tokens are 0, ..., V - 1, and MASK is V. By the chain rule, a gradient identity that holds for
    this table holds for any network. The denoiser ignores prompts.
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
        self.register_buffer("place", (num_tokens + 1) ** torch.arange(length))

    def forward(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        prompt_length = ids.shape[1] - self.length
        state = (ids[:, prompt_length:] * self.place).sum(-1)
        return self.table[state.unsqueeze(-1), positions - prompt_length]


@dataclass
class Call:
    """Arguments of one forward pass."""

    ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor


class Spy(nn.Module):
    """Denoiser that records the arguments of each call and may add a bias [V] to the logits."""

    def __init__(self, denoiser: nn.Module, bias: Tensor | None = None) -> None:
        super().__init__()
        self.denoiser, self.bias = denoiser, bias
        self.mask_id, self.eos_id = denoiser.mask_id, denoiser.eos_id
        self.calls: list[Call] = []

    def forward(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        self.calls.append(Call(ids.clone(), attention_mask, positions.clone()))
        logits = self.denoiser(ids, attention_mask, positions)
        return logits if self.bias is None else logits + self.bias
