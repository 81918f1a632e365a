"""Kill tiny runs at random points, resume them, and compare bit for bit with an uninterrupted run.

    python -m benchmark.kills            # 50 points, about ten minutes; results in benchmark/results/kills.jsonl
    python -m benchmark.kills --points 4 --seed 7 --output -
    python -m benchmark.kills --preset fsdp2   # only the points of this preset; the others stay
    python -m benchmark.kills --table    # the table of the recorded results, as Markdown

A point is a run of one or two processes (over gloo on the CPU, under DDP, ZeRO-3 or FSDP2) with a
failure:

- `one rank`: kill -9 of one of two processes at a random time in a random step; the other must end
too. - `all ranks`: kill -9 of all processes at a random time in a random step. - `during a save`:
kill -9 of the writing process at a random file operation of a random checkpoint. - `disk full`: the
file system (a small tmpfs, so this needs root) is filled just before a random
  checkpoint is written. The run must report it, and continue once there is space.

Each run is then resumed to its end. Its weights must be the same bytes as those of the
uninterrupted run, and its metrics the same lines except for times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from benchmark.cpu_ranks import PRELOADED, fsdp2_on_the_cpu, gather_in_every_forward, preset_environment

RESULTS = Path(__file__).parent / "results" / "kills.jsonl"
STEPS = 6
SETTINGS = (
    "sampler.num_steps=4",
    "num_prompts=2",
    "num_generations=2",
    f"max_steps={STEPS}",
    "save_steps=1",
    "log_rollouts_steps=2",
    "num_rows=20",
    "evaluation.num_rows=4",
    "evaluation.eval_steps=3",
    "method.beta=0.04",
    "optim.warmup_steps=2",
)
"""Overrides of `sudoku-tiny`: 6 steps, with a checkpoint after each."""
PLAN = [
    ("one rank", 2, "ddp", 8),
    ("all ranks", 1, "ddp", 6),
    ("all ranks", 2, "ddp", 8),
    ("during a save", 1, "ddp", 5),
    ("during a save", 2, "ddp", 5),
    ("disk full", 1, "ddp", 3),
    ("disk full", 2, "ddp", 3),
    ("during a save", 2, "zero3", 6),
    ("during a save", 2, "fsdp2", 6),
]
"""Kind of failure, number of processes, preset, number of points."""
DISK = "24m"
"""Size of the file system that is filled."""
LONGEST = 120.0
"""Maximum time in seconds for a run to end."""


@dataclass(frozen=True)
class Point:
    """Failure of one run."""

    kind: str
    processes: int
    step: int
    """Number of steps that are logged before the failure."""
    rank: int = 0
    """Rank of the process that is killed."""
    delay: float = 0.0
    """Seconds between the logging of that step and the failure."""
    operation: int = 0
    """Index of the file operation during the save."""
    left: int = 0
    """Number of bytes that are left on the disk."""
    preset: str = "ddp"
    """Preset of the run. Under `zero3` and `fsdp2` each rank writes its own shards."""


def draw(kind: str, processes: int, preset: str, rng: random.Random) -> Point:
    """Return a random point of a kind."""
    step = rng.randrange(STEPS)
    match kind:
        case "during a save":
            operation = rng.randrange(12)
            rank = 0 if preset == "ddp" else rng.randrange(processes)
            return Point(kind, processes, step, rank, operation=operation, preset=preset)
        case "disk full":
            return Point(kind, processes, step, left=rng.randrange(0, 60_000))
    return Point(kind, processes, step, rng.randrange(processes), round(rng.uniform(0, 0.15), 4))


# --- in the processes ---


def train(
    rank: int, processes: int, port: int, preset: str, recipe: Any, resume: bool, printed: Path, point: Point | None
) -> None:
    """Run as one process of a run, and write its output to a file."""
    import torch

    torch.set_num_threads(1)
    if processes > 1:
        facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in (facts | {"MASTER_PORT": port}).items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
        os.environ.update(preset_environment(preset))
        {"zero3": gather_in_every_forward, "fsdp2": fsdp2_on_the_cpu}.get(preset, lambda _: None)(rank)
    if point is not None and rank == (point.rank if point.kind == "during a save" else 0):
        {"during a save": die_while_saving, "disk full": fill_before_saving}.get(point.kind, lambda _: None)(point)
    from unmask.cli import main

    overrides = [*SETTINGS, *recipe, *(["--resume"] if resume else [])]
    command = mock.patch.object(sys, "argv", ["unmask", "train", "sudoku-tiny", *overrides])
    with printed.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file), command:
        main()


def die_while_saving(point: Point) -> None:
    """Kill this process at one of the file operations of the checkpoint after the point's step."""
    from unmask.runs.folder import RunFolder

    save, seen = RunFolder.save_checkpoint, 0

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal seen
        if is_saving and event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"):
            seen += 1
            if seen > point.operation:
                os.kill(os.getpid(), signal.SIGKILL)

    is_saving = False

    def save_and_die(self: Any, step: int, *rest: Any) -> None:
        nonlocal is_saving
        is_saving = step == point.step + 1
        save(self, step, *rest)
        if is_saving:
            # The save has fewer operations than the drawn index, so kill at its end.
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    RunFolder.save_checkpoint = save_and_die  # type: ignore[method-assign]


def fill_before_saving(point: Point) -> None:
    """Fill the disk except for some bytes just before the checkpoint after the point's step."""
    from unmask.trainer.distributed.state import RunState

    write = RunState.write

    def fill_and_write(self: Any, folder: Path, *rest: Any) -> None:
        if folder.name.endswith(f"{point.step + 1:08d}"):
            disk = folder.parents[2]
            free = shutil.disk_usage(disk).free
            (disk / "filler").write_bytes(b"x" * max(0, free - point.left))
        write(self, folder, *rest)

    RunState.write = fill_and_write  # type: ignore[method-assign]


# --- around them ---


class Bench:
    """Folder with runs, their model, and the uninterrupted runs to compare with.

    Args:
        place: path of the folder.
    """

    def __init__(self, place: Path) -> None:
        from unmask.models import TinyConfig, char_tokenizer, save_model, tiny_denoiser
        from unmask.tasks.sudoku import Sudoku

        self.place = place
        tokenizer = char_tokenizer(Sudoku().alphabet)
        self.model = place / "model"
        save_model(
            tiny_denoiser(TinyConfig(num_layers=1, width=16, num_heads=2), tokenizer, seed=0), tokenizer, self.model
        )
        self._whole: dict[tuple[int, str], Path] = {}

    def whole(self, processes: int, preset: str) -> Path:
        """Return the folder of an uninterrupted run."""
        if (processes, preset) not in self._whole:
            folder = self.place / f"whole-{processes}-{preset}"
            codes = self.wait(self.start(folder, processes, preset))
            assert codes == [0] * processes, codes
            self._whole[processes, preset] = folder
        return self._whole[processes, preset]

    def start(
        self, folder: Path, processes: int, preset: str, point: Point | None = None, resume: bool = False
    ) -> list[ForkServerProcess]:
        """Start a run."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        recipe = (f"model={self.model}", f"output_dir={folder}", "stuck_timeout=61")
        started = []
        for rank in range(processes):
            printed = self.place / f"printed-{rank}.txt"
            printed.unlink(missing_ok=True)
            arguments = (rank, processes, port, preset, recipe, resume, printed, point)
            started.append(context.Process(target=train, args=arguments, daemon=True))
            started[-1].start()
        return started

    def wait(self, started: Sequence[ForkServerProcess]) -> list[int | None]:
        """Return the exit codes; None for a process that does not end."""
        for process in started:
            process.join(LONGEST)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
        return codes

    def said(self, processes: int) -> str:
        """Return the messages of the last run."""
        lines = []
        for rank in range(processes):
            printed = self.place / f"printed-{rank}.txt"
            lines += printed.read_text().splitlines() if printed.exists() else []
        return " ".join(line for line in lines if "Error: " in line)


def run(bench: Bench, point: Point, number: int) -> dict[str, Any]:
    """Run with the failure of a point, resume, and compare."""
    whole = bench.whole(point.processes, point.preset)
    with _disk(bench.place / f"disk-{number}", point.kind == "disk full") as disk:
        folder = disk / "run"
        started = bench.start(folder, point.processes, point.preset, point)
        if point.kind in ("one rank", "all ranks"):
            _strike(started, folder, point)
        codes = bench.wait(started)
        said = bench.said(point.processes)
        saved = [path.name for path in sorted((folder / "checkpoints").glob("step-*"))]
        if point.kind == "disk full":
            (disk / "filler").unlink(missing_ok=True)
        again = bench.wait(bench.start(folder, point.processes, point.preset, resume=True))
        found = {
            "codes": codes,
            "said": _without_paths(said, bench.place),
            "saved": int(saved[-1].removeprefix("step-")) if saved else 0,
            "resumed": again,
            "weights_equal": again == [0] * point.processes and _weights(folder) == _weights(whole),
            "metrics_equal": again == [0] * point.processes and _metrics(folder) == _metrics(whole),
        }
    return asdict(point) | found | {"ok": _is_as_promised(point, found)}


def _is_as_promised(point: Point, found: dict[str, Any]) -> bool:
    """Return True if the run ended as expected, with the right message and final state."""
    is_equal = found["weights_equal"] and found["metrics_equal"]
    if None in found["codes"]:
        return False
    if point.kind == "disk full":
        return bool(is_equal and set(found["codes"]) == {2} and "Free some space" in found["said"])
    return bool(is_equal)


def _strike(started: Sequence[ForkServerProcess], folder: Path, point: Point) -> None:
    """Wait for the time of the failure, and kill."""
    deadline = time.monotonic() + LONGEST
    lines = folder / "metrics.jsonl"
    # The evaluation before the first step also has a line.
    while not (lines.exists() and lines.read_text().count("\n") > point.step):
        if time.monotonic() > deadline or not any(process.is_alive() for process in started):
            break
        time.sleep(0.002)
    time.sleep(point.delay)
    for process in [started[point.rank]] if point.kind == "one rank" else started:
        process.kill()


@contextlib.contextmanager
def _disk(place: Path, is_small: bool) -> Iterator[Path]:
    """Yield a folder, in its own small file system if required."""
    place.mkdir()
    if is_small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        if is_small:
            subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(place, ignore_errors=True)


def can_mount() -> bool:
    """Return True if a small file system can be mounted."""
    return os.geteuid() == 0 and sys.platform == "linux"


def _weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def _metrics(folder: Path) -> list[dict[str, Any]]:
    from unmask.runs.metrics import read_metrics

    lines = read_metrics(folder)
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def _without_paths(text: str, place: Path) -> str:
    return text.replace(str(place), "PLACE")


def points(count: int | None, seed: int) -> list[Point]:
    """Return the points of a seed; with a count, this number of them, spread over the kinds."""
    rng = random.Random(seed)
    drawn = [draw(kind, processes, preset, rng) for kind, processes, preset, number in PLAN for _ in range(number)]
    drawn = [point for point in drawn if point.kind != "disk full" or can_mount()]
    return drawn if count is None else [drawn[i * len(drawn) // count] for i in range(count)]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results by kind as Markdown."""
    rows = ["| what happens | processes | preset | points | exit codes | equal bits |", "|---|---|---|---|---|---|"]
    for kind, processes, preset, _ in PLAN:
        plan = (kind, processes, preset)
        mine = [result for result in results if (result["kind"], result["processes"], result["preset"]) == plan]
        codes = sorted({", ".join(map(str, sorted(result["codes"]))) for result in mine})
        good = sum(result["ok"] for result in mine)
        rows.append(f"| {kind} | {processes} | {preset} | {len(mine)} | {' or '.join(codes)} | {good} of {len(mine)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="number of points, spread over the kinds (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(RESULTS), help="file for the results, or - for none")
    parser.add_argument("--preset", choices=("ddp", "zero3", "fsdp2"), help="run only the points of this preset")
    parser.add_argument("--table", action="store_true", help="only print the table of the recorded results")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]), end="")
        return
    if not can_mount():
        print("disk full: not run, it needs root to mount a small file system")
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place))
        results = []
        for number, point in enumerate(points(options.points, options.seed)):
            if options.preset not in (None, point.preset):
                continue
            results.append(run(bench, point, number))
            found = results[-1]
            where = f"step {point.step}" + (f" + {point.delay:.3f} s" if point.delay else "")
            outcome = "ok" if found["ok"] else f"NOT AS PROMISED: {json.dumps(found)}"
            print(
                f"{number + 1:>3}  {point.kind:14} {point.processes} processes  {point.preset:6} {where:18} "
                f"codes {found['codes']}  saved {found['saved']}  {outcome}",
                flush=True,
            )
    if options.output != "-":
        if options.preset and RESULTS.exists():
            recorded = [json.loads(line) for line in RESULTS.read_text().splitlines()]
            results = [result for result in recorded if result["preset"] != options.preset] + results
        Path(options.output).write_text("".join(json.dumps(result) + "\n" for result in results))
    sys.exit(0 if all(result["ok"] for result in results) else 1)


if __name__ == "__main__":
    main()
