"""Tests of the weights of a served model: a run may add a position head to the model that the server started with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.denoisers import add_lively_head
from unmask.core.config import LoraConfig
from unmask.core.errors import ModelError
from unmask.models import Denoiser, load_model, save_model
from unmask.models.adapters import Adapters
from unmask.models.position_head import HEAD_FILE
from unmask.sampling.remote.weights import ServedWeights


@torch.no_grad()
def scores(denoiser: Denoiser) -> Tensor:
    ids = torch.randint(0, 9, (3, 12), generator=torch.Generator().manual_seed(0))
    return denoiser(ids, None, torch.arange(12).expand(3, -1), scores=True)[1]


def test_a_model_with_a_head_gives_the_server_its_head(tiny_model: Path, tmp_path: Path) -> None:
    trained = load_model(tiny_model)
    add_lively_head(trained.denoiser)
    save_model(trained.denoiser, trained.tokenizer, tmp_path / "with")
    served = ServedWeights(load_model(tiny_model))
    assert served.policy.denoiser.position_head is None
    served.replace(tmp_path / "with")
    assert torch.equal(scores(served.policy.denoiser), scores(trained.denoiser))
    served.replace(tiny_model)
    assert served.policy.denoiser.position_head is None


def test_an_adapter_with_a_head_gives_the_server_its_head(tiny_model: Path, tmp_path: Path) -> None:
    trained = load_model(tiny_model).denoiser
    add_lively_head(trained)
    adapters = Adapters(trained, LoraConfig(r=4, alpha=8.0))
    assert trained.position_head is not None
    trained.position_head.requires_grad_(True)
    served = ServedWeights(load_model(tiny_model))
    for version in ("first", "second"):
        with torch.no_grad():
            for parameter in [parameter for _, parameter in adapters.parameters()] + [
                trained.position_head.last.weight
            ]:
                parameter.normal_(generator=torch.Generator().manual_seed(len(version)))
        adapters.save(tmp_path / version)
        served.replace(tmp_path / version)
        torch.testing.assert_close(scores(served.policy.denoiser), scores(trained), rtol=1e-4, atol=1e-4)
    (tmp_path / "second" / HEAD_FILE).unlink()
    with pytest.raises(ModelError, match="other settings"):
        served.replace(tmp_path / "second")


def test_an_adapter_that_cannot_be_used_leaves_no_head(tiny_model: Path, tmp_path: Path) -> None:
    trained = load_model(tiny_model).denoiser
    add_lively_head(trained)
    adapters = Adapters(trained, LoraConfig(r=4, alpha=8.0))
    trained.position_head.requires_grad_(True)
    adapters.save(tmp_path)
    (tmp_path / HEAD_FILE).write_bytes(b"damaged")
    served = ServedWeights(load_model(tiny_model))
    with pytest.raises(ModelError, match="cannot be read"):
        served.replace(tmp_path)
    assert served.policy.denoiser.position_head is None
