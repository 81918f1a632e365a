"""Fixtures and options that many test files use.

A freshly initialised transformer gives nearly the same logits for every state, so a test with it
would not notice a wrong state. `lively` has weights so large that its logits depend on every input.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.denoisers import Spy, TableDenoiser, add_lively_head
from tests.helpers.longest import LONGEST
from tests.helpers.messages import SNAPSHOTS
from tests.helpers.paths import ROOT
from unmask.models import Denoiser, TinyConfig, char_tokenizer, save_model, tiny_denoiser
from unmask.tasks.sudoku import Sudoku

# pytest imports readline, which sets the size of a terminal for child processes such as xdist's
# workers. Without these variables every process formats text as for a pipe.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
    os.unsetenv(name)

# A full collection walks through all objects of the imported libraries, which takes a third of a second, and by default
# it comes after every tenth of the second generation: a tenth of the time of all tests.
gc.set_threshold(700, 10, 100)

# One thread is the fastest at these sizes, and test processes do not compete for cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Leave out `fsync` in the tests' own processes: a test may end a process, but never the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved tiny untrained Sudoku model. A test that changes a file in it must copy it first."""
    tokenizer = char_tokenizer(Sudoku().alphabet)
    shape = TinyConfig(num_layers=1, width=16, num_heads=2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def lively() -> Denoiser:
    """Tiny denoiser whose logits depend on every input. Its alphabet is PAD 0, MASK 1, EOS 2, then 01234=."""
    denoiser = tiny_denoiser(TinyConfig(num_layers=2, width=16, num_heads=2), char_tokenizer(Sudoku().alphabet), seed=0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    return denoiser.eval()


@pytest.fixture(scope="session")
def table_denoiser() -> type[TableDenoiser]:
    """Class of tabular denoisers in float64: `table_denoiser(num_tokens, length, eos_id, seed)`."""
    return TableDenoiser


@pytest.fixture
def spy(lively: Denoiser) -> Callable[..., Spy]:
    """Function that wraps the lively denoiser, with a position head, in a spy: `spy(eos=3.0)` adds 3.0 to the logit of EOS."""
    add_lively_head(lively)

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
    if SNAPSHOTS.regenerate and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--regenerate-messages writes one file, so it needs one process: leave out -n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        # Under xdist, the longest files start first, then those with slow tests, so that no worker ends long after the others.
        order = {ROOT / name: number for number, name in enumerate(LONGEST)}
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (order.get(item.path, len(order)), item.path not in slow))


def pytest_unconfigure(config: pytest.Config) -> None:
    if SNAPSHOTS.regenerate:
        SNAPSHOTS.save()
