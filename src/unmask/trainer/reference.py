"""The reference policy: a frozen copy, or the policy itself without its adapters, or with a second adapter that follows them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from unmask.models import Denoiser
from unmask.models.adapters import REFERENCE, Adapters


class Reference(ABC):
    """What the KL of a loss is measured from."""

    @abstractmethod
    def acting(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """A context that gives the module whose answers are the reference's; `model` is the prepared policy."""

    @abstractmethod
    def move(self, policy: Denoiser, alpha: float) -> None:
        """Reference ← α policy + (1 - α) reference."""

    def modules(self) -> list[nn.Module]:
        """Modules of its own, beside the policy's."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """Weights of its own that the policy's state does not hold."""
        return {}


class FrozenCopy(Reference):
    """A copy of the policy as it was.

    Args:
        denoiser: the copy.
        device: where its passes run.
        offload: keep it in the CPU's memory between passes.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device | str = "cpu", *, offload: bool = False) -> None:
        self.denoiser, self.device, self.offload = denoiser.requires_grad_(False), device, offload
        denoiser.eval().to("cpu" if offload else device)

    @classmethod
    def of(cls, denoiser: Denoiser, device: torch.device | str, *, offload: bool = False) -> FrozenCopy:
        """A copy of `denoiser` as it is now."""
        return cls(copy.deepcopy(denoiser), device, offload=offload)

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """See `Reference`."""
        if not self.offload:
            yield self.denoiser
            return
        kept = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        home = [tensor.data for tensor in kept]
        try:
            for tensor in kept:
                tensor.data = tensor.data.to(self.device, copy=True)
            yield self.denoiser
        finally:
            # Nothing has changed, so nothing is copied back.
            for tensor, data in zip(kept, home, strict=True):
                tensor.data = data

    @torch.no_grad()
    def move(self, policy: Denoiser, alpha: float) -> None:
        """See `Reference`."""
        for its, policys in zip(self.denoiser.parameters(), policy.parameters(), strict=True):
            its.lerp_(policys.detach().to(its), alpha)

    def modules(self) -> list[nn.Module]:
        """See `Reference`."""
        return [self.denoiser]

    def tensors(self) -> dict[str, Tensor]:
        """See `Reference`."""
        return {name: parameter.detach() for name, parameter in self.denoiser.named_parameters()}


class WithoutAdapters(Reference):
    """The policy with its adapters off: the model that the run began with, at no memory."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """See `Reference`."""
        with self.adapters.off():
            yield model

    def move(self, policy: Denoiser, alpha: float) -> None:
        """It cannot: see `SecondAdapter`."""
        raise NotImplementedError("the model without adapters stays what it is")


class SecondAdapter(Reference):
    """The policy with a frozen adapter of the reference's own, which starts as the policy's and follows it."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        adapters.add_reference()

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """See `Reference`."""
        with self.adapters.as_reference():
            yield model

    def move(self, policy: Denoiser, alpha: float) -> None:
        """See `Reference`; of each adapter matrix, whose product is then a mixture at α = 1 only."""
        self.adapters.move_reference(alpha)

    def tensors(self) -> dict[str, Tensor]:
        """See `Reference`."""
        return {name: parameter.detach() for name, parameter in self.adapters.parameters(REFERENCE)}
