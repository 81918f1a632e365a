"""Tests of the denoiser: logits at requested positions, shifted heads, padding, and the check for
causal models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import pad

from tests.helpers.messages import raises
from unmask.core.errors import ModelError
from unmask.models import Denoiser, check_bidirectional

IDS = torch.randint(3, 9, (4, 10), generator=torch.Generator().manual_seed(0))
ALL = torch.arange(10).expand(4, -1)


@torch.no_grad()
def test_logits_at_requested_positions_equal_those_of_the_whole_sequence(lively):
    wanted = torch.tensor([[9, 0], [3, 3], [1, 8], [5, 4]])
    full = lively.backbone(input_ids=IDS).logits
    assert full.shape == (4, 10, lively.vocab_size)
    expected = torch.stack([full[i, wanted[i]] for i in range(4)])
    torch.testing.assert_close(lively(IDS, None, wanted), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(lively(IDS, None, ALL), full, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_shifted_head_at_one_position_predicts_the_next(lively):
    backbone = copy.deepcopy(lively.backbone)
    backbone.config.logit_shift = True
    shifted = Denoiser(backbone, lively.mask_id, lively.eos_id, lively.pad_id).eval()
    assert (lively.logit_shift, shifted.logit_shift) == (False, True)
    plain = lively(IDS, None, ALL)
    torch.testing.assert_close(shifted(IDS, None, ALL[:, 1:]), plain[:, :-1], rtol=0, atol=0)
    # No head predicts position 0, so it gets the output of its own column.
    torch.testing.assert_close(shifted(IDS, None, ALL[:, :1]), plain[:, :1], rtol=0, atol=0)
    check_bidirectional(shifted)


@pytest.mark.parametrize("logit_shift", [False, True])
@torch.no_grad()
def test_a_left_padded_row_equals_the_unpadded_row(lively, logit_shift):
    backbone = copy.deepcopy(lively.backbone)
    backbone.config.logit_shift = logit_shift
    model = Denoiser(backbone, lively.mask_id, lively.eos_id, lively.pad_id).eval()
    for width in (1, 3, 20):
        ids, mask = pad(IDS, (width, 0), value=7), pad(torch.ones_like(IDS, dtype=torch.bool), (width, 0))
        padded = model(ids, mask, ALL + width)
        torch.testing.assert_close(padded, model(IDS, None, ALL), rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_position_ids_a_padded_row_would_differ(lively):
    ids, mask = pad(IDS, (3, 0), value=7), pad(torch.ones_like(IDS), (3, 0))
    hidden = lively.backbone.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    logits = lively.backbone.lm_head(hidden)[:, 3:]
    assert (logits - lively(IDS, None, ALL)).abs().max() > 0.3


@torch.no_grad()
def test_a_mask_without_padding_changes_nothing(lively):
    mask = torch.ones_like(IDS, dtype=torch.bool)
    torch.testing.assert_close(lively(IDS, mask, ALL), lively(IDS, None, ALL), rtol=0, atol=1e-5)


def test_a_causal_model_is_refused_and_a_bidirectional_one_is_not(lively):
    check_bidirectional(lively)
    backbone = copy.deepcopy(lively.backbone)
    backbone.config.is_causal = True
    with raises(ModelError, "GPT2LMHeadModel is causal", "set is_causal to false in its config.json"):
        check_bidirectional(Denoiser(backbone, lively.mask_id, lively.eos_id, lively.pad_id).eval())
