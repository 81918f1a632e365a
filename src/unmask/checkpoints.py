"""Folders of checkpoints: what is complete, what may be deleted, and whether there is room for the next one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from unmask.errors import RunError

MANIFEST = "manifest.json"
"""In a checkpoint: size in bytes and SHA-256 of each of its other files."""
ROOM_TO_SPARE = 16 * 2**20
"""Bytes that a disk should have left after a checkpoint, for metrics, rollouts and whatever else writes."""


def _nothing() -> None: ...


def write_manifest(folder: Path, reading: Callable[[], None] = _nothing) -> None:
    """Write down what the files of a folder hold, when all of them are there; `reading` is called before each is read."""
    files = {path.name: _fact(path, reading) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1) + "\n")


def fault_of(folder: Path, *, thorough: bool = True, reading: Callable[[], None] = _nothing) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is as it was written.

    Args:
        folder: of the checkpoint.
        thorough: read every byte again; otherwise look at names and sizes only.
        reading: called before each file is read.
    """
    try:
        wanted = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"it has no readable {MANIFEST}"
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and was written with {size}"
        if thorough and _fact(path, reading)[1] != digest:
            return f"{name} holds other bytes than were written"
    return None


def to_delete(checkpoints: Sequence[Path], keep: int) -> list[Path]:
    """Which of the checkpoints, oldest first, are beyond the newest `keep` good ones.

    Each was read again in full when it was written, so here names and sizes are enough. A damaged one counts as none, so the last
    good one stays whatever is newer.
    """
    good = 0
    for place in range(len(checkpoints) - 1, -1, -1):
        good += fault_of(checkpoints[place], thorough=False) is None
        if good == keep:
            return list(checkpoints[:place])
    return []


def check_room(path: Path, size: int, last_step: int = 0) -> None:
    """Refuse to write `size` bytes where they do not fit, before anything is half written.

    Raises:
        RunError: there is too little room.
    """
    free = shutil.disk_usage(path).free
    if free < size + ROOM_TO_SPARE:
        safe = f" The checkpoint of step {last_step} is complete." if last_step else ""
        raise RunError(
            f"{path}: the disk has {_megabytes(free)} left, and a checkpoint takes {_megabytes(size)}, with "
            f"{_megabytes(ROOM_TO_SPARE)} to spare.{safe} Make room, then add --resume."
        )


def size_of(folder: Path) -> int:
    """Bytes that the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _fact(path: Path, reading: Callable[[], None]) -> tuple[int, str]:
    reading()
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
