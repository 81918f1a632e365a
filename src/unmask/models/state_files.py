"""Tensors of a run's checkpoint: weights, optimizer state, buffers and others that a resumed run
needs.

Each rank writes files of its own. A tensor that every rank holds whole is in one file. A tensor of
which every rank holds a part is in several files, as flat parts under names that `part_name` makes;
the metadata of a file, under `shapes`, holds the shapes of the whole tensors. Any number of ranks
can read the files, because a reader selects elements by their index in the flattened tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT, STATE, BUFFER, EXTRA = "weight:", "optimizer:", "buffer:", "extra:"
"""Prefixes of tensor names in a checkpoint. Optimizer entries end with the optimizer's own key,
such as `exp_avg`."""


PART = "@"
"""Separator between the name of a tensor and the first element of a part of it; see `part_name`."""


def part_name(name: str, start: int) -> str:
    """Return the name under which a file holds a part of a tensor.

    Args:
        name: name of the tensor.
        start: index of the part's first element in the flattened tensor.

    Example:
        >>> part_name("weight:head.weight", 4096)
        'weight:head.weight@4096'
    """
    return f"{name}{PART}{start}"


class StoredTensor:
    """A tensor in the files of a checkpoint: whole, or in flat parts that several ranks wrote.

    Args:
        name: name of the tensor.
        shape: shape of the whole tensor, if the files hold parts of it.
    """

    def __init__(self, name: str, shape: Sequence[int] | None = None) -> None:
        self.name = name
        self._shape = shape
        self._parts: list[tuple[int, str, Any]] = []

    @property
    def shape(self) -> list[int]:
        """Shape of the whole tensor."""
        if self._shape is not None:
            return list(self._shape)
        ((_, key, file),) = self._parts
        return list(file.get_slice(key).get_shape())

    def add(self, start: int, key: str, file: Any) -> None:
        """Add a part that begins at element `start` and has the name `key` in a file."""
        self._parts.append((start, key, file))
        self._parts.sort(key=lambda part: part[0])

    def check(self) -> None:
        """Check that the parts cover the tensor without a gap and without an overlap.

        Raises:
            RunError: a part is missing, or two parts overlap.
        """
        if self._shape is None:
            return
        end = 0
        for start, key, file in self._parts:
            if start != end:
                break
            end += math.prod(file.get_slice(key).get_shape())
        if end != math.prod(self._shape):
            raise RunError(f"its files do not hold the whole of {self.name}.")

    def whole(self) -> Tensor:
        """Read the whole tensor."""
        if self._shape is None:
            ((_, key, file),) = self._parts
            value: Tensor = file.get_tensor(key)
            return value
        return self.part(0, math.prod(self._shape)).view(*self._shape)

    def part(self, start: int, stop: int) -> Tensor:
        """Read the elements from `start` to `stop` of the flattened tensor."""
        import torch

        if self._shape is None:
            return self.whole().flatten()[start:stop]
        pieces = []
        for first, key, file in self._parts:
            values = file.get_slice(key)
            low, high = max(start - first, 0), min(stop - first, values.get_shape()[0])
            if low < high:
                pieces.append(values[low:high])
        return torch.cat(pieces) if pieces else self._parts[0][2].get_slice(self._parts[0][1])[:0]


class StateFiles:
    """Tensors of a folder by name, which are read one at a time.

    Args:
        folder: folder with state-*.safetensors files.

    Raises:
        RunError: the folder holds no such file, or a part of a tensor is missing.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.tensors: dict[str, StoredTensor] = {}
        for path in sorted(folder.glob("state-*.safetensors")):
            file: Any = safe_open(path, framework="pt")
            shapes = json.loads((file.metadata() or {}).get("shapes", "{}"))
            keys: list[str] = file.keys()
            for key in keys:
                name, _, start = key.rpartition(PART)
                if name in shapes:
                    self._tensor(name, shapes[name]).add(int(start), key, file)
                else:
                    self._tensor(key).add(0, key, file)
        if not self.tensors:
            raise RunError("it holds no state-*.safetensors file.")
        for tensor in self.tensors.values():
            tensor.check()

    def _tensor(self, name: str, shape: Sequence[int] | None = None) -> StoredTensor:
        return self.tensors.setdefault(name, StoredTensor(name, shape))

    def of_kind(self, kind: str) -> list[str]:
        """Return the names of one kind, such as `WEIGHT`, without their prefix."""
        return [name.removeprefix(kind) for name in self.tensors if name.startswith(kind)]

    def read(self, name: str) -> Tensor:
        """Read one whole tensor."""
        return self.tensors[name].whole()


class StateWriter:
    """Writer of one rank's files of a checkpoint. A file ends when it has `max_bytes` bytes, which
    bounds the memory of the writer.

    An error of writing is kept until `close`, so that this rank can take part in what the ranks
    still do together.

    Args:
        folder: folder of the checkpoint.
        index: index of this rank.
        count: number of ranks.
        max_bytes: size of a file; a larger tensor gets a file of its own.
        working: function that is called before each file is written.
    """

    def __init__(self, folder: Path, index: int, count: int, max_bytes: int, working: Callable[[], None]) -> None:
        self.folder, self.index, self.count = folder, index, count
        self.max_bytes, self.working = max_bytes, working
        self.paths: list[Path] = []
        self._error: Exception | None = None
        self._waiting: dict[str, Tensor] = {}
        self._shapes: dict[str, list[int]] = {}
        self._size = 0

    def add(self, name: str, values: Tensor, start: int | None = None, shape: Sequence[int] = ()) -> None:
        """Add a whole tensor, or, with `start`, the part of a tensor of `shape` that begins at that
        element."""
        if self._error is not None:
            return
        if start is not None:
            self._shapes[name] = list(shape)
            name = part_name(name, start)
        # safetensors refuses tensors that share memory, and a parameter may be a view of a flat
        # buffer, so this makes a copy.
        self._waiting[name] = values.detach().to("cpu", copy=True).contiguous()
        self._size += values.numel() * values.element_size()
        if self._size >= self.max_bytes:
            self._write()

    def close(self) -> list[Path]:
        """Write what is left, and return the paths of all files.

        Raises:
            Exception: the first error of writing.
        """
        if self._waiting and self._error is None:
            self._write()
        if self._error is not None:
            raise self._error
        return self.paths

    def _write(self) -> None:
        from safetensors.torch import save_file

        self.working()
        path = self.folder / f"state-{len(self.paths) * self.count + self.index:05d}.safetensors"
        metadata = {"format": "unmask-state-1"}
        if self._shapes:
            metadata["shapes"] = json.dumps(self._shapes)
        try:
            save_file(self._waiting, path, metadata)
        except Exception as error:  # safetensors wraps errors of the system in its own class
            self._error = error
        self.paths.append(path)
        self._waiting, self._shapes, self._size = {}, {}, 0
