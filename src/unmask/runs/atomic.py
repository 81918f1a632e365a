"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from unmask.errors import RunError, reason


@contextlib.contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which replaces `path` when the block ends well; otherwise `path` stays as it was.

    The name keeps the ending of `path`, from which libraries derive the format.
    """
    aside = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        flush(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a file by `text`, or leave the file as it was."""
    with replaced_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_explained(path: Path, advice: str) -> Iterator[None]:
    """Turn an error of the file system into a RunError that names `path` and says what to do.

    Args:
        path: what is written.
        advice: a sentence, such as "Name another file with --output."
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or reason(error)}). {advice}") from error
