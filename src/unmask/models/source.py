"""Where a checkpoint comes from: a folder, or the hub, of which only data files are fetched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmask.core.errors import ModelError, no_file, reason
from unmask.core.files import read_json_object

DATA_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""What may be fetched: no code and no pickle."""


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether what is no folder here may be on the hub: NAME or ORG/NAME; for anything else the hub need not be asked."""
    return not str(source).startswith((".", "/", "~")) and str(source).count("/") <= 1


HUB_TIMEOUT = 5.0
"""Seconds that the hub has for its first answer."""


def check_on_hub(source: str | os.PathLike[str]) -> None:
    """Raise ModelError at once if the hub cannot give a checkpoint.

    The libraries that download one try again for half a minute before they say that a name is misspelt or the network is down.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(str(source), "config.json"), str):
            HfApi().model_info(str(source), timeout=HUB_TIMEOUT)
    except Exception as error:  # offline, no such repository, no access: the hub's client has a kind for each
        raise ModelError(
            f"no model at {source}: there is no such folder in {Path.cwd()}, and the hub did not give one ({reason(error)}). "
            "Give a folder with config.json, or a hub id."
        ) from error


def local_folder(
    source: str | os.PathLike[str], tell: Callable[[str], None] = lambda _: None, *, is_model: bool = True
) -> Path:
    """The folder of a checkpoint, or of a tokenizer alone, fetched from the hub if `source` is no path; `tell` is then told so.

    Raises:
        ModelError: nothing there, or no config.json in what should be a model.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        if not is_hub_id(source):
            raise ModelError(f"{no_file(source, 'folder')} Name one that is there, or a hub id.")
        from huggingface_hub import snapshot_download

        tell(f"fetching {source} from the hub, what is not in its cache")
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=list(DATA_FILES)))
        except Exception as error:  # offline, no such repository, no access: the hub's client has a kind for each
            raise ModelError(
                f"{source} is no folder here, and could not be fetched from the hub: {reason(error)}\nWhere there is a network, "
                f"`hf download {source} --local-dir FOLDER` gets it; then give that folder."
            ) from error
    if is_model and not (folder / "config.json").is_file():
        raise ModelError(f"{source} is no checkpoint: it has no config.json.")
    return folder


def refuse_pickles(folder: Path) -> None:
    """Raise ModelError if a folder without safetensors has weights in files that can run code when they are read."""
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code when they are read; unmask reads safetensors "
            "only. Take a revision of the checkpoint that has safetensors, or, if you trust where it is from, rewrite "
            "it elsewhere with transformers' from_pretrained and save_pretrained."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file's object.

    Raises:
        ModelError: it holds something else.
    """
    return read_json_object(path, ModelError)
