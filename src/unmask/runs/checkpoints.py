"""Checkpoint folders: list them, check that they are complete, choose which to delete, and check
the disk space."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from unmask.core.errors import RunError
from unmask.core.files import parse_json

MANIFEST = "manifest.json"
"""Name of the file in a checkpoint that holds the run's id, the step, and the size and SHA-256 of
each other file."""
RESERVED = 16 * 2**20
"""Number of bytes of disk space that must stay free after a checkpoint is written, for metrics,
rollouts and other programs."""
ALL = slice(None)
Fact = tuple[int, str]
"""Size in bytes and SHA-256 of a file."""
T = TypeVar("T")
_NAME = re.compile(r"step-(\d{8,18})")


def _nothing() -> None: ...


def checkpoints_in(run: Path) -> list[Path]:
    """List the checkpoints of a run folder, oldest first.

    Folders with other names, such as a copy called step-00000006.bak, are not checkpoints.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of training steps at a checkpoint, read from the name of its folder."""
    return int(checkpoint.name.removeprefix("step-"))


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has the name and the manifest of a checkpoint of a run."""
    return bool(_NAME.fullmatch(os.path.basename(os.path.realpath(folder)))) and (folder / MANIFEST).is_file()


class Peers(Protocol):
    """The ranks that write a checkpoint together, seen from one of them; see `Ranks`."""

    index: int
    count: int

    def agreed(self) -> contextlib.AbstractContextManager[None]:
        """Run a block in which an error for the user on any rank is raised on all ranks."""
        ...

    def objects(self, value: T) -> list[T]:
        """Return the values that the ranks pass, one for each rank."""
        ...

    def from_main(self, value: T) -> T:
        """Return the value that the main rank passes."""
        ...


class Alone:
    """The only rank of a run; see `Peers`."""

    index, count = 0, 1

    def agreed(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def objects(self, value: T) -> list[T]:
        """Return a list of the value."""
        return [value]

    def from_main(self, value: T) -> T:
        """Return the value."""
        return value


def facts_of(paths: Sequence[Path], folder: Path, reading: Callable[[], None] = _nothing) -> dict[str, Fact]:
    """Return the size and the SHA-256 of files in a checkpoint, by their path in it."""
    return {path.relative_to(folder).as_posix(): _fact(path, reading) for path in paths}


def write_manifest(
    folder: Path, run: str, step: int, known: Mapping[str, Fact] = {}, reading: Callable[[], None] = _nothing
) -> None:
    """Record the size and the hash of every file in a complete checkpoint.

    Args:
        folder: the checkpoint.
        run: id of the run.
        step: number of training steps.
        known: facts of the files that their writers have read; this function reads the others.
        reading: function called before each file is read, so that the caller can report progress.
    """
    paths = [path for path in folder.rglob("*") if path.is_file()]
    others = [path for path in paths if path.relative_to(folder).as_posix() not in known]
    files = dict(sorted((dict(known) | facts_of(others, folder, reading)).items()))
    (folder / MANIFEST).write_text(json.dumps({"run": run, "step": step, "files": files}, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint.

    Raises:
        ValueError: if the manifest is missing or damaged, names no files, or names another step
            than the folder's name. The message is a clause that names the fault.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"it has no readable {MANIFEST}") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not isinstance(manifest.get("run"), str) or not files:
        raise ValueError(
            f'its {MANIFEST} lacks one of the entries "run" and "files", which this version of unmask writes'
        )
    if not all(isinstance(fact, list) and len(fact) == 2 and _is_inside(name) for name, fact in files.items()):
        raise ValueError(f"its {MANIFEST} is damaged")
    if manifest.get("step") != step_of(folder):
        raise ValueError(f"its {MANIFEST} belongs to step {manifest.get('step')}")
    return dict(manifest)


def fault_of(
    folder: Path, *, thorough: bool = True, share: slice = ALL, reading: Callable[[], None] = _nothing
) -> str | None:
    """Return a clause that names the fault of a damaged checkpoint; None if the checkpoint is
    intact.

    Args:
        folder: the checkpoint.
        thorough: True to read every byte, False to compare names and sizes only.
        share: the files to read if the ranks divide them; names and sizes of all files are
            compared.
        reading: function called before each file is read, so that the caller can report progress.
    """
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    to_read = set(list(files)[share]) if thorough else set()
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if name in to_read and _fact(path, reading)[1] != digest:
            return f"{name} has changed since it was written"
    for pattern in ("*.safetensors", "*.json"):
        if extra := sorted({path.name for path in folder.glob(pattern)} - files.keys() - {MANIFEST}):
            return f"{extra[0]} does not belong to it"
    return None


def is_of_another(folder: Path, run: str) -> bool:
    """Return whether the manifest of a checkpoint names another run."""
    try:
        return bool(read_manifest(folder)["run"] != run)
    except ValueError:
        return False


def to_delete(checkpoints: Sequence[Path], keep: int, run: str) -> list[Path]:
    """Return the checkpoints of a run to delete so that its newest `keep` intact checkpoints stay.

    Each checkpoint was read in full when it was written, so a comparison of names and sizes is
    enough here. Damaged checkpoints do not count, so the last intact one always stays. Checkpoints
    of other runs are never deleted.

    Args:
        checkpoints: all checkpoints in the folder, oldest first.
        keep: number of intact checkpoints to keep.
        run: id of the run.
    """
    own = [checkpoint for checkpoint in checkpoints if not is_of_another(checkpoint, run)]
    intact = 0
    for i in range(len(own) - 1, -1, -1):
        intact += fault_of(own[i], thorough=False) is None
        if intact == keep:
            return own[:i]
    return []


@contextlib.contextmanager
def damage_explained(checkpoint: Path) -> Iterator[None]:
    """Turn any error that a damaged file raises into a RunError that says what to do."""
    try:
        yield
    except Exception as error:  # a damaged file makes torch or safetensors raise many kinds of errors
        raise RunError(
            f"the checkpoint {checkpoint} cannot be read ({type(error).__name__}: {error}). "
            "Remove this folder to continue from the previous checkpoint."
        ) from error


def check_disk_space(path: Path, size: int, last_step: int = 0) -> None:
    """Check that `size` bytes fit on the disk, before anything is written.

    Raises:
        RunError: if the disk has too little free space.
    """
    free = shutil.disk_usage(path).free
    if free < size + RESERVED:
        safe = f" The checkpoint of step {last_step} is complete." if last_step else ""
        raise RunError(
            f"{path}: the disk has {_megabytes(free)} left, but a checkpoint needs {_megabytes(size)} and "
            f"{_megabytes(RESERVED)} must stay free.{safe} Free some space, then add --resume."
        )


def _is_inside(name: str) -> bool:
    """Return whether a name in a manifest is a path inside the checkpoint's folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _fact(path: Path, reading: Callable[[], None]) -> Fact:
    """Return the size and the SHA-256 of a file."""
    reading()
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
