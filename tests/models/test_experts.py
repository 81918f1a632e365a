"""Tests of mixtures of experts: gradients in every mode, frozen routers, adapters on stacked experts,
and rollouts with caches."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

from tests.helpers.adapters import EVERYWHERE, IDS, LORA, build, train_by_hand
from tests.helpers.messages import raises
from tests.helpers.minis import UNSTATED, mini_checkpoint
from tests.helpers.native_configs import TOKENIZER
from tests.helpers.plain_models import plain_logits, plain_weights
from unmask.core.config import LoraConfig, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.models import Denoiser, convert, load_model, save_model
from unmask.models.adapter_folders import merge_adapter, save_adapted
from unmask.models.adapters import Adapters, remove_layers
from unmask.models.experts import experts_of, freeze_routers, routers_of
from unmask.models.native import NATIVE_CLASSES
from unmask.models.shell import filled, without_weights
from unmask.sampling import denoise

MIXTURES = [name for name, native in NATIVE_CLASSES.items() if native.experts]
EXPERTS = LORA.model_copy(update={"experts": True})
TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(denoiser: Denoiser) -> Tensor:
    return denoiser(IDS, None, EVERYWHERE)


def weighted(values: Tensor) -> Tensor:
    """Return one number that depends on every logit."""
    return (values * torch.linspace(-1, 1, values.numel(), dtype=values.dtype).view(values.shape)).sum()


# --- gradients ---


@pytest.mark.parametrize("training", [False, True], ids=["evaluation mode", "training mode"])
@pytest.mark.parametrize("name", ["llada2", "sdar-moe", "llada-moe"])
def test_every_expert_and_router_gets_the_gradient_of_independent_code(
    name: str, training: bool, tmp_path: Path
) -> None:
    source = mini_checkpoint(name, tmp_path / "original")
    convert(source, tmp_path / "native", block_length=UNSTATED.get(name))
    denoiser, _ = load_model(tmp_path / "native")
    denoiser.train(training)
    weighted(denoiser(TOKENS, None, torch.arange(12).expand(2, -1))).backward()
    weights = {key: value.requires_grad_() for key, value in plain_weights(source).items()}
    weighted(plain_logits(source, TOKENS, denoiser.block_length, weights)).backward()

    def expected(expert: int, part: str) -> Tensor:
        weight = weights[f"{layer}experts.{expert}.{part}_proj.weight"]
        return torch.zeros_like(weight) if weight.grad is None else weight.grad

    layer, trunk = "model.layers.1.mlp.", denoiser.backbone
    gate_up, down = (trunk.get_parameter(f"{layer}experts.{x}_proj").grad for x in ("gate_up", "down"))
    assert gate_up is not None
    assert down is not None
    for expert in range(8):
        joined = torch.cat([expected(expert, "gate"), expected(expert, "up")])
        torch.testing.assert_close(gate_up[expert].double(), joined, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(down[expert].double(), expected(expert, "down"), rtol=1e-4, atol=2e-4)
    # Nearly every expert is used, and its gradient is far above the tolerance.
    assert sum(float(gate_up[expert].abs().max()) > 0.1 for expert in range(8)) >= 6
    router = trunk.get_parameter(f"{layer}gate.weight").grad
    torch.testing.assert_close(router.double(), weights[f"{layer}gate.weight"].grad, rtol=1e-4, atol=2e-4)


def test_experts_that_run_without_gradients_in_evaluation_mode_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in the releases' own code of LLaDA2, whose experts run under no_grad in evaluation mode.
    denoiser = build("Glm4MoeForCausalLM")
    experts = denoiser.backbone.get_submodule("model.layers.1.mlp.experts")
    monkeypatch.setattr(experts, "forward", torch.no_grad()(experts.forward))
    weighted(denoiser(IDS, None, EVERYWHERE)).backward()
    assert all(parameter.grad is None for _, parameter in experts_of(denoiser))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_frozen_router_gets_no_gradient_and_everything_else_the_same(name: str) -> None:
    found = []
    for frozen in (False, True):
        denoiser = build(name)
        if frozen:
            freeze_routers(denoiser)
        weighted(denoiser(IDS, None, EVERYWHERE)).backward()
        found.append({key: p.grad for key, p in denoiser.named_parameters() if p.grad is not None})
    free, held = found
    assert free.keys() - held.keys() == {f"backbone.{path}.weight" for path, _ in routers_of(denoiser)} != set()
    assert all(torch.equal(free[key], value) for key, value in held.items())
    assert not any(path for path, _ in routers_of(build("LlamaForCausalLM")))


# --- adapters on stacked experts ---


@pytest.mark.parametrize("name", MIXTURES)
def test_the_experts_are_adapted_beside_the_attention(name: str) -> None:
    denoiser = build(name)
    before = logits(denoiser)
    stacks = [path for path, _ in experts_of(denoiser)]
    adapters = Adapters(denoiser, EXPERTS)
    assert torch.equal(logits(denoiser), before)
    trained = {key for key, parameter in denoiser.named_parameters() if parameter.requires_grad}
    assert trained == {f"backbone.{key}" for key, _ in adapters.parameters()}
    of_experts = [key for key in trained if ".experts." in key]
    assert len(of_experts) == 2 * len(stacks)
    train_by_hand(adapters)
    changed = logits(denoiser)
    assert (changed - before).abs().max() > 0.1
    with adapters.off():
        assert torch.equal(logits(denoiser), before)
    adapters.add_reference()
    train_by_hand(adapters, seed=2)
    with adapters.as_reference():
        assert torch.equal(logits(denoiser), changed)
    assert {key for key, p in denoiser.named_parameters() if p.requires_grad} == trained
    # The names of the stacks do not depend on their adapters.
    assert sorted(path.replace(".base_layer", "") for path, _ in experts_of(denoiser)) == sorted(stacks)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.slow
def test_adapted_experts_are_merged_saved_and_loaded_by_peft(name: str, tmp_path: Path) -> None:
    denoiser = build(name)
    save_model(denoiser, TOKENIZER, tmp_path / "base")
    shell = without_weights(denoiser)
    adapters = Adapters(denoiser, EXPERTS, base=str(tmp_path / "base"))
    train_by_hand(adapters)
    wanted = logits(denoiser)
    own = dict(denoiser.backbone.named_parameters(remove_duplicate=False))
    merged = {f"backbone.{key}": value for key, value in adapters.merging(own, torch.Tensor.detach)}
    # What rollouts run.
    adapted_shell = without_weights(denoiser)
    remove_layers(adapted_shell)
    buffers = dict(denoiser.named_buffers())
    for each in (shell, adapted_shell):
        with filled(each, merged | buffers) as whole:
            torch.testing.assert_close(logits(whole), wanted, rtol=0, atol=1e-4)
    save_adapted(denoiser, TOKENIZER, adapters, tmp_path / "final")
    assert torch.equal(logits(denoiser), wanted)
    torch.testing.assert_close(logits(load_model(tmp_path / "final")[0]), wanted, rtol=0, atol=1e-4)
    merge_adapter(tmp_path / "final" / "adapter", tmp_path / "merged")
    assert torch.equal(logits(load_model(tmp_path / "merged")[0]), logits(load_model(tmp_path / "final")[0]))
    base, _ = load_model(tmp_path / "base")
    peft.PeftModel.from_pretrained(base.backbone, tmp_path / "final" / "adapter")
    assert torch.equal(logits(base), wanted)


@pytest.mark.parametrize("name", MIXTURES)
def test_recomputed_layers_give_adapted_experts_the_same_gradients(name: str) -> None:
    found = []
    for checkpointed in (False, True):
        denoiser = build(name)
        train_by_hand(Adapters(denoiser, EXPERTS))
        if checkpointed:
            denoiser.checkpoint_gradients()
        weighted(denoiser(IDS, None, torch.tensor([[8, 4], [5, 5], [7, 3]]))).backward()
        found.append({key: p.grad for key, p in denoiser.named_parameters() if p.grad is not None})
    plain, again = found
    assert any(".experts." in key for key in plain)
    assert plain.keys() == again.keys()
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["gate_proj", "layers.1.mlp.shared_experts.up_proj", "down_proj"])
def test_a_target_that_peft_takes_for_the_experts_is_refused(target: str) -> None:
    with raises(ConfigError, f'"{target}"', "lora.experts"):
        Adapters(build("Glm4MoeForCausalLM"), LoraConfig(targets=("q_proj", target)))


def test_peft_takes_a_shared_experts_matrices_for_the_stacked_experts() -> None:
    # The reason for the refusal: peft adapts other weights than the ones that are named.
    backbone = build("Glm4MoeForCausalLM").backbone
    shared = [f"model.layers.1.mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")]
    peft.PeftModel(backbone, peft.LoraConfig(r=2, target_modules=shared))
    adapted = {key.partition(".lora_")[0] for key in backbone.state_dict() if ".lora_A" in key}
    assert adapted == {"model.layers.1.mlp.experts", "model.layers.1.mlp.experts.base_layer"}


def test_settings_of_experts_that_do_not_fit_are_refused() -> None:
    with raises(ConfigError, "LlamaForCausalLM has no mixtures of experts"):
        Adapters(build("LlamaForCausalLM"), EXPERTS)
    with raises(ConfigError, "lora.dropout = 0.1"):
        Adapters(build("Qwen3MoeForCausalLM"), EXPERTS.model_copy(update={"dropout": 0.1}))


# --- caches ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llada-moe", {"cache": "prefix", "cache_refresh_steps": 1}),
        ("llada-moe", {"cache": "dual", "cache_refresh_steps": 1}),
        ("llada2", {}),
        ("sdar-moe", {}),
        ("fast-dllm-v2", {}),
    ],
)
def test_a_rollout_with_a_cache_is_that_of_whole_forward_passes(
    name: str, settings: dict[str, object], tmp_path: Path
) -> None:
    convert(mini_checkpoint(name, tmp_path / "original"), tmp_path / "native", block_length=UNSTATED.get(name))
    denoiser, _ = load_model(tmp_path / "native")
    prompts, mask = TOKENS[:, :7], torch.arange(7) >= torch.tensor([[0], [3]])
    common = {"max_completion_length": 8, "num_steps": 4, "block_length": 4, "temperature": 0.9}
    seeds = torch.arange(2)
    cached = denoise(denoiser, prompts, mask, SamplerConfig(**common, **settings), seeds)

    class Whole(torch.nn.Module):
        """The same model without its cache."""

        mask_id, eos_id = denoiser.mask_id, denoiser.eos_id
        logit_shift = denoiser.logit_shift

        def forward(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
            return denoiser(ids, attention_mask, positions)

    whole = denoise(Whole(), prompts, mask, SamplerConfig(**common), seeds)
    assert torch.equal(cached.tokens, whole.tokens)
    torch.testing.assert_close(cached.logprob, whole.logprob, rtol=0, atol=1e-5)
