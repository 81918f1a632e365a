"""Mixtures of experts in a denoiser: their routers and their stacked weights.

A router is a matrix that chooses a few experts for each token. It stays frozen by default, because
an update of reinforcement learning that moves a token to another expert changes its prediction by a
jump, and no gradient announces the jump.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from unmask.models.denoiser import Denoiser
from unmask.models.native import NATIVE_CLASSES


def routers_of(denoiser: Denoiser) -> Iterator[tuple[str, nn.Module]]:
    """Yield the routers of a denoiser with their names within the backbone, layer by layer."""
    name = NATIVE_CLASSES[type(denoiser.backbone).__name__].router
    for path, module in denoiser.backbone.named_modules():
        # In a dense layer of a mixture, the name may belong to no module.
        if name is not None and path.endswith(f".{name}"):
            yield path, module


def experts_of(denoiser: Denoiser) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the stacked experts of a denoiser, [E, m, n] each, with their names within the
    backbone."""
    name = NATIVE_CLASSES[type(denoiser.backbone).__name__].experts
    for path, parameter in denoiser.backbone.named_parameters():
        if name is not None and path.rpartition(".")[0].replace(".base_layer", "").endswith(f".{name}"):
            yield path, parameter


def freeze_routers(denoiser: Denoiser) -> None:
    """Exclude the routers of a denoiser from training."""
    for _, router in routers_of(denoiser):
        router.requires_grad_(False)


def is_mixture(denoiser: Denoiser) -> bool:
    """Return True if a layer of the denoiser is a mixture of experts."""
    return next(routers_of(denoiser), None) is not None
