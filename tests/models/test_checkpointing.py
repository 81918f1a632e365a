"""Tests of gradient checkpointing: equal gradients with fewer stored activations, in evaluation
mode too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.adapters import EVERYWHERE, IDS, LORA, build, train_by_hand
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.models.native import NATIVE_CLASSES
from unmask.trainer.peak import peak_bytes


def gradients(denoiser: Denoiser) -> dict[str, Tensor]:
    denoiser.zero_grad()
    logits = denoiser(IDS, None, EVERYWHERE)
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return {key: p.grad.clone() for key, p in denoiser.named_parameters() if p.grad is not None}


class Kept:
    """Return the number of bytes that autograd stores, without weights."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
        self.bytes: dict[int, int] = {}

    def __enter__(self) -> Kept:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.bytes[storage.data_ptr()] = storage.nbytes()
        return tensor


@pytest.mark.parametrize("with_adapters", [False, True], ids=["all weights", "adapters"])
@pytest.mark.parametrize("name", NATIVE_CLASSES)
@pytest.mark.slow
def test_gradients_are_equal_and_fewer_activations_are_stored(name: str, with_adapters: bool) -> None:
    found = []
    for checkpointed in (False, True):
        denoiser = build(name)
        if with_adapters:
            train_by_hand(Adapters(denoiser, LORA))
        if checkpointed:
            denoiser.checkpoint_gradients()
        denoiser.eval()
        with Kept(denoiser) as kept:
            logits = denoiser(IDS, None, EVERYWHERE)
        del logits
        found.append((gradients(denoiser), sum(kept.bytes.values())))
    (plain, much), (again, little) = found
    assert plain.keys() == again.keys()
    assert max(g.abs().max() for g in plain.values()) > 0.1
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-6, atol=1e-6)
    assert little < 0.7 * much
    # Negative control: a change of one weight by a hundredth is detected.
    with torch.no_grad():
        matrices = [p for p in denoiser.parameters() if p.requires_grad and p.dim() == 2]
        matrices[len(matrices) // 2].view(-1)[0] += 0.01
    changed = gradients(denoiser)
    assert any((changed[key] - value).abs().max() > 1e-5 for key, value in plain.items())


def test_peak_memory_falls_with_the_number_of_recomputed_blocks() -> None:
    def peak(denoiser: Denoiser) -> int:
        ids = IDS.repeat(20, 1)

        def work() -> None:
            denoiser(ids, None, EVERYWHERE.repeat(20, 1)).sum().backward()
            denoiser.zero_grad()

        work()
        return peak_bytes(work, denoiser)

    plain, checkpointed = build(), build()
    checkpointed.checkpoint_gradients()
    assert peak(checkpointed) < 0.75 * peak(plain)


def test_no_block_is_in_training_mode_without_a_graph() -> None:
    denoiser = build("BertForMaskedLM")
    denoiser.checkpoint_gradients()
    denoiser.eval()
    with torch.no_grad():
        denoiser(IDS, None, EVERYWHERE)
    assert not any(module.training for module in denoiser.modules())
    denoiser(IDS, None, EVERYWHERE)
    dropouts = [module for module in denoiser.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert not any(module.training for module in dropouts)
