"""Runs of two ranks on the CPU, under DDP or ZeRO with gloo, and the output of each rank."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from torch.distributed.elastic.utils.distributed import get_free_port

from benchmark.cpu_ranks import preset_environment
from tests.helpers.runs import start, unmask_train, without_report


def exit_codes_of_two(
    target: Callable[..., object], *arguments: object, preset: str = "ddp", timeout: float = 120
) -> list[int | None]:
    """Run `target(rank, *arguments)` on two ranks, as `accelerate launch` with a preset starts them; return their exit codes."""
    port, environment = get_free_port(), preset_environment(preset)
    processes = [start(_as_one_of_two, rank, port, environment, target, *arguments) for rank in (0, 1)]
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _as_one_of_two(
    rank: int, port: int, environment: dict[str, str], target: Callable[..., object], *arguments: object
) -> None:
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in facts.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
    os.environ.update(environment)
    target(rank, *arguments)


def train_by_command(
    rank: int, model: Path, folder: Path, overrides: tuple[str, ...], prepare: Callable[[int], None] = lambda _: None
) -> None:
    """Run `unmask train` on one rank and write its output to a file; `prepare(rank)` runs before and may cause a fault."""
    from accelerate import PartialState

    prepare(rank)
    code = _train(rank, model, folder, overrides)
    assert PartialState().num_processes == 2
    sys.exit(code)


def train_several_by_command(rank: int, model: Path, runs: dict[Path, tuple[str, ...]]) -> None:
    """Run `unmask train` on one rank for one folder after another, each with its own overrides."""
    from accelerate import PartialState

    codes = [_train(rank, model, folder, overrides) for folder, overrides in runs.items()]
    assert PartialState().num_processes == 2
    sys.exit(max(codes))


def _train(rank: int, model: Path, folder: Path, overrides: tuple[str, ...]) -> int:
    folder.parent.mkdir(exist_ok=True)
    with (
        without_report(),
        printed(folder, rank).open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        return unmask_train(model, folder, *overrides)


def printed(folder: Path, rank: int) -> Path:
    """Return the file with the output of a rank of the run in `folder`."""
    return folder.with_name(f"{folder.name}-{rank}.txt")


def said(folder: Path) -> list[str]:
    """Return the lines with errors in the output of both ranks."""
    lines = [line for rank in (0, 1) for line in printed(folder, rank).read_text().splitlines()]
    return [line for line in lines if "Error" in line]


def raise_after(step: int, rank: int, number: signal.Signals) -> Callable[[int], None]:
    """Return a function that makes a rank send itself a signal after a training step."""
    return _SignalAfter(step, rank, number)


class _SignalAfter:
    # An instance of a class at the top of a module can be pickled, a closure cannot.
    def __init__(self, step: int, rank: int, number: signal.Signals) -> None:
        self.step, self.rank, self.number = step, rank, number

    def __call__(self, rank: int) -> None:
        from unmask.trainer.learn import Learner

        update = Learner.update

        def update_and_signal(learner, rollout, step, generator, tally):  # type: ignore[no-untyped-def]
            found = update(learner, rollout, step, generator, tally)
            if (step + 1, rank) == (self.step, self.rank):
                os.kill(os.getpid(), self.number)
            return found

        Learner.update = update_and_signal  # type: ignore[method-assign]


class StoreOfOne:
    """Stands for torch's store, for a rank that is alone."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> str:
        return self.values[key]
