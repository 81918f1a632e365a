"""Jobs at a scheduler: the same results as in this process, nothing lost and nothing done twice."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.comparisons import SMALL, small
from tests.helpers.messages import raises
from tests.helpers.paths import ROOT
from unmask.core.errors import ConfigError, RunError
from unmask.core.files import read_json_lines
from unmask.trainer.comparison import scheduled
from unmask.trainer.comparison.jobs import Cell
from unmask.trainer.comparison.plan import Plan
from unmask.trainer.comparison.recipe import CompareRecipe, Scheduler
from unmask.trainer.comparison.run import compare
from unmask.trainer.comparison.scheduled import MOST_LOSSES, ScheduledWorkers


def one_run(folder: Path, *overrides: str, name: str = "small", model: Path | None = None) -> CompareRecipe:
    """One run and the evaluation of its base; with a model, without a pretraining."""
    methods, task = {"m": SMALL["methods"]["entropy"]}, SMALL["tasks"]["sudoku"]
    if model is not None:
        task = {key: value for key, value in task.items() if not key.startswith("base")} | {"model": str(model)}
    changes = {"methods": methods, "tasks": {"sudoku": task}, "baselines": []}
    return small(folder, "tuning=", "seeds=[0]", *overrides, name=name, **changes)


@pytest.mark.slow
def test_jobs_of_a_local_scheduler_come_to_the_results_of_this_process(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    recipe = one_run(tmp_path, "scheduler.type=local", model=tiny_model)
    plain = one_run(tmp_path, name="plain", model=tiny_model)

    def interrupt(_line: str) -> None:
        raise InterruptedError

    # The command dies after its first result, when the next job is not yet submitted.
    with pytest.raises(InterruptedError):
        compare(recipe, tell=interrupt)
    told: list[str] = []
    compare(recipe, tell=told.append)
    assert [line.split()[0] for line in told] == ["final"]
    compare(plain, tell=lambda _line: None)
    kept = ("stage", "variant", "code", "accuracy", "reward", "token_passes", "outcomes", "failed")
    found, expected = (
        [{key: record[key] for key in kept if key in record} for record in read_json_lines(r.folder / "cells.jsonl")]
        for r in (recipe, plain)
    )
    assert found == expected
    assert not (recipe.folder / "scheduler").exists(), "logs and scripts of finished jobs are removed"
    # The place of the jobs is no part of the results, so the folder can go on in this process.
    told.clear()
    compare(one_run(tmp_path, model=tiny_model), tell=told.append)
    assert told == []


# --- a scheduler whose jobs do as they are told ---


class Fake:
    """A scheduler; `ends` says what happens when a job is looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.cancelled = folder, list[Any](), list[str]()
        self.at_end: Callable[[Any], None] | None = lambda _call: None

    def submit(self, call: Any) -> Any:
        self.calls.append(call)
        return self.job(str(len(self.calls)))

    def job(self, number: str) -> Any:
        call = self.calls[int(number) - 1]

        def done() -> bool:
            if number in self.cancelled:
                return True
            if self.at_end is None:
                return False
            self.at_end(call)
            return True

        def cancel(check: bool) -> None:
            self.cancelled.append(number)

        paths = SimpleNamespace(
            stderr=self.folder / f"{number}_0_log.err", result_pickle=self.folder / f"{number}_0_result.pkl"
        )
        return SimpleNamespace(job_id=number, done=done, cancel=cancel, paths=paths)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(tmp_path / "small" / "scheduler")
    monkeypatch.setattr(scheduled, "_executor", lambda _folder, _settings: made)
    monkeypatch.setattr(scheduled, "POLL", 0.005)
    monkeypatch.setattr(scheduled, "LOOKS", {"slurm": 2, "local": 1})
    monkeypatch.setattr("submitit.SlurmJob", lambda _folder, number: made.job(number))
    return made


@pytest.fixture
def workers(fake: Fake, tmp_path: Path) -> Iterator[ScheduledWorkers]:
    with ScheduledWorkers(tmp_path / "small", Scheduler(), 8) as made:
        yield made


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return Plan(one_run(tmp_path)).bases()[0]


def writes(**facts: Any) -> Callable[[Any], None]:
    return lambda call: call.result.write_text(json.dumps(facts)) and None


def test_a_result_is_the_jobs_file_and_goes_when_it_is_recorded(
    fake: Fake, workers: ScheduledWorkers, cell: Cell
) -> None:
    fake.at_end = writes(steps=3)
    assert workers.start(cell).result(5) == {"steps": 3}
    (fake.folder / "1_0_log.out").write_text("")
    assert len(list(fake.folder.iterdir())) == 3
    workers.recorded(cell)
    assert list(fake.folder.iterdir()) == []


def test_a_job_of_a_command_that_died_is_found_again_running_or_finished(
    fake: Fake, workers: ScheduledWorkers, cell: Cell, tmp_path: Path
) -> None:
    fake.at_end = None
    workers.start(cell)
    workers.close()
    with ScheduledWorkers(tmp_path / "small", Scheduler(), 8) as again:
        future = again.start(cell)
        assert not future.done()
        fake.at_end = writes(steps=4)
        assert (future.result(5), len(fake.calls)) == ({"steps": 4}, 1)
    with ScheduledWorkers(tmp_path / "small", Scheduler(), 8) as once_more:
        assert (once_more.start(cell).result(5), len(fake.calls)) == ({"steps": 4}, 1)


def test_a_job_that_saved_at_its_time_limit_goes_on_as_often_as_it_takes(
    fake: Fake, workers: ScheduledWorkers, cell: Cell
) -> None:
    def stop_at_first(call: Any) -> None:
        writes(**({"stopped": 10} if len(fake.calls) <= 2 * MOST_LOSSES else {"steps": 5}))(call)

    fake.at_end = stop_at_first
    assert workers.start(cell).result(5) == {"steps": 5}
    assert len(fake.calls) == 2 * MOST_LOSSES + 1


def test_a_job_that_is_lost_runs_again_but_not_for_ever(fake: Fake, workers: ScheduledWorkers, cell: Cell) -> None:
    fake.at_end = lambda call: writes(steps=1)(call) if len(fake.calls) == 1 + MOST_LOSSES else None
    assert workers.start(cell).result(5) == {"steps": 1}
    workers.recorded(cell)
    fake.calls.clear()
    fake.at_end = lambda _call: None
    with raises(RunError, "base on sudoku, seed 0", f"ended {MOST_LOSSES + 1} times", "log.err", snapshot=False):
        workers.start(cell).result(5)
    assert len(fake.calls) == 1 + MOST_LOSSES


def test_an_error_of_a_job_stops_the_comparison_at_once(fake: Fake, workers: ScheduledWorkers, cell: Cell) -> None:
    fake.at_end = lambda _call: (fake.folder / "1_0_result.pkl").write_text("error") and None
    with raises(RunError, "raised an error", "log.err", snapshot=False):
        workers.start(cell).result(5)
    fake.at_end = writes(error="the code has changed")
    with raises(RunError, "the code has changed", snapshot=False):
        workers.start(cell).result(5)
    assert len(fake.calls) == 2, "after an error the job is submitted anew"


def test_jobs_are_cancelled_once_and_then_count_as_stopped(fake: Fake, workers: ScheduledWorkers, cell: Cell) -> None:
    fake.at_end = None
    future = workers.start(cell)
    workers.stop()
    workers.stop()
    assert "stopped" in future.result(5)
    assert (fake.cancelled, len(fake.calls)) == (["1"], 1)


def test_a_job_that_starts_after_an_edit_does_not_run(cell: Cell, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    scheduled._Run(replace(cell, code=("0", "1")), result, 1)()
    assert "has changed since the command started" in json.loads(result.read_text())["error"]


# --- what SLURM is told ---

SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
echo "Submitted batch job 77"
"""


def test_slurm_gets_the_resources_of_the_recipe(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("srun", "#!/bin/sh\n"),
        ("sacct", "#!/bin/sh\n"),
        ("scancel", "#!/bin/sh\n"),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    settings = Scheduler(
        minutes=90,
        partition="gpu",
        account="lab",
        gpus=1,
        cpus=4,
        memory_gb=16,
        options={"qos": "long"},
        setup=("module load x",),
    )
    with ScheduledWorkers(tmp_path / "small", settings, 8) as workers:
        workers.start(cell)
        workers.stop()
    script = (programs / "script").read_text()
    for line in (
        "time=90",
        "partition=gpu",
        "account=lab",
        "gpus-per-node=1",
        "cpus-per-task=4",
        "mem=16GB",
        "qos=long",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load x\n" in script
    (number,) = (tmp_path / "small" / "scheduler").glob("*.id")
    assert number.read_text() == "77"


def test_a_scheduler_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(ConfigError, "scheduler.type = slurm", "--jobs"):
        ScheduledWorkers(tmp_path, Scheduler(), 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with raises(ConfigError, "pip install 'unmask[slurm]'"):
        ScheduledWorkers(tmp_path, Scheduler(), 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scheduler.type=slrum", "scheduler.type = 'slrum'"),
        ("scheduler.minutes=0", "scheduler.minutes = 0"),
        ("scheduler.gpu=1", 'scheduler has no setting "gpu". Did you mean "gpus"?'),
    ],
)
def test_a_wrong_setting_of_the_scheduler_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one_run(tmp_path, override)
    assert message in str(caught.value)
