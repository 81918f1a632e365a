"""The model that a run in Python starts from: forms in which it may be given, and the folder that
an object is written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError
from unmask.models import load_model
from unmask.report.api.starting_model import model_of, write_starting_model
from unmask.runs.environment import weights_hash


def test_a_model_is_a_path_a_policy_or_a_denoiser_with_its_tokenizer(tiny_model: Path) -> None:
    policy = load_model(tiny_model)
    assert model_of(None) is None
    assert model_of(tiny_model) == str(tiny_model)
    assert model_of(policy) is policy
    assert model_of(policy.denoiser, policy.tokenizer) == policy


def test_a_denoiser_without_its_tokenizer_and_a_path_with_one_are_refused(tiny_model: Path) -> None:
    policy = load_model(tiny_model)
    with raises(ConfigError, "Denoiser", "processing_class=tokenizer"):
        model_of(policy.denoiser)
    with raises(ConfigError, "processing_class", "some/folder"):
        model_of("some/folder", policy.tokenizer)
    with raises(ConfigError, "GPT2LMHeadModel", "Policy(Denoiser("):
        model_of(policy.denoiser.backbone, policy.tokenizer)


def test_a_run_that_has_begun_keeps_the_model_that_it_started_from(tiny_model: Path, tmp_path: Path) -> None:
    policy, run = load_model(tiny_model), tmp_path / "run"
    assert write_starting_model(policy, run) == str(tmp_path / "run-start")
    first = weights_hash(policy.denoiser)
    policy.denoiser.backbone.lm_head.weight.data.add_(1.0)
    # A start that failed before its first step has nothing to keep.
    run.mkdir()
    (run / "metrics.jsonl").touch()
    write_starting_model(policy, run)
    second = weights_hash(load_model(tmp_path / "run-start").denoiser)
    assert second == weights_hash(policy.denoiser) != first
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    policy.denoiser.backbone.lm_head.weight.data.add_(1.0)
    write_starting_model(policy, run)
    assert weights_hash(load_model(tmp_path / "run-start").denoiser) == second


def test_several_processes_cannot_share_an_object(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(ConfigError, "several processes", "save_model"):
        write_starting_model(load_model(tiny_model), tmp_path / "run")
    assert not (tmp_path / "run-start").exists()
