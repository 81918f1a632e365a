"""A simulated GPU: tensors on a device of their own that compute on the CPU and follow the rules of
CUDA tensors.

The device is torch's backend for extensions (PrivateUse1) under the name `simulated`. A tensor of it
holds a CPU tensor, so values, gradients and aliasing are those of the CPU. What CUDA refuses is
refused: tensors of two devices in one operation, and a CPU generator that fills a tensor of the
device. What makes the host wait for a GPU is counted: reading a value, an operation whose result has a
shape that depends on values, and a copy between the devices.

It cannot show what kernels do: rounding, speed, memory, or code that asks for the type `cuda`.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
WAITS = {
    "_local_scalar_dense": "a value is read",
    "equal": "a value is read",
    "is_nonzero": "a value is read",
    "nonzero": "the shape depends on values",
    "masked_select": "the shape depends on values",
    "unique_dim": "the shape depends on values",
    "_unique2": "the shape depends on values",
    "unique_consecutive": "the shape depends on values",
    "bincount": "the shape depends on values",
    "repeat_interleave": "the shape depends on values",
}
"""Operations after which the host waits for the device, with the reason."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
SCALARS_ALLOWED = {"where", "masked_fill", "masked_fill_", "fill_", "fill", "index_fill", "index_fill_"}
"""Operations besides the pointwise ones that take a CPU tensor without dimensions as a number."""

FACTORIES = (
    "empty.memory_format",
    "empty_strided",
    "arange",
    "arange.start",
    "arange.start_step",
    "eye",
    "eye.m",
    "linspace",
    "randperm",
    "randperm.generator",
)
"""Operations that make a tensor of the device. Those besides `empty` would make an empty one and resize it,
which a wrapper cannot follow."""


class DeviceError(RuntimeError):
    """An operation that CUDA would refuse."""


class Waits(Counter[tuple[str, str]]):
    """Number of times that the host waited for the device, by reason and line of the package."""

    @property
    def reasons(self) -> Counter[str]:
        """Number of times by reason."""
        reasons: Counter[str] = Counter()
        for (reason, _), count in self.items():
            reasons[reason] += count
        return reasons


_waits: list[Waits] = []
_Generator = torch.Generator
_generators: set[int] = set()


class _Module:
    """What torch expects of the module of a backend."""

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def is_available() -> bool:
        # The other tests of the process must not take the machine for one with a GPU.
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Do nothing: the numbers are drawn by the CPU's generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def synchronize(device: object = None) -> None:
        """Do nothing."""


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, dev_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class SimulatedTensor(Tensor):
    """Tensor on the simulated device, which holds a CPU tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> SimulatedTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )
        tensor.inner = inner
        return tensor

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.inner!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def untyped_storage(self) -> Any:
        # Libraries that save weights recognize tied ones by the address.
        return self.inner.untyped_storage()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        # With this method, `Module.to` swaps parameters in place, as it does for CUDA.
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], context: None, size: Any, stride: Any) -> SimulatedTensor:
        return SimulatedTensor(tensors["inner"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _each(change: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to the leaves of nested lists, tuples and dicts."""
    if isinstance(tree, list | tuple):
        return type(tree)(_each(change, item) for item in tree)
    if isinstance(tree, dict):
        return {key: _each(change, item) for key, item in tree.items()}
    return change(tree)


class SimulatedGenerator(torch.Generator):
    """Generator of the simulated device, which draws the CPU's numbers; another device gets its own
    generator.

    torch cannot make a generator of the device, so a test replaces `torch.Generator` by this class.
    """

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:  # type: ignore[misc]
        if torch.device(device).type != NAME:
            return _Generator(device)
        generator = super().__new__(cls, "cpu")
        # torch passes another object for the same generator to an operation.
        _generators.add(generator._cdata)
        weakref.finalize(generator, _generators.discard, generator._cdata)
        return generator

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


def _unwrapped(tree: Any) -> Any:
    return _each(lambda leaf: leaf.inner if isinstance(leaf, SimulatedTensor) else leaf, tree)


def _wrapped(tree: Any, changed: dict[int, SimulatedTensor] | None = None) -> Any:
    """Return simulated tensors for CPU tensors; for one that an operation changed, the tensor that
    holds it."""

    def wrap(leaf: Any) -> Any:
        held = (changed or {}).get(id(leaf))
        return SimulatedTensor(leaf) if held is None else held

    return _each(lambda leaf: wrap(leaf) if type(leaf) is Tensor else leaf, tree)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on CPU tensors, after checks of the devices of its arguments."""
    name = func._schema.name.removeprefix("aten::")
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "copy_":
        if isinstance(args[0], SimulatedTensor) != isinstance(args[1], SimulatedTensor):
            _wait("a copy between the devices")
        func(*_unwrapped(args), **kwargs)
        return args[0]
    if name == "_to_copy" and target is not None and torch.device(target).type != NAME:
        _wait("a copy between the devices")
        return func(*_unwrapped(args), **kwargs)
    tensors: list[Tensor] = []
    _each(lambda leaf: tensors.append(leaf) if isinstance(leaf, Tensor) else None, (args, kwargs))
    _check_devices(func, name, args, kwargs, [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)])
    if name in WAITS:
        _wait(WAITS[name])
    if name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
        _wait("the shape depends on values")
    out = func(*_unwrapped(args), **_unwrapped(kwargs))
    held = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)] if func._schema.is_mutable else []
    assert all(tensor.shape == tensor.inner.shape for tensor in held), f"{name} resized a tensor"
    return _wrapped(out, {id(tensor.inner): tensor for tensor in held})


def _check_devices(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], others: list[Tensor]) -> None:
    """Raise for CPU tensors (`others`) and generators that CUDA would refuse."""
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in _generators:
        raise DeviceError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}': {name}")
    if not others:
        return
    if name in INDEXING and isinstance(args[0], SimulatedTensor):
        indices = [index for index in args[1] if index is not None]
        for index in indices:
            if not isinstance(index, SimulatedTensor):
                _wait("a copy between the devices")
        others = [tensor for tensor in others if not any(tensor is index for index in indices)]
        others = [tensor for tensor in others if tensor.dim()]
    elif name in SCALARS_ALLOWED or torch.Tag.pointwise in func.tags:
        others = [tensor for tensor in others if tensor.dim()]
    if others:
        raise DeviceError(
            f"Expected all tensors to be on the same device, but {name} got one of shape {tuple(others[0].shape)} on the CPU"
        )


def _wait(reason: str) -> None:
    for waits in _waits:
        waits[reason, _caller()] += 1


def _caller() -> str:
    """Return the innermost line of the package that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/src/unmask/" in path:
            return f"{path.rpartition('/src/unmask/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the package"


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation that has no tensor argument of the device, such as `empty`."""
    return _wrapped(func(*_unwrapped(args), **{**_unwrapped(kwargs), "device": torch.device("cpu")}))


def _guard() -> Any:
    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    return Guard()


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy the data of `torch.tensor(data, device=...)`, which torch does not pass to the class."""
    _wait("a copy between the devices")
    _unwrapped(target).copy_(_unwrapped(source))
    return target


_setup_privateuseone_for_python_backend(NAME, _Module(), _Hook(), _guard())
_fallbacks, _kernels = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_fallbacks.fallback(_fallback, "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
for _factory in FACTORIES:
    _kernels.impl(_factory, partial(_fallback, getattr(torch.ops.aten, _factory.partition(".")[0])), "PrivateUse1")
DEVICE = torch.device(NAME, 0)


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """Count the times that the host waits for the device within a block."""
    waits = Waits()
    _waits.append(waits)
    try:
        yield waits
    finally:
        _waits.remove(waits)
