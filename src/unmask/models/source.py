"""Sources of checkpoints: a folder, or the hub, from which only data files are downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmask.core.errors import ModelError, no_file, reason
from unmask.core.files import read_json_object

DATA_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""Patterns of the files that may be downloaded: no code and no pickles."""


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Return True if a name that is not a folder may be on the hub: NAME or ORG/NAME."""
    return not str(source).startswith((".", "/", "~")) and str(source).count("/") <= 1


HUB_TIMEOUT = 5.0
"""Maximum number of seconds until the hub's first answer."""


def check_on_hub(source: str | os.PathLike[str]) -> None:
    """Raise ModelError without delay if the hub cannot provide a checkpoint.

    The libraries that download a checkpoint retry for half a minute before they report a misspelled
    name or a network fault.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(str(source), "config.json"), str):
            HfApi().model_info(str(source), timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's client has an error for each reason
        raise ModelError(
            f"no model at {source}: {Path.cwd()} has no such folder, and the hub did not provide it ({reason(error)}). "
            "Give a folder with config.json, or a hub id."
        ) from error


def local_folder(
    source: str | os.PathLike[str],
    tell: Callable[[str], None] = lambda _: None,
    *,
    is_model: bool = True,
    revision: str | None = None,
) -> Path:
    """Return the folder of a checkpoint or of a tokenizer, after downloading it if `source` is not
    a path.

    Args:
        source: folder or hub id.
        tell: function that gets a line of text before a download.
        is_model: True for a model, which needs a config.json.
        revision: commit, branch or tag of a hub repository; default its newest commit.

    Raises:
        ModelError: the source does not exist, or a model has no config.json.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        if not is_hub_id(source):
            raise ModelError(f"{no_file(source, 'folder')} Name an existing folder or a hub id.")
        from huggingface_hub import snapshot_download

        option = f" --revision {revision}" if revision else ""
        version = f" at {revision}" if revision else ""
        tell(f"downloading {source}{version} from the hub, unless it is in the cache")
        try:
            folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(DATA_FILES)))
        except Exception as error:  # the hub's client has an error for each reason
            raise ModelError(
                f"{source} is not a folder here, and could not be downloaded{version} from the hub: {reason(error)}\nDownload it "
                f"on a machine with a network, `hf download {source}{option} --local-dir FOLDER`, and give that folder."
            ) from error
    if is_model and not (folder / "config.json").is_file():
        raise ModelError(f"{source} is not a checkpoint, because it has no config.json.")
    return folder


_COMMIT = re.compile("[0-9a-f]{40}")


def origin_of_download(folder: Path) -> dict[str, str] | None:
    """Return the hub id and the commit that a downloaded folder holds; None if the folder does not
    show them.

    The commit is the name of a folder in the hub's cache. `hf download --local-dir` writes the
    commit beside the files, but not the hub id, and the name of the folder then stands for it.
    """
    # .../models--OWNER--NAME/snapshots/COMMIT
    if _COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots":
        return {"source": "/".join(folder.parent.parent.name.split("--")[1:]), "revision": folder.name}
    record = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    first = record.read_text(encoding="utf-8").split("\n", 1)[0] if record.is_file() else ""
    return {"source": folder.resolve().name, "revision": first} if _COMMIT.fullmatch(first) else None


def refuse_pickles(folder: Path) -> None:
    """Raise ModelError if a folder without safetensors holds weights in files that can run code
    when they are read."""
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code when they are read, and unmask reads only "
            "safetensors. Use a revision of the checkpoint that has safetensors. If you trust its source, you can also "
            "rewrite it elsewhere with transformers' from_pretrained and save_pretrained."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read the object of a JSON file.

    Raises:
        ModelError: the file holds anything else.
    """
    return read_json_object(path, ModelError)
