"""A checkpoint's tensors read back the same, whoever wrote which part of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.messages import raises
from unmask.core.errors import RunError
from unmask.models.state_files import StateFiles, StateWriter

WEIGHT = torch.arange(60, dtype=torch.float32).view(5, 4, 3)
COUNTER = torch.tensor(7.0)


def write(folder: Path, cuts: Sequence[int], max_bytes: int = 2**20) -> list[Path]:
    """Write a tensor in flat parts that begin at `cuts`, one rank for each, and a counter as a whole."""
    paths = []
    for rank, (start, stop) in enumerate(zip(cuts, [*cuts[1:], WEIGHT.numel()], strict=True)):
        files = StateWriter(folder, rank, len(cuts), max_bytes, lambda: None)
        files.add("weight:w", WEIGHT.flatten()[start:stop], start, WEIGHT.shape)
        if rank == len(cuts) - 1:
            files.add("optimizer:w:step", COUNTER)
        paths += files.close()
    return paths


@pytest.mark.parametrize("cuts", [[0], [0, 30], [0, 1, 59], [0, 12, 24, 36, 48]])
def test_parts_of_any_number_of_ranks_read_back_whole_and_in_any_range(tmp_path: Path, cuts: list[int]) -> None:
    write(tmp_path, cuts)
    files = StateFiles(tmp_path)
    assert sorted(files.tensors) == ["optimizer:w:step", "weight:w"]
    stored = files.tensors["weight:w"]
    assert stored.shape == [5, 4, 3]
    assert torch.equal(stored.whole(), WEIGHT)
    for start in range(0, 61, 6):
        for stop in range(start, 67, 11):
            assert torch.equal(stored.part(start, stop), WEIGHT.flatten()[start:stop])
    assert torch.equal(files.read("optimizer:w:step"), COUNTER)
    assert files.of_kind("weight:") == ["w"]


def test_a_whole_tensor_is_read_in_ranges_too(tmp_path: Path) -> None:
    files = StateWriter(tmp_path, 0, 1, 2**20, lambda: None)
    files.add("weight:w", WEIGHT)
    (path,) = files.close()
    assert path.name == "state-00000.safetensors"
    stored = StateFiles(tmp_path).tensors["weight:w"]
    assert stored.shape == [5, 4, 3]
    assert torch.equal(stored.part(10, 25), WEIGHT.flatten()[10:25])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_noticed(tmp_path: Path, number: int) -> None:
    write(tmp_path, [0, 20, 40])[number].unlink()
    with raises(RunError, "do not hold the whole of weight:w"):
        StateFiles(tmp_path)


def test_parts_that_overlap_are_noticed(tmp_path: Path) -> None:
    write(tmp_path, [0, 20, 40])
    files = StateWriter(tmp_path, 3, 4, 2**20, lambda: None)
    files.add("weight:w", WEIGHT.flatten()[10:20], 10, WEIGHT.shape)
    files.close()
    with raises(RunError, "do not hold the whole of weight:w"):
        StateFiles(tmp_path)


def test_files_have_a_bounded_size_and_no_two_ranks_share_a_name(tmp_path: Path) -> None:
    paths = []
    for rank in range(2):
        files = StateWriter(tmp_path, rank, 2, 100, lambda: None)
        for number in range(6):
            files.add(f"weight:{rank}.{number}", torch.full((15,), float(number)))
        paths += files.close()
    # Two tensors of 60 bytes fill a file.
    assert sorted(path.name for path in paths) == [f"state-{number:05d}.safetensors" for number in range(6)]
    assert len(StateFiles(tmp_path).tensors) == 12


def test_an_error_of_writing_waits_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    files = StateWriter(tmp_path, 0, 1, 1, lambda: None)
    # The rank still takes part in the gathering of the tensors that follow.
    add: Callable[[str, Tensor], None] = files.add
    for number in range(3):
        add(f"weight:{number}", WEIGHT)
    with pytest.raises(OSError, match="No space left"):
        files.close()
    assert calls == 1
