"""Trackers: a resumed run continues the same tracker run, under the name of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import pytest
from accelerate import Accelerator

from tests.helpers.runs import train_recipe
from unmask.trainer import Trainer

KINDS = ["wandb", "tensorboard", "trackio", "mlflow", "comet_ml"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the arguments of each tracker instead of opening it, because the packages may not be
    installed."""
    found: list[dict[str, Any]] = []

    def init_trackers(self: Accelerator, project: str, config: dict[str, Any], init_kwargs: dict[str, Any]) -> None:
        (kind,) = init_kwargs
        found.append({"project": project, **init_kwargs[kind]})
        run = SimpleNamespace(info=SimpleNamespace(run_id="given by the server"))
        self.trackers = [SimpleNamespace(name=kind, tracker=run, finish=lambda: None, log=lambda *_, **__: None)]

    monkeypatch.setattr(Accelerator, "init_trackers", init_trackers)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: KINDS)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_continues_the_same_tracker_run(
    kind: str, opened: list[dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "mine", f"report_to=[{kind}]")
    folder = Trainer(recipe).train()
    facts = json.loads((folder / "run.json").read_text())
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    shutil.rmtree(folder / "final")
    Trainer(recipe, resume=True).train()
    first, second = opened
    wanted: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "wandb": ({"name": "mine", "id": facts["id"], "resume": "allow"},) * 2,
        "tensorboard": ({"purge_step": 1}, {"purge_step": 5}),
        "trackio": ({"name": "mine", "resume": "allow"},) * 2,
        "mlflow": ({"run_name": "mine", "run_id": None}, {"run_name": "mine", "run_id": "given by the server"}),
        "comet_ml": ({"experiment_key": facts["id"], "mode": "get_or_create"},) * 2,
    }
    assert [first, second] == [{"project": "unmask"} | settings for settings in wanted[kind]]


@pytest.mark.slow
def test_two_runs_have_two_tracker_runs(opened: list[dict[str, Any]], tiny_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Trainer(train_recipe(tiny_model, tmp_path / name, "report_to=[wandb]", "max_steps=1")).train()
    assert [run["name"] for run in opened] == ["a", "b"]
    assert opened[0]["id"] != opened[1]["id"]


@pytest.mark.slow
def test_a_tracker_gets_the_metrics_of_each_step_and_of_each_evaluation(
    opened: list[dict[str, Any]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, bool, bool]] = []

    def log(self: Accelerator, values: dict[str, Any], step: int) -> None:
        sent.append((step, "loss" in values, "eval/test@0/accuracy" in values))

    monkeypatch.setattr(Accelerator, "log", log)
    Trainer(train_recipe(tiny_model, tmp_path / "run", "report_to=[wandb]", "max_steps=2")).train()
    assert len(opened) == 1
    assert sent == [(0, False, True), (1, True, False), (2, True, False), (2, False, True)]


def test_tensorboard_has_each_step_once_after_a_resume(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = train_recipe(tiny_model, tmp_path / "run", "report_to=[tensorboard]")
    folder = Trainer(recipe).train()
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    shutil.rmtree(folder / "final")
    Trainer(recipe, resume=True).train()
    events = EventAccumulator(str(folder / "unmask"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
