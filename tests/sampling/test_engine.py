"""Tests of the rollout engine protocol: training and evaluation run on recorded trajectories."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.runs import train_recipe
from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError
from unmask.core.records import Needs
from unmask.evaluation.evaluate import evaluate
from unmask.models import load_model
from unmask.rewards.scorer import Scorer
from unmask.runs.metrics import read_metrics
from unmask.sampling import engine as engine_module
from unmask.sampling.engine import BatchLimits, LocalEngine, default_batch_size
from unmask.tasks import Sudoku
from unmask.trainer import Trainer


class Recorder:
    """Passes every call on to a local engine and records the results."""

    def __init__(self, policy, limits=None):
        self.local, self.tape = LocalEngine(policy, limits or BatchLimits()), []

    @property
    def tokenizer(self):
        return self.local.tokenizer

    def rollout(self, prompts, sampler, seeds, **options):
        self.tape.append(self.local.rollout(prompts, sampler, seeds, **options))
        return self.tape[-1]

    def update_weights(self, model, version):
        self.local.policy = self.local.policy._replace(denoiser=model)
        self.local.update_weights(model, version)

    def session(self):
        return nullcontext()


class Player:
    """Minimal engine without a model, which returns recorded trajectories in order."""

    def __init__(self, tokenizer, tape):
        self.tokenizer, self.tape, self.versions = tokenizer, iter(tape), []

    def rollout(self, prompts, sampler, seeds, **options):
        path = next(self.tape)
        assert len(path) == len(prompts)
        self.versions.append(self.version)
        return path

    def update_weights(self, model, version):
        self.version = version

    def session(self):
        return nullcontext()


def metrics_of(folder):
    lines = read_metrics(folder)
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


@pytest.mark.slow
def test_recorded_trajectories_drive_training_and_evaluation(tiny_model, tmp_path):
    policy = load_model(tiny_model)
    recipe = train_recipe(tiny_model, tmp_path / "whole")
    recorder = Recorder(policy)
    Trainer(recipe, engine=recorder).train()
    player = Player(policy.tokenizer, recorder.tape)
    folder = Trainer(recipe.model_copy(update={"output_dir": str(tmp_path / "again")}), engine=player).train()
    local = Trainer(recipe.model_copy(update={"output_dir": str(tmp_path / "local")})).train()
    # Replayed paths cost no forward passes; all other numbers are the same.
    spent = "compute/token_passes"
    played, recorded, own = (
        [{k: v for k, v in line.items() if k != spent} for line in metrics_of(place)]
        for place in (folder, tmp_path / "whole", local)
    )
    assert played == recorded == own
    assert [path.policy_version for path in recorder.tape] == player.versions
    assert player.versions == sorted(player.versions)
    assert set(player.versions) == set(range(recipe.max_steps + 1))


@pytest.mark.slow
def test_an_engine_that_returns_other_paths_trains_another_model(tiny_model, tmp_path):
    policy = load_model(tiny_model)
    recipe = train_recipe(tiny_model, tmp_path / "whole")
    recorder = Recorder(policy)
    Trainer(recipe, engine=recorder).train()
    rotated = [path.rows(torch.arange(len(path)).roll(1)) for path in recorder.tape]
    other = recipe.model_copy(update={"output_dir": str(tmp_path / "other")})
    Trainer(other, engine=Player(policy.tokenizer, rotated)).train()
    assert metrics_of(tmp_path / "other")[1]["loss"] != metrics_of(tmp_path / "whole")[1]["loss"]


def test_batch_limits_change_no_completion(tiny_model):
    engine = LocalEngine(load_model(tiny_model))
    rows, sampler = Sudoku().rows("test", 6), SamplerConfig(max_completion_length=16, num_steps=4, temperature=0.9)
    scorer = Scorer(Sudoku().rewards())
    whole = evaluate(engine, Sudoku(), scorer, rows, sampler)
    for limits in (BatchLimits(1), BatchLimits(4), BatchLimits(max_tokens=80)):
        engine.limits = limits
        assert evaluate(engine, Sudoku(), scorer, rows, sampler).items == whole.items


def rows_of_batches(engine, monkeypatch, sampler, **options):
    """Return the number of completions of each forward pass of the first denoising step."""
    rows, forward = [], engine.policy.denoiser.forward

    def counted(ids, attention_mask, positions):
        rows.append(len(ids))
        return forward(ids, attention_mask, positions)

    monkeypatch.setattr(engine.policy.denoiser, "forward", counted)
    # Equal prompts would share the first step.
    engine.rollout([f"123{i}=" for i in range(5)], sampler, torch.arange(5), **options)
    return rows[:: sampler.steps]


def test_the_default_batch_is_as_large_as_the_logits_and_tokens_allow(tiny_model, monkeypatch):
    policy = load_model(tiny_model)
    whole = SamplerConfig(max_completion_length=16, num_steps=2)
    blocks = SamplerConfig(max_completion_length=16, num_steps=4, block_length=4)
    monkeypatch.setattr(engine_module, "DEFAULT_LOGITS", 2 * 16 * policy.denoiser.vocab_size)
    assert rows_of_batches(LocalEngine(policy), monkeypatch, whole) == [2, 2, 1]
    assert rows_of_batches(LocalEngine(policy), monkeypatch, blocks) == [5]
    # One-step completions need the logits of later blocks too.
    needs = Needs(greedy=True, selection=("entropy_topk", 1))
    assert rows_of_batches(LocalEngine(policy), monkeypatch, blocks, needs=needs) == [2, 2, 1]
    # A number that the caller chose is obeyed.
    assert rows_of_batches(LocalEngine(policy, BatchLimits(4)), monkeypatch, whole) == [4, 1]
    monkeypatch.setattr(engine_module, "DEFAULT_TOKENS", 3 * 21)
    assert rows_of_batches(LocalEngine(policy), monkeypatch, blocks) == [3, 2]


def test_an_evaluation_of_an_8b_model_at_length_512_fits_into_80_gb():
    """Bounds by arithmetic: bfloat16 weights, the logits in float32, and six tensors of activations."""
    for block in (512, 32):
        rows = default_batch_size(200 + 512, block, 126_464, "cuda")
        logits, activations = 4 * rows * block * 126_464, 6 * 2 * 12_288 * rows * 712
        assert 16e9 + logits + activations < 30e9
    # 256 rows, the old default, did not fit: two copies of the logits in bfloat16.
    assert 16e9 + 2 * 2 * 256 * 512 * 126_464 > 80e9


def test_progress_ends_at_one_for_any_batch_size(tiny_model):
    seen = []
    engine = LocalEngine(load_model(tiny_model), BatchLimits(4))
    sampler = SamplerConfig(max_completion_length=16, num_steps=4)
    evaluate(engine, Sudoku(), Scorer(Sudoku().rewards()), Sudoku().rows("test", 6), sampler, observe=seen.append)
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (8, 1.0)


def test_a_prompt_that_is_too_long_is_refused_before_sampling(tiny_model):
    engine = LocalEngine(load_model(tiny_model))
    with raises(DataError, "do not fit"):
        engine.rollout(["1=", "1" * 5000], SamplerConfig(max_completion_length=16), torch.arange(2))
