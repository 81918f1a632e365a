"""Tests of copies of a denoiser that hold no weights."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.adapters import EVERYWHERE, IDS, build
from unmask.models import Denoiser
from unmask.models.native import NATIVE_CLASSES
from unmask.models.shell import filled, without_weights


def tensors_of(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    named = [*denoiser.named_parameters(remove_duplicate=False), *denoiser.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def is_empty(shell: Denoiser) -> bool:
    return all(tensor.is_meta for tensor in tensors_of(shell).values())


@pytest.mark.parametrize("name", NATIVE_CLASSES)
@torch.no_grad()
def test_a_copy_computes_what_the_model_computes_while_it_has_its_weights(name: str) -> None:
    denoiser = build(name)
    shell = without_weights(denoiser)
    assert is_empty(shell)
    with filled(shell, tensors_of(denoiser)) as whole:
        assert torch.equal(whole(IDS, None, EVERYWHERE), denoiser(IDS, None, EVERYWHERE))
        assert {p.data_ptr() for p in whole.parameters()} == {p.data_ptr() for p in denoiser.parameters()}
        assert not any(parameter.requires_grad for parameter in whole.parameters())
    assert is_empty(shell)
    assert not any(tensor.is_meta for tensor in tensors_of(denoiser).values())


@torch.no_grad()
def test_a_copy_uses_the_weights_of_its_block_and_not_those_of_the_model() -> None:
    denoiser = build()
    shell = without_weights(denoiser)
    halved = {name: tensor / 2 for name, tensor in tensors_of(denoiser).items()}
    before = denoiser(IDS, None, EVERYWHERE)
    with filled(shell, halved) as whole:
        assert not torch.allclose(whole(IDS, None, EVERYWHERE), before, atol=0.1)
    assert torch.equal(denoiser(IDS, None, EVERYWHERE), before)


def test_a_missing_weight_is_an_error_that_leaves_the_copy_empty() -> None:
    denoiser = build()
    shell, tensors = without_weights(denoiser), tensors_of(denoiser)
    last = next(reversed(tensors))
    del tensors[last]
    with pytest.raises(KeyError, match=last.replace(".", r"\.")), filled(shell, tensors):
        pass
    assert is_empty(shell)
