"""Memory: the most that a piece of work holds at once beside what was there, and what is free."""

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
    """The most bytes of tensors alive at once during `work`, beyond those that were before.

    On a CUDA GPU as its allocator counts them; elsewhere every tensor that an operation makes is counted until it dies, which is
    exact but for what operations use inside.

    Args:
        work: what is measured.
        modules: whose weights are there before.
        device: where the work runs.
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
    """Bytes that can still be had: of the GPU, or of the machine (and its control group) shared by its processes of this run."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        # What torch's allocator holds and does not use is free to us too.
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    import psutil

    found = [psutil.virtual_memory().available, *_left_in_control_group()]
    return int(min(found)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _left_in_control_group() -> Iterator[int]:
    """What a container's limit leaves, where there is one: psutil reads the machine's memory only."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return
    if limit != "max":
        yield max(0, int(limit) - int(used))


class _Count(TorchDispatchMode):
    """Follows the storages of all tensors that operations make, from their first sight to their death."""

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
