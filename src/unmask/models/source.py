"""Where a checkpoint comes from: a folder, or the hub, of which only data files are fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmask.errors import ModelError

DATA_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""What may be fetched: no code and no pickle."""


def local_folder(
    source: str | os.PathLike[str], tell: Callable[[str], None] = lambda _: None, *, is_model: bool = True
) -> Path:
    """The folder of a checkpoint, or of a tokenizer alone, fetched from the hub if `source` is no path; `tell` is then told so.

    Raises:
        ModelError: nothing there, or no config.json in what should be a model.
    """
    folder = Path(source)
    # A hub id is NAME or ORG/NAME; anything else is meant as a folder, and the hub need not be asked.
    is_path = str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    if not folder.exists():
        if is_path:
            raise ModelError(f"there is no folder {source}. Name one that is there, or a hub id.")
        from huggingface_hub import snapshot_download

        tell(f"fetching {source} from the hub, what is not in its cache")
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=list(DATA_FILES)))
        except Exception as error:  # offline, no such repository, no access: the hub's client has a kind for each
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"{source} is no folder here, and could not be fetched from the hub: {first}\nWhere there is a network, "
                f"`hf download {source} --local-dir FOLDER` gets it; then give that folder."
            ) from error
    if is_model and not (folder / "config.json").is_file():
        raise ModelError(f"{source} is no checkpoint: it has no config.json.")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        ModelError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content
