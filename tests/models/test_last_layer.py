"""Tests of the last layer at the columns that are read: the logits and gradients of the whole
layer, with less work."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.adapters import IDS, LORA, build, train_by_hand
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.models.last_layer import Reading
from unmask.models.native import NATIVE_CLASSES

READ = torch.tensor([[8, 4], [5, 5], [7, 3]])
"""The columns of three rows; one row reads a column twice, as a row does that pads its width."""
PADDED = torch.arange(9) >= torch.tensor([[3], [0], [1]])
UPSTREAM = torch.randn(3, 2, 1, generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, expected: Tensor, scale: float | None = None) -> None:
    """Check that two tensors differ by float32 rounding: by 2e-6 of `scale`, which is the largest
    number by default."""
    scale = float(expected.detach().abs().max()) if scale is None else scale
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * scale)


def assert_gradients_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0.1
    for name, gradient in expected.items():
        assert_close(found[name], gradient, scale)


class Whole:
    """Stands in for `LastLayer` and runs the last layer at all columns."""

    @contextmanager
    def at(self, columns: Tensor):
        yield Reading(columns)


def whole(denoiser: Denoiser) -> Denoiser:
    """Return a copy of a denoiser that runs the last layer at all columns."""
    reference = copy.deepcopy(denoiser)
    reference._last_layer = Whole()
    return reference


def values_and_gradients(denoiser: Denoiser, mask: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    denoiser.zero_grad()
    logits = denoiser(IDS, mask, READ)
    ((logits.softmax(-1) * torch.arange(logits.shape[-1])).sum(-1, keepdim=True) * UPSTREAM).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in denoiser.named_parameters() if p.grad is not None}


def assert_equal(denoiser: Denoiser, mask: Tensor | None = None) -> None:
    """Check the logits and every gradient against the whole layer."""
    (logits, gradients), (expected, references) = (values_and_gradients(d, mask) for d in (denoiser, whole(denoiser)))
    assert_close(logits, expected)
    assert_gradients_close(gradients, references)


def with_settings(name: str, **settings: object) -> Denoiser:
    """Return a small denoiser whose config has more settings."""
    backbone = build(name).backbone
    for key, value in settings.items():
        setattr(backbone.config, key, value)
    reference = build(name)
    return Denoiser(backbone, reference.mask_id, reference.eos_id, reference.pad_id).eval()


@pytest.mark.parametrize("mask", [None, PADDED], ids=["no padding", "padding"])
@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_logits_and_gradients_are_those_of_the_whole_layer(name: str, mask: Tensor | None) -> None:
    assert_equal(build(name), mask)


@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_the_mlp_and_the_projection_run_only_at_the_columns_that_are_read(name: str) -> None:
    denoiser = build(name)
    trunk = denoiser.backbone.base_model
    layers = trunk.get_submodule(NATIVE_CLASSES[name].last.layers)
    seen: dict[str, list[int]] = {}

    def widths(label: str):
        def see(_, arguments):
            # The router of a mixture may see the tokens of all rows in one dimension.
            is_flat = arguments[0].dim() == 2
            seen.setdefault(label, []).append(len(arguments[0]) // len(IDS) if is_flat else arguments[0].shape[1])

        return see

    for index in (0, 1):
        for path, module in layers[index].named_modules():
            # An expert's activation sees each token as often as it has experts.
            if (
                not list(module.children())
                and not isinstance(module, nn.Dropout | nn.Identity)
                and "experts.act" not in path
            ):
                module.register_forward_pre_hook(widths(f"{index} {path}"))
    for _ in range(2):
        denoiser(IDS, None, READ)
    last = {path: set(w) for path, w in seen.items() if path[0] == "1"}
    assert {w for path, widths in seen.items() if path[0] == "0" for w in widths} == {9}
    assert set().union(*last.values()) == {9, 2}
    projection = NATIVE_CLASSES[name].last.projection
    assert last[f"1 {projection}"] == {2}
    # The projection, the norm before the MLP, and the layers of the MLP or the router.
    assert sum(widths == {2} for widths in last.values()) >= (3 if NATIVE_CLASSES[name].router else 4)
    # A head that reads every column gets the layer as it is.
    seen.clear()
    denoiser(IDS, None, torch.arange(9).expand(3, -1))
    assert {w for widths in seen.values() for w in widths} == {9}


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Qwen2ForCausalLM"])
def test_a_shifted_head_reads_the_columns_before(name: str) -> None:
    denoiser = with_settings(name, logit_shift=True)
    assert denoiser.logit_shift
    for mask in (None, PADDED):
        assert_equal(denoiser, mask)


@pytest.mark.parametrize("mask", [None, PADDED], ids=["no padding", "padding"])
def test_block_causal_attention_is_that_of_the_whole_layer(mask: Tensor | None) -> None:
    denoiser = with_settings("Qwen3ForCausalLM", block_length=3)
    assert denoiser.block_length == 3
    assert_equal(denoiser, mask)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_implementation_of_attention_gives_the_same(implementation: str) -> None:
    denoiser = build("LlamaForCausalLM")
    denoiser.backbone.set_attn_implementation(implementation)
    assert_equal(denoiser, PADDED)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_adapters_and_recomputed_layers_get_the_same_gradients(name: str, checkpointed: bool) -> None:
    denoiser = build(name)
    train_by_hand(Adapters(denoiser, LORA))
    if checkpointed:
        reference = values_and_gradients(denoiser)
        denoiser.checkpoint_gradients()
        denoiser.eval()
        logits, gradients = values_and_gradients(denoiser)
        torch.testing.assert_close(logits, reference[0], rtol=0, atol=0)
        assert_gradients_close(gradients, reference[1])
    else:
        assert_equal(denoiser.eval())


def test_a_recomputed_layer_can_be_differentiated_twice_and_beside_another_pass() -> None:
    denoiser = build("LlamaForCausalLM")
    denoiser.checkpoint_gradients()
    denoiser.eval()
    weight = denoiser.backbone.model.layers[1].mlp.up_proj.weight
    first, second = denoiser(IDS, None, READ).square().sum(), denoiser(IDS, None, READ.flip(0)).square().sum()
    twice = [torch.autograd.grad(first, weight, retain_graph=True)[0] for _ in range(2)]
    other = torch.autograd.grad(second, weight)[0]
    assert torch.equal(*twice)
    assert not torch.allclose(twice[0], other, rtol=0.1)
    plain = build("LlamaForCausalLM")
    for columns, found in ((READ, twice[0]), (READ.flip(0), other)):
        expected = torch.autograd.grad(
            plain(IDS, None, columns).square().sum(), plain.backbone.model.layers[1].mlp.up_proj.weight
        )[0]
        assert_close(found, expected)


def test_no_hook_is_left_after_a_pass_or_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = build("LlamaForCausalLM")

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in denoiser.modules())

    denoiser(IDS, None, READ)
    assert hooks() == 0

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(denoiser.backbone.model.layers[1].mlp, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        denoiser(IDS, None, READ)
    assert hooks() == 0


@pytest.mark.slow
def test_a_compiled_layer_runs_at_all_columns() -> None:
    denoiser = build("LlamaForCausalLM")
    expected = denoiser(IDS, None, READ)
    denoiser.compile_layers(backend="eager")
    assert_close(denoiser(IDS, None, READ), expected)
