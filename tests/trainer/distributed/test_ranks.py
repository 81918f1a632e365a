"""Two ranks with weights that torch's FSDP2 shards: lockstep, shared errors, and checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.processes import exit_codes_of_two
from unmask.core.config import OptimConfig
from unmask.core.errors import DataError, UnmaskError
from unmask.models import load_model
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.state import RunState

IDS = torch.tensor([[3, 4, 1, 1], [5, 1, 2, 1]])
WHERE = torch.tensor([[2, 3], [1, 3]])


class Sharded:
    """Stands for accelerate's accelerator under FSDP2, which accelerate refuses on a CPU."""

    distributed_type = "DistributedType.FSDP"

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def sharded_model(model: Path) -> tuple[Sharded, nn.Module, torch.optim.Optimizer]:
    from torch.distributed.fsdp import fully_shard

    accelerator = Sharded()
    denoiser, _ = load_model(model)
    for layer in denoiser.backbone.base_model.h:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(denoiser)
    return accelerator, denoiser, torch.optim.AdamW(denoiser.parameters(), lr=1e-2)


def train_a_little(denoiser: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        denoiser(IDS, None, WHERE).float().logsumexp(-1).sum().backward()
        optimizer.step()


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


# --- lockstep ---


def walk_in_lockstep(rank: int, model: Path) -> None:
    """Run one forward pass on the first rank and four on the second; then fail on the second after
    one."""
    accelerator, denoiser, _ = sharded_model(model)
    plain, _ = load_model(model)
    ranks = Ranks(accelerator)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = plain(IDS, None, WHERE)
        with ranks.lockstep(denoiser):
            for _ in range(1 + 3 * rank):
                assert torch.allclose(denoiser(IDS, None, WHERE), expected, atol=1e-6)
        shared: UnmaskError | None = None
        try:
            with ranks.agreed(), ranks.lockstep(denoiser):
                denoiser(IDS, None, WHERE)
                if rank == 1:
                    raise DataError("a prompt is too long")
                denoiser(IDS, None, WHERE)
        except UnmaskError as error:
            shared = error
    sys.exit(5 if shared and shared.is_agreed and str(shared) == "a prompt is too long" else 6)


def walk_without(rank: int, model: Path) -> None:
    accelerator, denoiser, _ = sharded_model(model)
    with torch.no_grad():
        for _ in range(1 + 3 * rank):
            denoiser(IDS, None, WHERE)
    accelerator.wait_for_everyone()
    sys.exit(5)


@pytest.mark.slow
def test_different_numbers_of_sharded_forward_passes_run_in_lockstep_even_after_an_error(tiny_model: Path) -> None:
    assert exit_codes_of_two(walk_in_lockstep, tiny_model) == [5, 5]


@pytest.mark.slow
def test_without_lockstep_the_rank_with_more_forward_passes_waits_forever(tiny_model: Path) -> None:
    # The other rank enters a barrier, which is not the collective that this rank waits for.
    assert exit_codes_of_two(walk_without, tiny_model, timeout=8) != [5, 5]


# --- state ---


def write_sharded(rank: int, model: Path, folder: Path) -> None:
    accelerator, denoiser, optimizer = sharded_model(model)
    train_a_little(denoiser, optimizer, 3)
    if rank == 0:
        folder.mkdir()
    accelerator.wait_for_everyone()
    paths = RunState(accelerator, denoiser, denoiser, [optimizer], OptimConfig()).write(folder)  # type: ignore[arg-type]
    # Each rank writes a file of its own with about half of the state.
    assert [path.name for path in paths] == [f"state-0000{rank}.safetensors"]
    accelerator.wait_for_everyone()
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    assert max(sizes) < 1.2 * min(sizes)


def read_sharded(rank: int, model: Path, folder: Path) -> None:
    """Read a plain process's state into shards, and find it there."""
    accelerator, denoiser, optimizer = sharded_model(model)
    meetings: list[None] = []
    ranks = Ranks(accelerator, lambda: meetings.append(None))  # type: ignore[arg-type]
    state = RunState(accelerator, denoiser, denoiser, [optimizer], OptimConfig(), ranks=ranks)  # type: ignore[arg-type]
    state.load(folder)
    other, _ = load_model(model)
    others = torch.optim.AdamW(other.parameters(), lr=1e-2)
    train_a_little(other, others, 3)
    compare(denoiser, optimizer, other, others)
    # It is the state of an optimizer that goes on, not only numbers in a place.
    train_a_little(denoiser, optimizer, 1)
    train_a_little(other, others, 1)
    compare(denoiser, optimizer, other, others)
    before = len(meetings)
    weights = state.whole_weights(torch.float32)
    assert weights is not None
    # Each gathered weight counts as progress.
    assert len(meetings) == before + len(list(denoiser.parameters()))
    assert set(weights) == (set(other.state_dict()) if rank == 0 else set())
    assert all(torch.allclose(weights[name], value, atol=1e-6) for name, value in other.state_dict().items() if weights)


def compare(ours: nn.Module, optimizer: torch.optim.Optimizer, theirs: nn.Module, other: torch.optim.Optimizer) -> None:
    for (name, mine), (_, its) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.allclose(whole(mine), its, atol=1e-6), name
        for key, value in other.state[its].items():
            assert torch.allclose(whole(optimizer.state[mine][key]), value, atol=1e-6), (name, key)


def plain_state(model: Path) -> tuple[RunState, nn.Module, torch.optim.Optimizer]:
    from accelerate import Accelerator

    denoiser, _ = load_model(model)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    return RunState(Accelerator(cpu=True), denoiser, denoiser, [optimizer], OptimConfig()), denoiser, optimizer


@pytest.mark.slow
def test_what_sharded_processes_write_one_process_reads(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert exit_codes_of_two(write_sharded, tiny_model, folder) == [0, 0]
    state, denoiser, optimizer = plain_state(tiny_model)
    state.load(folder)
    _, other, others = plain_state(tiny_model)
    train_a_little(other, others, 3)
    compare(denoiser, optimizer, other, others)


@pytest.mark.slow
def test_what_one_process_writes_sharded_processes_read(tiny_model: Path, tmp_path: Path) -> None:
    state, denoiser, optimizer = plain_state(tiny_model)
    train_a_little(denoiser, optimizer, 3)
    state.write(tmp_path)
    assert exit_codes_of_two(read_sharded, tiny_model, tmp_path) == [0, 0]


def test_a_state_in_several_files_reads_back_bit_for_bit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.trainer.distributed.state.SHARD_BYTES", 2_000)
    state, denoiser, optimizer = plain_state(tiny_model)
    train_a_little(denoiser, optimizer, 2)
    state.write(tmp_path)
    assert len(list(tmp_path.glob("state-*.safetensors"))) > 3
    other, again, _ = plain_state(tiny_model)
    other.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), again.parameters(), strict=True))


def test_a_state_of_another_model_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    state, denoiser, _ = plain_state(tiny_model)
    denoiser.backbone.register_parameter("further", nn.Parameter(torch.zeros(1)))
    state.write(tmp_path)
    other, _, _ = plain_state(tiny_model)
    with pytest.raises(Exception, match=r"weights of another model: only one of the two has weight:backbone\.further"):
        other.load(tmp_path)
