"""Checks of the path of a run folder, before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from unmask.core.errors import RunError
from unmask.runs.metrics import FILE as METRICS


def check_path(path: Path) -> None:
    """Refuse a path that cannot be a run folder, before anything is written."""
    if "\0" in str(path):
        raise RunError(
            f"output_dir {str(path)!r} contains a null character, which paths cannot. Set output_dir to another folder."
        )
    if path.exists() and not path.is_dir():
        raise RunError(f"output_dir {path} is a file. Set output_dir to a folder; it does not have to exist.")
    if path.is_dir() and any(path.iterdir()) and not (path / "run.lock").exists():
        raise RunError(
            f"output_dir {path} is not a run folder, and a run might overwrite the files in it. "
            "Set output_dir to a new folder."
        )
    folders = (path, path / "checkpoints", path / "rollouts")
    for part in (*folders, path / "config.yaml", path / "run.json", path / "data.json", path / METRICS):
        if part.is_symlink() and not os.path.exists(part):
            raise RunError(
                f"{part} is a link to {os.readlink(part)}, which does not exist. Restore that file, or remove the link."
            )
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file, but a run needs a folder of this name. Remove the file.")
