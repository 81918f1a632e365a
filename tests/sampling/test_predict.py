"""Tests of the logits of a state: MASK is excluded, without a second tensor of logits."""

from __future__ import annotations

import torch

from tests.helpers.denoisers import Spy
from unmask.sampling.predict import predict


class Kept(Spy):
    """Denoiser that keeps the logits that it returned last."""

    def forward(self, ids, attention_mask, positions):
        self.logits = super().forward(ids, attention_mask, positions)
        return self.logits


def inputs(denoiser, batch=3, prompt=5, length=4):
    ids = torch.randint(3, 8, (batch, prompt), generator=torch.Generator().manual_seed(0))
    state = torch.full((batch, length), denoiser.mask_id)
    return ids, torch.ones_like(ids, dtype=torch.bool), state, torch.arange(length).expand(batch, -1)


def test_mask_is_excluded_in_the_tensor_that_the_denoiser_returned(lively):
    denoiser, arguments = Kept(lively), inputs(lively)
    with torch.no_grad():
        logits = predict(denoiser, *arguments, lively.mask_id).logits
        expected = lively(torch.cat([arguments[0], arguments[2]], 1), None, arguments[3] + 5)
    assert logits.data_ptr() == denoiser.logits.data_ptr()
    assert (logits[..., lively.mask_id] == -torch.inf).all()
    others = torch.arange(lively.vocab_size) != lively.mask_id
    assert torch.equal(logits[..., others], expected[..., others])


def test_the_gradient_passes_the_exclusion_of_mask(lively):
    logits = predict(lively, *inputs(lively), lively.mask_id).logits
    logits.softmax(-1).square().sum().backward()
    gradient = lively.backbone.get_output_embeddings().weight.grad.clone()
    lively.zero_grad()
    ids, _, state, positions = inputs(lively)
    bare = lively(torch.cat([ids, state], 1), None, positions + 5)
    without = torch.arange(lively.vocab_size) != lively.mask_id
    bare[..., without].softmax(-1).square().sum().backward()
    torch.testing.assert_close(gradient, lively.backbone.get_output_embeddings().weight.grad)
    assert gradient.norm() > 0
