"""A denoiser whose weights are stored elsewhere: copies of its modules that hold no tensors, and a
block in which such a copy has weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from unmask.models.denoiser import Denoiser


def without_weights(denoiser: Denoiser) -> Denoiser:
    """Return a copy of a denoiser whose parameters and buffers are on the meta device, so that the
    copy takes no memory.

    The copy must be made before a wrapper for distributed training changes the denoiser.
    """
    memo: dict[int, Tensor] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in denoiser.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in denoiser.buffers()}
    return copy.deepcopy(denoiser, memo).eval()


@contextmanager
def filled(shell: Denoiser, tensors: Mapping[str, Tensor]) -> Iterator[Denoiser]:
    """Open a block in which a denoiser without weights has the given tensors. It does not copy
    them.

    Args:
        shell: a result of `without_weights`.
        tensors: all parameters and buffers by name, each under all of its names.

    Raises:
        KeyError: a tensor is missing.
    """
    try:
        for prefix, module in shell.named_modules():
            start = f"{prefix}." if prefix else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(tensors[start + name], requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = tensors[start + name]
        yield shell
    finally:
        shell.to("meta")
