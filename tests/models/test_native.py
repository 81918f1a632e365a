"""Tests of every native class at tiny size: attention, head, padding, and saving."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.nn.functional import pad

from tests.helpers.native_configs import CONFIGS, EOS, MASK, PAD, V
from unmask.core.errors import ModelError
from unmask.models import Denoiser, char_tokenizer, check_bidirectional, load_model, save_model
from unmask.models.native import NATIVE_CLASSES

IS_CAUSAL_CLASS = [name for name, family in NATIVE_CLASSES.items() if family.auto_class == "AutoModelForCausalLM"]


def build(name, causal=False):
    config = CONFIGS[name]()
    if name in IS_CAUSAL_CLASS:
        config.is_causal = causal
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = getattr(transformers, name)(config)
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.dim() > 1:
                    # A newly initialised model has almost uniform attention.
                    parameter.copy_(0.4 * torch.randn_like(parameter))
    return Denoiser(backbone.eval(), MASK, EOS, PAD)


IDS = torch.randint(3, V, (3, 9), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.tensor([[8, 0, 5], [3, 4, 3], [2, 7, 1]])


def at(logits, positions):
    return logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def test_this_file_tests_every_native_class():
    assert CONFIGS.keys() == NATIVE_CLASSES.keys()


@pytest.mark.parametrize("name", NATIVE_CLASSES)
@torch.no_grad()
def test_logits_at_positions_are_those_of_the_classes_own_forward(name):
    denoiser = build(name)
    full = denoiser.backbone(input_ids=IDS).logits
    assert full.std() > 0.3
    torch.testing.assert_close(denoiser(IDS, None, POSITIONS), at(full, POSITIONS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NATIVE_CLASSES)
@torch.no_grad()
def test_every_position_attends_to_every_other(name):
    denoiser = build(name)
    check_bidirectional(denoiser)
    everywhere = torch.arange(9).expand(1, -1)
    base = denoiser(IDS[:1], None, everywhere)
    for changed in (0, 4, 8):
        ids = IDS[:1].clone()
        ids[0, changed] = (ids[0, changed] + 1) % V
        moved = (denoiser(ids, None, everywhere) - base).abs().amax(-1)
        assert (moved > 1e-5).all()


@pytest.mark.parametrize("name", IS_CAUSAL_CLASS)
def test_a_causal_model_of_a_class_is_refused(name):
    with pytest.raises(ModelError, match=f"{name} is causal.*set is_causal to false"):
        check_bidirectional(build(name, causal=True))


@pytest.mark.parametrize("name", NATIVE_CLASSES)
@torch.no_grad()
def test_left_padding_does_not_change_logits(name):
    denoiser = build(name)
    # Two of three rows are padded by different widths, with a token that would be noticed.
    widths, longest = [4, 0, 2], 9
    ids = torch.stack([pad(row[w:], (w, 0), value=7) for row, w in zip(IDS, widths, strict=True)])
    mask = torch.arange(longest) >= torch.tensor(widths).unsqueeze(-1)
    everywhere = torch.arange(longest).expand(3, -1)
    padded = denoiser(ids, mask, everywhere)
    for i, w in enumerate(widths):
        alone = denoiser(IDS[i : i + 1, w:], None, everywhere[:1, : longest - w])[0]
        torch.testing.assert_close(padded[i, w:], alone, rtol=0, atol=5e-6)
    blind = denoiser(ids, None, everywhere)
    assert (blind[0, 4:] - padded[0, 4:]).abs().max() > 0.05, "the check can fail"


@pytest.mark.parametrize("name", NATIVE_CLASSES)
@torch.no_grad()
@pytest.mark.slow
def test_a_saved_model_loads_with_the_same_logits(name, tmp_path):
    denoiser, tokenizer = build(name), char_tokenizer("01234=")
    save_model(denoiser, tokenizer, tmp_path)
    again, _ = load_model(tmp_path)
    assert type(again.backbone).__name__ == name
    assert torch.equal(again(IDS, None, POSITIONS), denoiser(IDS, None, POSITIONS))
    # transformers alone gives the same logits.
    native = getattr(transformers, NATIVE_CLASSES[name].auto_class).from_pretrained(tmp_path)
    torch.testing.assert_close(
        at(native.eval()(input_ids=IDS).logits, POSITIONS), denoiser(IDS, None, POSITIONS), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_gradients_reach_every_parameter(name):
    denoiser = build(name)
    denoiser(IDS, None, POSITIONS).square().sum().backward()
    # Parameters without gradient, such as BERT's pooler, would not be updated, and would break DDP.
    without = [n for n, p in denoiser.named_parameters() if p.grad is None]
    assert without == []


def test_rotating_in_bfloat16_makes_the_error_of_attention_scores_half_as_large_again():
    # LLaDA's own code rotates bfloat16 queries and keys in float32; transformers in bfloat16.
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(8, 4, 456, 128, generator=generator).mul(4**0.5).bfloat16() for _ in range(2))
    angles = torch.outer(torch.arange(456.0), 500_000.0 ** -(torch.arange(0, 128, 2) / 128)).repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()

    def scores(cast, rotate_in):
        q, k = apply_rotary_pos_emb(query.to(rotate_in), key.to(rotate_in), cos.to(rotate_in), sin.to(rotate_in))
        return (q.to(cast).double() @ k.to(cast).double().mT) / 128**0.5

    exact = scores(torch.float64, torch.float64)
    assert 3.9 < exact.std() < 4.1
    native, released = ((scores(torch.bfloat16, dtype) - exact).std() for dtype in (torch.bfloat16, torch.float32))
    assert released == pytest.approx(0.0094, rel=0.1)
    assert native / released == pytest.approx(1.5, rel=0.1)
