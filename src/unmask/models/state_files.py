"""The tensors of a checkpoint of a run: weights, optimizer state, buffers and what else the run needs to go on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHT, STATE, BUFFER, EXTRA = "weight:", "optimizer:", "buffer:", "extra:"
"""Before the names of tensors; a state's name ends in the optimizer's own name for it."""


class StateFiles:
    """The tensors of a folder, by name, read one at a time.

    Args:
        folder: holds state-*.safetensors.

    Raises:
        RunError: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._file: dict[str, Any] = {}
        for path in sorted(folder.glob("state-*.safetensors")):
            file = safe_open(path, framework="pt")
            self._file |= dict.fromkeys(file.keys(), file)  # type: ignore[no-untyped-call]
        if not self._file:
            raise RunError("it holds no state-*.safetensors.")

    def names(self) -> dict[str, tuple[torch.dtype, list[int]]]:
        """Precision and shape of each."""
        return {name: (self.read(name).dtype, file.get_slice(name).get_shape()) for name, file in self._file.items()}

    def of_kind(self, kind: str) -> list[str]:
        """Names of one kind, such as `WEIGHT`, without what marks the kind."""
        return [name.removeprefix(kind) for name in self._file if name.startswith(kind)]

    def read(self, name: str) -> Tensor:
        """One of them."""
        value: Tensor = self._file[name].get_tensor(name)
        return value
