"""Files and folders that are written either completely or not at all, locks on folders, and
messages for disk errors.

Content is written under a hidden name, flushed to the disk, and then renamed. So a process that is
killed leaves either the old or the new content, never a part of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from unmask.core.errors import ConfigError, RunError, reason

INCOMPLETE = ".incomplete-"
"""Prefix of the name of a folder while it is written."""
_REPLACED = ".replaced-"
"""Prefix of the name of an old folder while a new folder takes its place."""


@contextlib.contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` if the block ends without an error; otherwise
    `path` stays as it was.

    The temporary name keeps the ending of `path`, from which libraries derive the format.
    """
    aside = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        flush(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a file by `text`. If this fails, the file stays as it was."""
    with replaced_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def folder_replaced_whole(target: Path, aside: Path, working: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield an empty folder to write into. If the block ends without an error, this folder replaces
    `target`.

    Args:
        target: the folder to replace; it does not have to exist.
        aside: the folder to write into, on the same disk. Its name starts with `INCOMPLETE`, so
            that `tidy` removes it if the process is killed.
        working: function called before each file is flushed, so that the caller can report that it
            is still running during a long flush.
    """
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in [*aside.rglob("*"), aside]:
            working()
            flush(path)
        replaced = target.parent / f"{_REPLACED}{target.name}"
        if os.path.lexists(target):  # true for a broken link too
            target.rename(replaced)
        aside.rename(target)
        flush(target.parent)
        _remove(replaced)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def tidy(folder: Path) -> None:
    """Remove the incomplete folders that a killed process left in `folder`, and restore those that
    it was replacing."""
    for leftover in folder.glob(f"{INCOMPLETE}*"):
        _remove(leftover)
    for replaced in folder.glob(f"{_REPLACED}*"):
        target = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if target.exists():
            _remove(replaced)
        else:
            replaced.rename(target)


def take_lock(path: Path) -> TextIO:
    """Lock a folder by locking a file in it. The lock lasts until the returned file is closed.

    Raises:
        RunError: if another process holds the lock.
    """
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise RunError(
            f"another process is using {path.parent}. Wait until it ends, or set output_dir to another folder."
        ) from None
    return lock


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_faults_explained(path: Path, last_step: int = 0) -> Iterator[None]:
    """Turn errors of the file system into a RunError that names the last complete checkpoint and a
    remedy."""
    try:
        yield
    except Exception as error:
        safe = f" The checkpoint of step {last_step} is complete." if last_step else ""
        number = error.errno if isinstance(error, OSError) else None
        # safetensors wraps the system's error in an error of its own, and torch.save reports an
        # incomplete write with various messages.
        wrapped = re.search(
            r"No space left|os error 28|PytorchStreamWriter|iostream|unexpected pos \d+ vs \d+", str(error)
        )
        if number in (errno.ENOSPC, errno.EDQUOT) or wrapped:
            raise RunError(f"{path}: the disk is full.{safe} Free some space, then add --resume.") from error
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError | ChildProcessError):
            file = f"{error.filename}: " if error.filename and Path(str(error.filename)) != path else ""
            raise RunError(
                f"{path} cannot be written ({file}{error.strerror or reason(error)}).{safe} "
                "Change its permissions, or set output_dir to another folder."
            ) from error
        raise


@contextlib.contextmanager
def writing_explained(path: Path, advice: str) -> Iterator[None]:
    """Turn an error of the file system into a RunError that names `path` and says what to do.

    Args:
        path: the file to write.
        advice: a sentence such as "Name another file with --output."
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or reason(error)}). {advice}") from error


def refuse_to_overwrite(path: Path, output: Path, is_ours: Callable[[Path], bool], kind: str) -> None:
    """Raise an error if writing to `path` would overwrite a file that the command has not written.

    Args:
        path: the file to write.
        output: the user's value of --output, from which `path` is derived.
        is_ours: function that returns whether a file that is not empty was written by the command;
            it may raise OSError.
        kind: the kind of file that the command writes, such as "a figure".

    Raises:
        ConfigError: if `path` is a folder, or a file that `is_ours` does not recognise.
        RunError: if the file cannot be read.
    """
    with writing_explained(path, "Name another file with --output."):
        if path.is_dir() or (path.exists() and path.stat().st_size and not is_ours(path)):
            raise ConfigError(f"--output {output} would overwrite {path}, which is not {kind}. Name another file.")


def _remove(path: Path) -> None:
    """Remove a folder or a file, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
