"""Tests of runs of mixtures of experts: the metrics of their use, routers that stay or train, and
settings that do not fit."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.helpers.adapters import EVERYWHERE, IDS, build
from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from tests.helpers.runs import metrics, pretrain_recipe, train_recipe, weights
from unmask.core.errors import ConfigError
from unmask.models import convert, load_model
from unmask.models.experts import experts_of, freeze_routers, routers_of
from unmask.trainer import Trainer
from unmask.trainer.expert_use import ExpertUse
from unmask.trainer.metrics import Tally
from unmask.trainer.optimizer import make_optimizers
from unmask.trainer.policy import load_policy, make_policy, trained_parts
from unmask.trainer.pretrain import pretrain

KEYS = {"experts/busiest_share", "experts/busiest_share_max", "experts/entropy"}
LORA = "lora={r: 2, alpha: 4}"
NO_EVALUATION = ("evaluation.eval_steps=0", "sampler.block_length=4")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a block-causal mixture with blocks of four."""
    place = tmp_path_factory.mktemp("mixture")
    convert(mini_checkpoint("sdar-moe", place / "original"), place / "native")
    return place / "native"


def taken(use: ExpertUse) -> dict[str, float]:
    tally = Tally()
    use.take(tally)
    return tally.reduce(Accelerator())


@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "Glm4MoeForCausalLM"])
def test_the_metrics_are_those_of_the_chosen_experts(name: str) -> None:
    denoiser = build(name)
    chosen: dict[str, list[int]] = {path: [] for path, _ in routers_of(denoiser)}
    for path, router in routers_of(denoiser):
        router.register_forward_hook(
            lambda _, __, output, path=path: chosen[path].extend(output[-1].flatten().tolist())
        )
    use = ExpertUse.of(denoiser)
    assert use is not None
    assert (len(use), use.num_experts) == (len(chosen), 4)
    denoiser(IDS, None, EVERYWHERE)
    shares = [[picks.count(expert) / len(picks) for expert in range(4)] for picks in chosen.values()]
    busiest = [max(share) for share in shares]
    entropy = [-sum(p * math.log(p) for p in share if p) for share in shares]
    assert len(set(busiest + entropy)) > 1
    assert taken(use) == pytest.approx(
        {
            "experts/busiest_share": sum(busiest) / len(busiest),
            "experts/busiest_share_max": max(busiest),
            "experts/entropy": sum(entropy) / len(entropy),
        }
    )
    assert taken(use) == {}
    with torch.no_grad():
        denoiser(IDS, None, EVERYWHERE)
    assert taken(use) == {}


@pytest.mark.slow
def test_compiled_layers_compute_and_count_the_same() -> None:
    denoiser = build("Glm4MoeForCausalLM")
    use = ExpertUse.of(denoiser)
    assert use is not None
    expected = denoiser(IDS, None, EVERYWHERE).detach()
    eager = taken(use)
    denoiser.compile_layers(backend="eager")
    torch.testing.assert_close(denoiser(IDS, None, EVERYWHERE), expected, rtol=0, atol=1e-5)
    assert taken(use) == pytest.approx(eager)


def test_a_dense_model_has_no_counter_and_no_hook() -> None:
    denoiser = build("LlamaForCausalLM")
    assert ExpertUse.of(denoiser) is None
    assert not any(module._forward_hooks for module in denoiser.modules())


@pytest.mark.slow
def test_pretraining_keeps_the_routers_and_its_checkpoints_hold_them(
    native: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (f"model={native}", "max_steps=2", "save_steps=1", "optim.learning_rate=1e-2", "muon_learning_rate=0")
    with caplog.at_level(logging.WARNING, "unmask"):
        run = pretrain(pretrain_recipe(tmp_path / "kept", *settings))
    assert "All its weights are trained except its routers (train_router: true trains them)." in caplog.text
    before, after = (load_file(folder / "model.safetensors") for folder in (native, run / "final"))
    router = "model.layers.1.mlp.gate.weight"
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == before.keys() - {router, router.replace("1", "0")}
    assert all(line.keys() >= KEYS for line in metrics(run))
    assert all(1 / 8 < line["experts/busiest_share"] <= 1 / 2 for line in metrics(run))
    # A model can be read from a checkpoint, and a resumed run ends with the same bits.
    read, _ = load_model(sorted((run / "checkpoints").iterdir())[-1])
    assert all(torch.equal(value, after[key]) for key, value in read.backbone.state_dict().items())
    whole = weights(run)
    longer = pretrain_recipe(tmp_path / "resumed", *settings, "max_steps=1")
    pretrain(longer)
    pretrain(pretrain_recipe(tmp_path / "resumed", *settings), resume=True)
    assert weights(tmp_path / "resumed") == whole

    trained = pretrain(pretrain_recipe(tmp_path / "moved", *settings, "train_router=true"))
    assert not torch.equal(load_file(trained / "final" / "model.safetensors")[router], before[router])


@pytest.mark.slow
def test_reinforcement_learning_adapts_the_experts_if_asked(
    native: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("max_steps=2", "lora={r: 2, alpha: 4, experts: true}", "optim.learning_rate=1e-2", *NO_EVALUATION)
    recipe = train_recipe(native, tmp_path / "run", *settings)
    with caplog.at_level(logging.WARNING, "unmask"):
        run = Trainer(recipe).train()
    assert (
        "Adapters on k_proj, o_proj, q_proj, v_proj and its experts are trained. The routers are frozen." in caplog.text
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (native, run / "final"))
    moved = {
        key.removesuffix(".weight").rpartition(".")[2] for key in before if not torch.equal(before[key], after[key])
    }
    assert moved >= {"gate_up_proj", "down_proj"}
    assert "gate" not in moved
    lines = [line for line in metrics(run) if "loss" in line]
    assert all(line.keys() >= KEYS for line in lines)
    # Rollouts run the merged weights, and updates the adapters beside them.
    assert all(line.get("diffusion/mismatch_max", 0.0) < 1e-4 for line in lines)
    # A cast of the model of a checkpoint leaves the frequencies of rotary positions in float32.
    read, _ = load_model(sorted((run / "checkpoints").iterdir())[-1], dtype="bfloat16")
    assert {parameter.dtype for parameter in read.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in read.buffers()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["train_router=false", "train_router=true"])
def test_a_bfloat16_run_moves_routers_only_if_asked(setting: str, native: Path, tmp_path: Path) -> None:
    settings = ("max_steps=2", "precision=bf16", "optim.learning_rate=1e-2", *NO_EVALUATION, setting)
    run = Trainer(train_recipe(native, tmp_path / "run", *settings)).train()
    before, after = (load_file(folder / "model.safetensors") for folder in (native, run / "final"))
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    moved = {key for key, value in after.items() if not torch.equal(before[key].bfloat16(), value)}
    assert {key for key in after if ".experts." in key} <= moved
    routers = {key for key in after if key.endswith("mlp.gate.weight")}
    assert routers & moved == (routers if setting == "train_router=true" else set())


def test_the_parts_that_train_are_said(native: Path, tiny_model: Path, tmp_path: Path) -> None:
    def said(*settings: str, model: Path = native) -> str:
        recipe = train_recipe(model, tmp_path / "run", *settings)
        return trained_parts(recipe, make_policy(recipe, torch.device("cpu")))

    start = "The model is a mixture of 8 experts in 2 layers. "
    assert said("train_router=true") == f"{start}All its weights are trained."
    assert said(LORA) == (
        f"{start}Adapters on k_proj, o_proj, q_proj, v_proj are trained. The experts (lora.experts: true adapts them) and "
        "the routers are frozen."
    )
    assert said(model=tiny_model) == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((LORA, "train_router=true"), ("train_router", "lora")),
        (("lora={r: 2, alpha: 4, experts: true}", "compile=true"), ("compile", "lora.experts")),
    ],
)
def test_settings_of_mixtures_that_contradict_each_other_are_refused(
    settings: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    with raises(ConfigError, *words):
        train_recipe(tmp_path / "model", tmp_path / "run", *settings)


def test_experts_are_not_adapted_in_shards(native: Path, tmp_path: Path) -> None:
    recipe = train_recipe(native, tmp_path / "run", "lora={r: 2, alpha: 4, experts: true}")
    with raises(ConfigError, "lora.experts = true", "ddp or zero2"):
        load_policy(recipe, str(native), torch.device("cpu"), is_sharded=True)


@pytest.mark.slow
def test_experts_are_not_quantized(native: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = train_recipe(native, tmp_path / "run", "lora={r: 2, alpha: 4, quantize: 4bit}", "precision=bf16")
    with raises(ConfigError, "does not store the stacked experts", "precision = bf16"):
        load_policy(recipe, str(native), torch.device("cpu"))


def test_the_optimizer_of_matrices_leaves_frozen_routers_out(native: Path) -> None:
    denoiser: Any = load_model(native)[0]
    freeze_routers(denoiser)
    updated = {
        id(parameter)
        for optimizer in make_optimizers(denoiser, pretrain_recipe(native).optim, 1e-3)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    routers = {id(router.weight) for _, router in routers_of(denoiser)}
    assert not updated & routers
    assert {id(parameter) for _, parameter in experts_of(denoiser)} <= updated
