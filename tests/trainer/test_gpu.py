"""Training on a GPU: precision, one step, resuming, FSDP2 and QLoRA. These tests are skipped if there is no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.adapters import EVERYWHERE, IDS, build
from tests.helpers.native_configs import TOKENIZER
from tests.helpers.paths import ROOT
from tests.helpers.runs import TRAIN, metrics, steps_saved, train_recipe
from unmask.models import save_model
from unmask.recipes.load import shipped_recipes
from unmask.rewards import per_completion
from unmask.trainer import Trainer
from unmask.trainer.policy import make_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

GPU = torch.device("cuda")
SETTINGS = ("optim.learning_rate=1e-2", "optim.warmup_steps=0", "evaluation.eval_steps=0")


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    """Reward that differs between any two completions of an untrained model."""
    return [text.count("1") + 0.1 * len(text) for text in completions]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a finished run by name."""
    return load_file(folder / "final" / "model.safetensors")


@torch.no_grad()
def test_a_forward_pass_in_bfloat16_agrees_with_the_cpu() -> None:
    on_cpu = build()(IDS, None, EVERYWHERE)
    denoiser = build(dtype=torch.bfloat16).to(GPU)
    on_gpu = denoiser(IDS.to(GPU), None, EVERYWHERE.to(GPU))
    assert on_gpu.device.type == "cuda"
    distance = (on_gpu.float().cpu() - on_cpu).norm() / on_cpu.norm()
    assert 0 < distance < 0.05
    # Negative control: another token in the input moves the logits further than rounding does.
    other = IDS.clone()
    other[:, 4] = (other[:, 4] - 2) % (len(TOKENIZER) - 3) + 3
    assert (build()(other, None, EVERYWHERE) - on_cpu).norm() / on_cpu.norm() > 2 * distance


def test_one_training_step_changes_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SETTINGS, "max_steps=1", "precision=bf16")
    trainer = Trainer(recipe, [ones])
    assert {parameter.device.type for parameter in trainer.denoiser.parameters()} == {"cuda"}
    folder = trainer.train()
    line = metrics(folder)[-1]
    assert line["step"] == 1
    assert line["policy/ratio_max"] == pytest.approx(1.0)
    before = load_file(tiny_model / "model.safetensors")
    assert any((value - before[name]).abs().max() > 1e-4 for name, value in weights_of(folder).items())


def test_a_run_that_is_cut_off_and_resumed_ends_with_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SETTINGS)
    folder = Trainer(recipe, [ones]).train()
    whole = weights_of(folder)
    assert steps_saved(folder) == [2, 4, 6]
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    Trainer(recipe, [ones], resume=True).train()
    # The order of a GPU's sums may differ between runs, and with it the last bits.
    for name, value in weights_of(folder).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-3)
    assert [line["step"] for line in metrics(folder)][-2:] == [5, 6]


def test_the_fsdp2_preset_gives_what_one_process_gives(tiny_model: Path, tmp_path: Path) -> None:
    count = min(2, torch.cuda.device_count())
    preset = str(shipped_recipes("accelerate")["fsdp2"])
    launch = ["-m", "accelerate.commands.launch", "--config_file", preset, "--num_processes", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for name, prefix in (("plain", []), ("fsdp2", launch)):
        settings = [*TRAIN, *SETTINGS, f"model={tiny_model}", f"output_dir={tmp_path / name}"]
        command = [sys.executable, *prefix, "-m", "unmask", "train", "sudoku-tiny", *settings]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
    before = load_file(tiny_model / "model.safetensors")
    plain, sharded = weights_of(tmp_path / "plain"), weights_of(tmp_path / "fsdp2")
    assert max(float((plain[name] - before[name]).abs().max()) for name in before) > 1e-3
    for name, value in sharded.items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=1e-3)


def test_qlora_loads_four_bit_weights_and_trains_only_the_adapters(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_model(build(), TOKENIZER, tmp_path / "model")
    settings = ("precision=bf16", "lora={r: 2, alpha: 4, quantize: 4bit}")
    policy = make_policy(train_recipe(tmp_path / "model", tmp_path / "run", *settings), GPU)
    denoiser = policy.denoiser.to(GPU)
    quantized = [name for name, weight in denoiser.named_parameters() if weight.dtype == torch.uint8]
    assert any("q_proj" in name for name in quantized)
    trained = [name for name, weight in denoiser.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    logits = denoiser(IDS.to(GPU), None, EVERYWHERE.to(GPU))
    logits.float().square().sum().backward()
    assert torch.isfinite(logits).all()
    assert any(weight.grad is not None and weight.grad.norm() > 0 for weight in denoiser.parameters())
