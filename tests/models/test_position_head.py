"""Tests of the position head: its scores, its file, and the models that carry it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.denoisers import add_lively_head
from tests.helpers.messages import raises
from unmask.core.errors import ModelError
from unmask.models import Denoiser, char_tokenizer, load_model, save_model
from unmask.models.position_head import HEAD_FILE, PositionHead, add_position_head, set_position_head

ALPHABET = "01234="


@pytest.fixture
def scorer(lively: Denoiser) -> Denoiser:
    """The lively denoiser with a position head."""
    add_lively_head(lively)
    return lively


@torch.no_grad()
def predicted(denoiser: Denoiser, columns: tuple[int, ...] = (2, 5, 11), **options: object) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 9, (3, 12), generator=torch.Generator().manual_seed(0))
    output: tuple[Tensor, Tensor] = denoiser(ids, None, torch.tensor(columns).expand(3, -1), scores=True, **options)
    return output


def test_the_scores_are_those_of_the_equation_at_the_hidden_states(scorer: Denoiser) -> None:
    ids = torch.randint(0, 9, (3, 12), generator=torch.Generator().manual_seed(0))
    head = scorer.position_head
    assert head is not None
    with torch.no_grad():
        hidden = scorer.backbone.base_model(ids).last_hidden_state[:, [2, 5, 11]].double()
        centred = hidden - hidden.mean(-1, keepdim=True)
        norm = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        inner = norm @ head.hidden.weight.T.double() + head.hidden.bias
        expected = (inner * (1 + torch.erf(inner / 2**0.5)) / 2) @ head.last.weight[0].double()
    logits, scores = predicted(scorer)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)
    assert scores.std() > 0.1
    assert torch.equal(scorer(ids, None, torch.tensor([2, 5, 11]).expand(3, -1)), logits)


def test_a_new_head_scores_0_and_its_seed_decides_the_rest(lively: Denoiser) -> None:
    weights = []
    for seed in (0, 0, 1):
        head = add_position_head(lively.backbone, seed)
        assert (predicted(lively)[1] == 0).all()
        weights.append(head.hidden.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    set_position_head(lively.backbone, None)
    assert lively.position_head is None
    assert "position_head" not in lively.backbone.config.to_dict()


def test_scores_are_float32_in_a_bfloat16_model(scorer: Denoiser) -> None:
    _, exact = predicted(scorer)
    _, scores = predicted(scorer.to(torch.bfloat16))
    assert scores.dtype == torch.float32
    assert (scores - exact).abs().max() < 0.1 * exact.abs().max()
    assert not torch.equal(scores.bfloat16().float(), scores)


def test_a_folder_carries_the_head_in_a_file_of_its_own(scorer: Denoiser, tmp_path: Path) -> None:
    for name, weights in (("own", None), ("given", scorer.state_dict())):
        save_model(scorer, char_tokenizer(ALPHABET), tmp_path / name, weights)
        again, _ = load_model(tmp_path / name)
        for one, other in zip(predicted(again), predicted(scorer), strict=True):
            assert torch.equal(one, other)
        assert not any("position_head" in key for key in load_file(tmp_path / name / "model.safetensors"))
        _, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_model_without_a_head_has_no_file_of_it(lively: Denoiser, tmp_path: Path) -> None:
    save_model(lively, char_tokenizer(ALPHABET), tmp_path / "model")
    assert not (tmp_path / "model" / HEAD_FILE).exists()
    assert load_model(tmp_path / "model").denoiser.position_head is None


def test_a_damaged_head_is_refused(scorer: Denoiser, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(scorer, char_tokenizer(ALPHABET), folder)
    shutil.copy(folder / HEAD_FILE, tmp_path / HEAD_FILE)
    (folder / HEAD_FILE).unlink()
    with raises(ModelError, f"whose file {HEAD_FILE} cannot be read", "Copy the folder again"):
        load_model(folder)
    (folder / HEAD_FILE).write_bytes((tmp_path / HEAD_FILE).read_bytes()[:100])
    with raises(ModelError, f"whose file {HEAD_FILE} cannot be read", snapshot=False):
        load_model(folder)
    save_file(PositionHead(8).state_dict(), folder / HEAD_FILE)
    with raises(ModelError, "does not fit the model: hidden.bias is missing, unknown or of another shape"):
        load_model(folder)
