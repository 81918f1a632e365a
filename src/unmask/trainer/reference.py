"""The reference policy, in one of three forms: a frozen copy of the policy, the policy without its
adapters, or the policy with a second adapter."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from unmask.models import Denoiser
from unmask.models.adapters import REFERENCE, Adapters
from unmask.trainer.distributed.masters import master_of


class Reference(ABC):
    """The policy relative to which a loss measures the KL penalty."""

    @abstractmethod
    def acting(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context that yields a module with the predictions of the reference policy.

        Args:
            model: the policy, as accelerate prepared it.
        """

    @abstractmethod
    def move(self, policy: Denoiser, alpha: float) -> None:
        """Set the weights of the reference to α policy + (1 - α) reference."""

    def modules(self) -> list[nn.Module]:
        """Return the modules of the reference that are not part of the policy."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the reference that the policy's state does not hold, by name."""
        return {}


class _Follower:
    """Weights of a reference that move towards those of the policy.

    A move by a small α is often smaller than half the spacing of bfloat16 numbers, and would be
    rounded away. With `is_fine`, bfloat16 weights therefore have float32 copies, which move, and are
    the rounded copies.

    Args:
        weights: weights of the reference by name.
        is_fine: True to keep float32 copies of bfloat16 weights.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], *, is_fine: bool) -> None:
        self.weights = weights
        self.copies = {
            name: weight.detach().float()
            for name, weight in weights.items()
            if is_fine and weight.dtype == torch.bfloat16
        }

    @torch.no_grad()
    def move(self, policy: Iterable[nn.Parameter], alpha: float) -> None:
        """Move the weights by the share `alpha` towards the policy's: towards their float32 master
        copies, where this rank holds these."""
        for (name, own), other in zip(self.weights.items(), policy, strict=True):
            moved = self.copies.get(name, own)
            moved.lerp_(master_of(other).detach().to(moved), alpha)
            if moved is not own:
                own.copy_(moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and their float32 copies by name."""
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return weights | {f"{name}.float32": copy for name, copy in self.copies.items()}


class FrozenCopy(Reference):
    """A frozen copy of the policy at the start of the run.

    Args:
        denoiser: the copy.
        device: device of its forward passes.
        offload: True to keep the copy in the CPU's memory between passes.
        is_fine: True to keep float32 copies of bfloat16 weights for moves by a small α.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        device: torch.device | str = "cpu",
        *,
        offload: bool = False,
        is_fine: bool = False,
    ) -> None:
        self.denoiser, self.device, self.offload = denoiser.requires_grad_(False), device, offload
        denoiser.eval().to("cpu" if offload else device)
        self._follower = _Follower(dict(denoiser.named_parameters()), is_fine=is_fine)

    @classmethod
    def of(
        cls, denoiser: Denoiser, device: torch.device | str, *, offload: bool = False, is_fine: bool = False
    ) -> FrozenCopy:
        """Return a frozen copy of `denoiser`."""
        return cls(copy.deepcopy(denoiser), device, offload=offload, is_fine=is_fine)

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Predict as the reference; see `Reference.acting`."""
        if not self.offload:
            yield self.denoiser
            return
        tensors = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        on_cpu = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.device, copy=True)
            yield self.denoiser
        finally:
            # The weights have not changed, so nothing is copied back.
            for tensor, data in zip(tensors, on_cpu, strict=True):
                tensor.data = data

    def move(self, policy: Denoiser, alpha: float) -> None:
        """Move the copy towards the policy; see `Reference.move`."""
        self._follower.move(policy.parameters(), alpha)

    def modules(self) -> list[nn.Module]:
        """Return the copy."""
        return [self.denoiser]

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the reference by name."""
        return self._follower.tensors()


class WithoutAdapters(Reference):
    """The policy with its adapters disabled. This is the model that the run began with, so it takes
    no further memory.

    Args:
        adapters: adapters of the policy.
    """

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Predict as the reference; see `Reference.acting`."""
        with self.adapters.off():
            yield model

    def move(self, policy: Denoiser, alpha: float) -> None:
        """Raise an error: this reference is the frozen model under the adapters. A `SecondAdapter`
        is a reference that follows the policy."""
        raise NotImplementedError("the model without adapters cannot move; use SecondAdapter")


class SecondAdapter(Reference):
    """The policy with a second, frozen adapter, which starts as a copy of the trained one.

    Args:
        adapters: adapters of the policy.
        is_fine: True to keep float32 copies of bfloat16 weights for moves by a small α.
    """

    def __init__(self, adapters: Adapters, *, is_fine: bool = False) -> None:
        self.adapters = adapters
        adapters.add_reference()
        self._follower = _Follower(dict(adapters.parameters(REFERENCE)), is_fine=is_fine)

    @contextmanager
    def acting(self, model: nn.Module) -> Iterator[nn.Module]:
        """Predict as the reference; see `Reference.acting`."""
        with self.adapters.as_reference():
            yield model

    def move(self, policy: Denoiser, alpha: float) -> None:
        """Mix each matrix of the two adapters. Only at α = 1 does this equal a mixture of the
        adapters' weight changes, which are products of two matrices."""
        self._follower.move((weight for _, weight in self.adapters.parameters()), alpha)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the reference by name."""
        return self._follower.tensors()
