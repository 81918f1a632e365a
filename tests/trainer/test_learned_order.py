"""Runs with the order `learned`: the position head is trained with the model, saved with it, and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.runs import metrics, train_recipe
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.models import Denoiser, load_model
from unmask.models.from_run import ADAPTER
from unmask.rewards import per_completion
from unmask.sampling import denoise
from unmask.trainer import Trainer

pytestmark = pytest.mark.slow

LEARNED = ("sampler.order=learned", "method={type: egspo, num_selected: 4, beta: 0.04}", "evaluation.eval_steps=0")
LORA = ("lora={r: 4, alpha: 8}",)


@per_completion
def early_ones(completions: list[str], **_: Any) -> list[float]:
    return [float(text[:4].count("1")) for text in completions]


def trained(model: Path, folder: Path, *overrides: str) -> Path:
    return Trainer(train_recipe(model, folder, *LEARNED, "optim.learning_rate=1e-2", *overrides), [early_ones]).train()


def head_of(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    assert denoiser.position_head is not None
    return denoiser.position_head.state_dict()


def decoded(denoiser: Denoiser) -> torch.Tensor:
    """Return the steps of a greedy rollout by the learned order."""
    sampler = SamplerConfig(max_completion_length=16, num_steps=16, order="learned", temperature=0.0)
    prompt = torch.randint(3, 8, (8, 17), generator=torch.Generator().manual_seed(0))
    return denoise(denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(8)).unmask_step


@pytest.mark.parametrize("lora", [(), LORA], ids=["all weights", "adapters"])
def test_the_head_is_trained_and_every_folder_of_the_run_carries_it(
    lora: tuple[str, ...], tiny_model: Path, tmp_path: Path
) -> None:
    run = trained(tiny_model, tmp_path / "run", *lora)
    for line in metrics(run):
        # Tokens and position choices have ratio 1 at the first update of each step.
        assert line["policy/first_log_ratio_max"] < 1e-5
        assert line["diffusion/mismatch_max"] < 1e-4
    final = load_model(run / "final").denoiser
    assert all(float(weight.abs().max()) > 0 for weight in head_of(final).values())
    assert not torch.equal(decoded(final), decoded_without(final))
    sources = [run, run / "checkpoints" / "step-00000006", *([run / "final" / ADAPTER] if lora else [])]
    for source in sources:
        again = load_model(source).denoiser
        assert all(torch.equal(head_of(again)[name], weight) for name, weight in head_of(final).items()), source
        assert torch.equal(decoded(again), decoded(final))
    earlier = head_of(load_model(run / "checkpoints" / "step-00000004").denoiser)
    assert not all(torch.equal(earlier[name], weight) for name, weight in head_of(final).items())


def decoded_without(denoiser: Denoiser) -> torch.Tensor:
    """Return what `decoded` returns with scores of 0."""
    weight = denoiser.position_head.last.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        steps = decoded(denoiser)
        weight.copy_(kept)
    return steps


def test_a_run_from_a_model_with_a_head_continues_to_train_that_head(tiny_model: Path, tmp_path: Path) -> None:
    first = trained(tiny_model, tmp_path / "first")
    before = head_of(load_model(first).denoiser)
    second = trained(first / "final", tmp_path / "second", "optim.learning_rate=1e-6")
    after = head_of(load_model(second).denoiser)
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 1e-4


def test_under_another_order_the_head_stays_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    first = trained(tiny_model, tmp_path / "first")
    second = trained(first / "final", tmp_path / "second", "sampler.order=low_confidence")
    before, after = (head_of(load_model(run).denoiser) for run in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_method_that_leaves_the_choice_out_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for method in ("espo", "egspo_ca", "{type: egspo, choice_term: false}"):
        with raises(ConfigError, "sampler.order = learned trains a position head", "plackett_luce"):
            train_recipe(tiny_model, tmp_path, *LEARNED, f"method={method if '{' in method else {'type': method}}")


def test_a_model_without_a_head_is_refused(lively: Denoiser) -> None:
    with raises(ConfigError, "reads the position head of the model, and this model has none"):
        decoded(lively)
