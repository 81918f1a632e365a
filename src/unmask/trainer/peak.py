"""Measurement of the peak memory of a function call, and of the free memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], *modules: nn.Module, device: torch.device | str = "cpu") -> int:
    """Return the largest number of bytes that tensors hold at once during `work`, beyond those that
    existed before.

    On a CUDA GPU, torch's allocator counts the bytes. Elsewhere, this function counts the tensors
    that operations return, until they are freed. This leaves out memory that an operation uses only
    internally.

    Args:
        work: function to measure.
        modules: modules whose weights exist before the call.
        device: device that the function runs on.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    count = _Count(modules)
    with count:
        work()
    return count.peak


def free_bytes(device: torch.device) -> int:
    """Return the number of free bytes on the GPU, or this rank's share of those of the machine and
    its control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        # Memory that torch's allocator holds and does not use is free, too.
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    import psutil

    limits = [psutil.virtual_memory().available, *_free_in_control_group()]
    return int(min(limits)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _free_in_control_group() -> Iterator[int]:
    """Yield the free bytes under a container's limit, if it has one. psutil reads the memory of the
    machine only."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return
    if limit != "max":
        yield max(0, int(limit) - int(used))


class _Count(TorchDispatchMode):
    """Counts the bytes of the tensors that operations return, from their first use until they are
    freed."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                self._know(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._know(value, counts=False)
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._know(value, counts=True)
        return out

    def _know(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known.add(key)
        weakref.finalize(storage, self._forget, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
