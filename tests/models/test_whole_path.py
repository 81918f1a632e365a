"""The whole path of every family on a mini checkpoint, by the commands a user gives: convert, SFT,
EGSPO-SA with LoRA, resume, merge, evaluate, convert back. What each step computes has tests of its
own; here it is that they fit together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.minis import MINIS, UNSTATED, mini_checkpoint
from tests.helpers.runs import PRETRAIN, TRAIN, metrics, steps_saved, unmask, weights, without_report
from unmask.models import load_model
from unmask.models.families import FAMILIES

pytestmark = pytest.mark.slow

BLOCK_LENGTH = "4"
"""Block length of the block-causal minis."""

SFT = (*PRETRAIN, "max_steps=2", "save_steps=2", "muon_learning_rate=0", "optim.learning_rate=1e-3")
RL = (
    *TRAIN,
    "max_steps=4",
    "lora={r: 4, alpha: 8}",
    "method.num_selected=2",
    "method.beta=0.04",
    "num_iterations=1",
    "optim.learning_rate=1e-2",
    "evaluation.eval_steps=0",
    # Random weights give no right answers, but completions of different variety.
    f"reward_funcs=[{Path(__file__).parent}/plain_reward.py:plainness]",
)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", MINIS)
@without_report()
def test_a_family_passes_through_all_stages(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    original, native = mini_checkpoint(name, tmp_path / "original"), tmp_path / "native"
    blocks = ["--block-length", BLOCK_LENGTH] if family.block_causal else []
    sampler = [f"sampler.block_length={BLOCK_LENGTH}"] if family.block_causal else []

    assert unmask("convert", original, native, *(blocks if name in UNSTATED else ())) == 0
    assert unmask("pretrain", "sudoku-tiny-base", *SFT, f"model={native}", f"output_dir={tmp_path / 'sft'}") == 0
    base = tmp_path / "sft" / "final"
    assert not all(torch.equal(value, tensors(native)[key]) for key, value in tensors(base).items())

    run = tmp_path / "rl"
    train = ("train", "sudoku-tiny", *RL, *sampler, f"model={base}", f"output_dir={run}")
    assert unmask(*train) == 0
    logged, whole = metrics(run), weights(run)
    assert all(line["diffusion/mismatch_max"] < 1e-4 for line in logged if "diffusion/mismatch_max" in line)
    # Adapters train; at the first step the policy is the reference.
    assert logged[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    moved = {key for key, value in tensors(run / "final").items() if not torch.equal(value, tensors(base)[key])}
    assert moved
    assert {key.removesuffix(".weight").rsplit(".", 1)[-1] for key in moved} <= set(family.lora_targets)

    # The state after being killed in the second step.
    assert steps_saved(run) == [2, 4]
    shutil.rmtree(run / "final")
    shutil.rmtree(next(path for path in (run / "checkpoints").iterdir() if path.name.endswith("4")))
    assert unmask(*train, "--resume") == 0
    assert weights(run) == whole
    assert metrics(run) == logged

    assert unmask("merge", run / "final" / "adapter", tmp_path / "merged") == 0
    assert all(torch.equal(value, tensors(run / "final")[key]) for key, value in tensors(tmp_path / "merged").items())

    evaluated = ("eval", run / "final", "--task", "sudoku", "--rows", 4, "--length", 16, "--steps", 4, *blocks)
    assert unmask(*evaluated, "--output", tmp_path / "eval.json") == 0
    assert json.loads((tmp_path / "eval.json").read_text())
    denoiser, _ = load_model(run / "final")
    assert (denoiser.logit_shift, denoiser.block_length) == (
        family.logit_shift,
        int(BLOCK_LENGTH) if family.block_causal else None,
    )
    assert type(denoiser.backbone).__name__ == family.native_class

    capsys.readouterr()
    code = unmask("convert", run / "final", tmp_path / "back", "--to", "original")
    if family.architecture:
        assert code == 0
        assert tensors(tmp_path / "back").keys() == tensors(original).keys()
        assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == [family.architecture]
    else:
        assert code == 2
        assert "has no layout other than the native one" in capsys.readouterr().err
