"""What several test files share: a saved tiny model, a lively one, a tabular toy, and a wrapper that counts.

A freshly initialised transformer says nearly the same of every state, and a test on it would hardly notice a wrong state.
`lively` has its weights scaled up until its answers depend on everything it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.messages import SNAPSHOTS
from unmask.models import Denoiser, TinyConfig, char_tokenizer, save_model, tiny_denoiser
from unmask.tasks.sudoku import Sudoku

# At these sizes one thread is the fastest, and runs beside each other do not fight over cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved tiny untrained Sudoku model. Copy it before changing anything in it."""
    tokenizer = char_tokenizer(Sudoku().alphabet)
    shape = TinyConfig(num_layers=1, width=16, num_heads=2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def lively() -> Denoiser:
    """A tiny denoiser over the Sudoku alphabet (PAD 0, MASK 1, EOS 2, then 01234=) whose logits depend on its whole input."""
    denoiser = tiny_denoiser(TinyConfig(num_layers=2, width=16, num_heads=2), char_tokenizer(Sudoku().alphabet), seed=0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    return denoiser.eval()


class TableDenoiser(nn.Module):
    """Tokens 0..V-1 and MASK = V; every partially masked completion of length L has logits of its own, free parameters.

    The most general denoiser there is at this size: what holds for its table holds, by the chain rule, for any network.
    Prompts are not read.
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


@pytest.fixture(scope="session")
def table_denoiser() -> type[TableDenoiser]:
    """The class of tabular toys: `table_denoiser(num_tokens, length, eos_id, seed)`, float64."""
    return TableDenoiser


@dataclass
class Call:
    """What one forward was asked."""

    ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor


class Spy(nn.Module):
    """A denoiser that remembers what it is asked, and that may add a bias [V] to the logits."""

    def __init__(self, denoiser: nn.Module, bias: Tensor | None = None) -> None:
        super().__init__()
        self.denoiser, self.bias = denoiser, bias
        self.mask_id, self.eos_id = denoiser.mask_id, denoiser.eos_id
        self.calls: list[Call] = []

    def forward(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        self.calls.append(Call(ids.clone(), attention_mask, positions.clone()))
        logits = self.denoiser(ids, attention_mask, positions)
        return logits if self.bias is None else logits + self.bias


@pytest.fixture
def spy(lively: Denoiser) -> Callable[..., Spy]:
    """`spy(eos=3.0)`: the lively denoiser under watch, the given amounts added to the logits of EOS and MASK."""

    def make(eos: float = 0.0, mask: float = 0.0) -> Spy:
        bias = torch.zeros(lively.vocab_size)
        bias[lively.eos_id], bias[lively.mask_id] = eos, mask
        return Spy(lively, bias)

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate-golden", action="store_true", help="rewrite tests/golden/ and read the diff")
    parser.addoption("--regenerate-messages", action="store_true", help="rewrite tests/messages.txt and read the diff")


def pytest_configure(config: pytest.Config) -> None:
    SNAPSHOTS.regenerate = config.getoption("--regenerate-messages")


def pytest_unconfigure(config: pytest.Config) -> None:
    if SNAPSHOTS.regenerate:
        SNAPSHOTS.save()
