"""Training on a GPU: precision, one step, adapters, resuming, FSDP2 and QLoRA.

Without a GPU, the first tests run on a simulated one, which enforces the device rules of CUDA; the last two are
skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.helpers.adapters import EVERYWHERE, IDS, build
from tests.helpers.native_configs import TOKENIZER
from tests.helpers.paths import ROOT
from tests.helpers.runs import TRAIN, metrics, pretrain_recipe, steps_saved, train_recipe, unmask
from tests.helpers.simulated_cuda import DEVICE, SimulatedGenerator
from unmask.models import Denoiser, device, save_model
from unmask.recipes.load import shipped_recipes
from unmask.rewards import per_completion
from unmask.trainer import Trainer
from unmask.trainer.policy import make_policy
from unmask.trainer.pretrain import pretrain

pytestmark = pytest.mark.slow

HAS_GPU = torch.cuda.is_available()
GPU = torch.device("cuda") if HAS_GPU else DEVICE
SETTINGS = ("optim.learning_rate=1e-2", "optim.warmup_steps=0", "evaluation.eval_steps=0")


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    """Reward that differs between any two completions of an untrained model."""
    return [text.count("1") + 0.1 * len(text) for text in completions]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a finished run by name."""
    return load_file(folder / "final" / "model.safetensors")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Make the GPU the device of runs in this process, or a simulated one if there is none."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if not HAS_GPU:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(GPU))
        monkeypatch.setattr(torch, "Generator", SimulatedGenerator)
    yield GPU
    # accelerate keeps its device for the whole process.
    AcceleratorState._reset_state(reset_partial_state=True)


@torch.no_grad()
def test_a_forward_pass_in_bfloat16_agrees_with_the_cpu() -> None:
    on_cpu = build()(IDS, None, EVERYWHERE)
    denoiser = build(dtype=torch.bfloat16).to(GPU)
    on_gpu = denoiser(IDS.to(GPU), None, EVERYWHERE.to(GPU))
    assert on_gpu.device.type == GPU.type
    distance = (on_gpu.float().cpu() - on_cpu).norm() / on_cpu.norm()
    assert 0 < distance < 0.05
    # Negative control: another token in the input moves the logits further than rounding does.
    other = IDS.clone()
    other[:, 4] = (other[:, 4] - 2) % (len(TOKENIZER) - 3) + 3
    assert (build()(other, None, EVERYWHERE) - on_cpu).norm() / on_cpu.norm() > 2 * distance


def test_one_training_step_changes_the_weights(gpu: torch.device, tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SETTINGS, "max_steps=1", "num_iterations=1", "precision=bf16")
    trainer = Trainer(recipe, [ones])
    assert {parameter.device.type for parameter in trainer.denoiser.parameters()} == {gpu.type}
    folder = trainer.train()
    line = metrics(folder)[-1]
    assert line["step"] == 1
    assert line["policy/ratio_max"] == pytest.approx(1.0)
    before = load_file(tiny_model / "model.safetensors")
    assert any((value - before[name]).abs().max() > 1e-4 for name, value in weights_of(folder).items())


def test_adapters_train_with_every_kind_of_pass(gpu: torch.device, tiny_model: Path, tmp_path: Path) -> None:
    """A reference that moves, recomputed activations, a cache with its correction, saved guesses, and evaluations."""
    settings = (
        "method={type: egspo_sa, num_selected: 2, beta: 0.04}",
        "lora={r: 2, alpha: 4}",
        "gradient_checkpointing=true",
        "sync_ref_model=true",
        "ref_model_sync_steps=1",
        "sampler.block_length=8",
        "sampler.cache=dual",
        "max_tokens_per_forward=auto",
        "log_rollouts_steps=1",
        "evaluation.split=validation",
        "max_steps=2",
        "precision=bf16",
    )
    folder = Trainer(train_recipe(tiny_model, tmp_path / "run", *SETTINGS, *settings), [ones]).train()
    adapter = load_file(folder / "final" / "adapter" / "adapter_model.safetensors")
    assert max(float(value.abs().max()) for name, value in adapter.items() if "lora_B" in name) > 1e-4
    assert (folder / "best").exists()
    assert metrics(folder)[-1]["behaviour/ratio_max"] > 0


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each forward pass adds the type of its device."""
    devices: list[str] = []
    forward = Denoiser.forward

    def seen(self: Denoiser, ids: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        devices.append(ids.device.type)
        return forward(self, ids, *arguments, **options)

    monkeypatch.setattr(Denoiser, "forward", seen)
    return devices


def test_a_model_is_checked_on_the_gpu_when_a_run_loads_it(
    gpu: torch.device, tiny_model: Path, tmp_path: Path, devices: list[str]
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", "lora={r: 2, alpha: 4}", "precision=bf16")
    policy = make_policy(recipe, gpu)
    assert set(devices) == {gpu.type}
    assert {p.device.type for p in policy.denoiser.parameters()} == {gpu.type}
    # The whole weights of a sharded policy may not fit on one device.
    devices.clear()
    policy = make_policy(recipe, gpu, is_sharded=True)
    assert set(devices) == {p.device.type for p in policy.denoiser.parameters()} == {"cpu"}


def test_pretraining_is_that_of_the_cpu(gpu: torch.device, tmp_path: Path) -> None:
    folder = pretrain(pretrain_recipe(tmp_path / "gpu", "max_steps=2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": "cpu"}):
        other = pretrain(pretrain_recipe(tmp_path / "cpu", "max_steps=2"))
    for name, value in weights_of(folder).items():
        torch.testing.assert_close(value, weights_of(other)[name], rtol=0, atol=1e-3)


def test_the_commands_run_their_model_on_the_gpu(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    devices: list[str],
) -> None:
    monkeypatch.setattr(device, "default_device", lambda: str(GPU))
    monkeypatch.chdir(tmp_path)
    assert unmask("sample", tiny_model, "--task", "sudoku", "--steps", 4, "--delay", 0) == 0
    assert unmask("eval", tiny_model, "--task", "sudoku", "--rows", 4, "--steps", 4, "--length", 16) == 0
    assert set(devices) == {GPU.type}
    assert "completion:" in capsys.readouterr().out


def test_the_harness_runs_its_model_on_the_gpu(tiny_model: Path) -> None:
    pytest.importorskip("lm_eval")
    from unmask.evaluation.lm_eval import DenoiserLM

    def answers(place: torch.device | str) -> tuple[float, list[str]]:
        lm = DenoiserLM(str(tiny_model), length=4, num_draws=4, device=str(place))
        assert next(lm.denoiser.parameters()).device.type == torch.device(place).type
        ((bound, _),) = lm.loglikelihood([SimpleNamespace(args=("1234=", "12"))])
        return bound, lm.generate_until([SimpleNamespace(args=("1234=", {"until": ["="]}))])

    (bound, texts), (expected, expected_texts) = answers(GPU), answers("cpu")
    assert bound == pytest.approx(expected, abs=1e-3)
    assert texts == expected_texts


def test_a_run_that_is_cut_off_and_resumed_ends_with_the_same_weights(
    gpu: torch.device, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SETTINGS)
    folder = Trainer(recipe, [ones]).train()
    whole = weights_of(folder)
    assert steps_saved(folder) == [4, 6]
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    Trainer(recipe, [ones], resume=True).train()
    # The order of a GPU's sums may differ between runs, and with it the last bits.
    for name, value in weights_of(folder).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-3)
    assert [line["step"] for line in metrics(folder)][-2:] == [5, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
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


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
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
