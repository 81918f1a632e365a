"""Folders of checkpoints: which there are, what is complete, what may be deleted, and whether there is room for the next one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unmask.errors import RunError
from unmask.files import parse_json

MANIFEST = "manifest.json"
"""File in a checkpoint that holds the run's id, the step, and the size in bytes and SHA-256 of each other file."""
ROOM_TO_SPARE = 16 * 2**20
"""Bytes that a disk should have left after a checkpoint, for metrics, rollouts and whatever else writes."""
_NAME = re.compile(r"step-(\d{8,18})")


def _nothing() -> None: ...


def checkpoints_in(run: Path) -> list[Path]:
    """List the checkpoints of a run folder, oldest first.

    Folders with other names, such as a copy called step-00000006.bak, are not checkpoints.
    """
    places = run / "checkpoints"
    if not places.is_dir():
        return []
    return sorted((path for path in places.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint, by the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, by its name and its manifest."""
    return bool(_NAME.fullmatch(os.path.basename(os.path.realpath(folder)))) and (folder / MANIFEST).is_file()


def write_manifest(folder: Path, run: str, step: int, reading: Callable[[], None] = _nothing) -> None:
    """Write down what the files of a folder hold, when all of them are there.

    Args:
        folder: the checkpoint.
        run: id of the run that it belongs to.
        step: steps done.
        reading: called before each file is read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _fact(path, reading) for path in paths}
    (folder / MANIFEST).write_text(json.dumps({"run": run, "step": step, "files": files}, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what `write_manifest` wrote.

    Raises:
        ValueError: it is missing, damaged, names no files, or is of another step than the folder's name; the message says
            which, as a clause.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"it has no readable {MANIFEST}") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not isinstance(manifest.get("run"), str) or not files:
        raise ValueError(f"its {MANIFEST} does not name the run and the files, as this version of unmask writes them")
    if not all(isinstance(fact, list) and len(fact) == 2 and _is_inside(name) for name, fact in files.items()):
        raise ValueError(f"its {MANIFEST} is damaged")
    if manifest.get("step") != step_of(folder):
        raise ValueError(f"its {MANIFEST} is of step {manifest.get('step')}")
    return dict(manifest)


def fault_of(folder: Path, *, thorough: bool = True, reading: Callable[[], None] = _nothing) -> str | None:
    """Say what is wrong with a checkpoint, as a clause; None if it is as it was written.

    Args:
        folder: the checkpoint.
        thorough: read every byte again; otherwise look at names and sizes only.
        reading: called before each file is read.
    """
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and was written with {size}"
        if thorough and _fact(path, reading)[1] != digest:
            return f"{name} holds other bytes than were written"
    for pattern in ("*.safetensors", "*.json"):
        if extra := sorted({path.name for path in folder.glob(pattern)} - files.keys() - {MANIFEST}):
            return f"{extra[0]} was not written with it"
    return None


def is_of_another(folder: Path, run: str) -> bool:
    """Whether a checkpoint says that it belongs to another run."""
    try:
        return bool(read_manifest(folder)["run"] != run)
    except ValueError:
        return False


def to_delete(checkpoints: Sequence[Path], keep: int, run: str) -> list[Path]:
    """Choose the checkpoints of a run, listed oldest first, that are beyond the newest `keep` good ones.

    Each was read again in full when it was written, so here names and sizes are enough. A damaged one counts as none, so the last
    good one stays whatever is newer. Checkpoints of other runs are left alone.
    """
    own = [checkpoint for checkpoint in checkpoints if not is_of_another(checkpoint, run)]
    good = 0
    for place in range(len(own) - 1, -1, -1):
        good += fault_of(own[place], thorough=False) is None
        if good == keep:
            return own[:place]
    return []


@contextlib.contextmanager
def damage_explained(checkpoint: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into a RunError that says what to do."""
    try:
        yield
    except Exception as error:  # whatever a damaged file makes torch or safetensors raise
        raise RunError(
            f"the checkpoint {checkpoint} cannot be read ({type(error).__name__}: {error}). "
            "Remove that folder to go on from the checkpoint before it."
        ) from error


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


def _is_inside(name: str) -> bool:
    """Whether a name in a manifest is of a file in its folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _fact(path: Path, reading: Callable[[], None]) -> tuple[int, str]:
    reading()
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
