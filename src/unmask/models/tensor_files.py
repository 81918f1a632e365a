"""Files of tensors: what they hold, and how tensors are put together from them and written in
shards.

A stored tensor is read when it is written, so a checkpoint is never in memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ModelError
from unmask.models.assembly import Assembly, Source
from unmask.models.source import read_json, refuse_pickles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Dtypes that a conversion can write, by torch's and safetensors' names."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    kind: str
    """Dtype, by its name in safetensors."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor that is written."""

    assembly: Assembly
    kind: str
    """Dtype in the destination, by its name in safetensors."""

    @property
    def num_bytes(self) -> int:
        """Size in the destination, in bytes."""
        return self.assembly.size * SIZES[self.kind]


class TensorFiles:
    """The tensors of a folder, without those that follow from the config.

    Args:
        folder: folder with safetensors files.

    Raises:
        ModelError: the folder has no weights, or a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.stored: dict[str, Stored] = {}
        self._opened: dict[Path, Any] = {}
        num_bytes = 0
        for file in _files(folder):
            try:
                opened: Any = safe_open(file, framework="pt")
                self._opened[file] = opened
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    stored = Stored(file, tuple(part.get_shape()), part.get_dtype())
                    num_bytes += prod(stored.shape) * SIZES.get(stored.kind, 0)
                    if not name.endswith("rotary_emb.inv_freq"):  # older files hold this
                        self.stored[name] = stored
            except Exception as error:  # safetensors raises its own errors for damaged files
                raise ModelError(f"{file} cannot be read as safetensors: {error}. Copy it again.") from error
        _check_total_size(folder, num_bytes)

    def put_together(self, piece: Piece) -> Tensor:
        """Read the parts of a tensor, in the dtype of the destination."""
        import torch

        assembly, dtype = piece.assembly, _torch_dtype(piece.kind)
        first = self._read(assembly.groups[0][0])
        dtype = first.dtype if dtype is None else dtype
        if len(assembly.groups) == 1 and len(assembly.groups[0]) == 1:
            return first.to(dtype).view(assembly.shape)
        whole = torch.empty(assembly.shape, dtype=dtype)
        for group, target in zip(assembly.groups, whole if assembly.is_stacked else (whole,), strict=True):
            row = 0
            for source in group:
                part = self._read(source)
                target[row : row + len(part)] = part
                row += len(part)
        return whole

    def _read(self, source: Source) -> Tensor:
        """Read a tensor or a part of it; a part is read without the rest."""
        file = self._opened[self.stored[source.name].file]
        if source.expert is None and source.rows is None:
            whole: Tensor = file.get_tensor(source.name)
            return whole
        part, rows = file.get_slice(source.name), slice(*source.rows) if source.rows else slice(None)
        value: Tensor = part[rows] if source.expert is None else part[source.expert, rows]
        return value


def write_tensors(
    pieces: list[Piece], files: TensorFiles, folder: Path, shard_bytes: int, tell: Callable[[str], None]
) -> None:
    """Write one file, or shards with an index as transformers writes it."""
    from safetensors.torch import save_file

    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(p.num_bytes for p in shards[-1]) + piece.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tell(f"writing {name}, {sum(piece.num_bytes for piece in shard) / 1e9:.2f} GB")
        tensors = {piece.assembly.target: files.put_together(piece) for piece in shard}
        save_file(tensors, folder / name, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(piece.num_bytes for piece in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _torch_dtype(kind: str) -> torch.dtype | None:
    """Return the dtype of floating-point values; None for others, which are not converted."""
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind)


def _files(folder: Path) -> list[Path]:
    """Return the files of tensors: the files that the index names, or all files if there is no
    index."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
            raise ModelError(f"{index} has no weight_map with file names. Copy the checkpoint again.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, which its index names. Copy the checkpoint again.")
        return files
    whole = folder / "model.safetensors"
    # Other files, such as adapters or weights in another layout, are not read by transformers
    # either.
    if files := [whole] if whole.is_file() else sorted(folder.glob("*.safetensors")):
        return files
    refuse_pickles(folder)
    raise ModelError(f"{folder} holds no weights, because it has no .safetensors file.")


def _check_total_size(folder: Path, num_bytes: int) -> None:
    """Raise ModelError if the index states another size than the tensors have, as it does beside
    files of another revision or precision."""
    index = folder / "model.safetensors.index.json"
    metadata = read_json(index).get("metadata") if index.is_file() else None
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stated is not None and stated != num_bytes:
        raise ModelError(
            f"{index} says that the tensors have {stated} bytes, but the files hold {num_bytes}: they are not of one checkpoint. "
            "Download it again. If the release itself is published so, remove total_size from that file."
        )


def _is_file_name(name: object) -> bool:
    """Return True if an entry of an index is a plain file name, so that the file lies in the folder
    of the index."""
    return isinstance(name, str) and Path(name).name == name
