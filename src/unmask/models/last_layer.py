"""The last layer of a trunk, evaluated only at the columns that the head reads.

The other columns of the last layer serve as keys and values for these columns and are not read
themselves. The attention of the layer therefore runs on all columns, but its output projection, the
residual connections, the MLP and the final norm run on the columns that are read. The results are
equal, and a trunk of two layers takes about three quarters of the time.

The layer's own code runs unchanged. Forward hooks, which exist during one forward pass, replace the
hidden states at four places. Adapters, hooks of FSDP and ZeRO, caches and masks see what they
always see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of the modules at which hidden states of the last layer are replaced."""

    layers: str
    """List of layers in the trunk."""
    entry: str
    """Module of a layer whose first argument becomes the queries, keys and values: the norm before
    the attention, or the attention itself if there is no such norm."""
    projection: str
    """Output projection of the attention in a layer."""
    final: str | None
    """Module of the trunk whose output is the trunk's; None for the last layer itself."""


@dataclass(slots=True)
class Reading:
    """Columns of one forward pass that are read, and their hidden states."""

    columns: Tensor
    """[B, n] int64 columns; they may repeat."""
    whole: Tensor | None = None
    """[B, S, D]: input of the last layer at all columns, once it is known."""
    hidden: Tensor | None = None
    """[B, n, D]: output of the trunk at the columns, once it is known."""


class LastLayer:
    """The last layer of a trunk, whose output is computed at the columns of a `Reading`.

    Args:
        trunk: transformers model without its head.
        names: names of the modules of its class.
    """

    def __init__(self, trunk: nn.Module, names: LayerNames) -> None:
        self.trunk, self.names = trunk, names
        self._reading: Reading | None = None

    @contextmanager
    def at(self, columns: Tensor) -> Iterator[Reading]:
        """Compute the output of the trunk only at `columns` [B, n] during one forward pass, which
        stores it in the reading.

        The output that the trunk itself returns has the usual shape, but must not be used. A
        compiled trunk or layer runs at all columns, because compiled code does not see new hooks,
        and stores nothing.
        """
        reading = Reading(columns)
        layer = self._layer()
        if any(getattr(module, "_compiled_call_impl", None) for module in (self.trunk, layer)):
            yield reading
            return
        final = layer if self.names.final is None else self.trunk.get_submodule(self.names.final)

        def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            reading.whole = arguments[0]
            return (columns_of(arguments[0], columns), *arguments[1:])

        def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            assert reading.whole is not None
            reading.hidden = output
            # GPT-2 restores the shape of its input, so the output must have all columns.
            return output[:, :1].expand(-1, reading.whole.shape[1], -1)

        # The pre-hook of the layer comes after those of FSDP and ZeRO: their bookkeeping of the
        # backward pass then covers both uses of the input.
        hooks = [layer.register_forward_pre_hook(enter), final.register_forward_hook(leave)]
        self._reading = reading
        try:
            with self._inside(reading):
                yield reading
        finally:
            self._reading = None
            for hook in hooks:
                hook.remove()

    def recomputation(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of a checkpointed layer's forward pass and of its recomputation, for
        `torch.utils.checkpoint`.

        The recomputation happens in the backward pass, after the hooks of the forward pass are
        gone.
        """
        reading = self._reading
        if reading is None or reading.whole is None or reading.hidden is not None:
            return nullcontext(), nullcontext()
        return nullcontext(), _Again(lambda: self._inside(reading))

    def _layer(self) -> nn.Module:
        layers = self.trunk.get_submodule(self.names.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers[-1]

    @contextmanager
    def _inside(self, reading: Reading) -> Iterator[None]:
        """Let the attention of the layer see all columns, and the rest those that are read."""

        def widen(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (reading.whole, *arguments[1:])

        def narrow(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (columns_of(arguments[0], reading.columns), *arguments[1:])

        layer = self._layer()
        with ExitStack() as stack:
            for name, hook in ((self.names.entry, widen), (self.names.projection, narrow)):
                # First, so that the hooks of ZeRO see the tensors that the module gets.
                handle = layer.get_submodule(name).register_forward_pre_hook(hook, prepend=True)
                stack.callback(handle.remove)
            yield


class _Again(AbstractContextManager[None]):
    """A context that can be entered more than once: a graph that is kept is recomputed for each
    backward pass.

    Args:
        make: function that makes a context for one use.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._current = self._make()
        self._current.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._current.__exit__(*error)


def columns_of(hidden: Tensor, columns: Tensor) -> Tensor:
    """Return the hidden states [B, n, D] of [B, S, D] at `columns` [B, n]."""
    return hidden[torch.arange(len(hidden), device=hidden.device).unsqueeze(-1), columns]
