"""Tensors of a run's checkpoint: weights, optimizer state, buffers and others that a resumed run
needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHT, STATE, BUFFER, EXTRA = "weight:", "optimizer:", "buffer:", "extra:"
"""Prefixes of tensor names in a checkpoint. Optimizer entries end with the optimizer's own key,
such as `exp_avg`."""


class StateFiles:
    """Tensors of a folder by name, which are read one at a time.

    Args:
        folder: folder with state-*.safetensors files.

    Raises:
        RunError: the folder holds no such file.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._file: dict[str, Any] = {}
        for path in sorted(folder.glob("state-*.safetensors")):
            file = safe_open(path, framework="pt")
            self._file |= dict.fromkeys(file.keys(), file)  # type: ignore[no-untyped-call]
        if not self._file:
            raise RunError("it holds no state-*.safetensors file.")

    def names(self) -> dict[str, tuple[torch.dtype, list[int]]]:
        """Return dtype and shape of each tensor by name."""
        return {name: (self.read(name).dtype, file.get_slice(name).get_shape()) for name, file in self._file.items()}

    def of_kind(self, kind: str) -> list[str]:
        """Return the names of one kind, such as `WEIGHT`, without their prefix."""
        return [name.removeprefix(kind) for name in self._file if name.startswith(kind)]

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        value: Tensor = self._file[name].get_tensor(name)
        return value
