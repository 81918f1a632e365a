"""Processes that are killed or hang lose nothing that was saved."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import (
    exit_code_of,
    metrics,
    pretrain_recipe,
    start,
    steps_saved,
    train_recipe,
    unmask_train,
    weights,
)
from unmask.core.errors import RunError
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.runs.folder import RunFolder
from unmask.trainer import Trainer
from unmask.trainer.pretrain import pretrain

pytestmark = pytest.mark.slow


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Each of these functions makes the process kill itself at a certain moment.


def while_a_checkpoint_is_written() -> None:
    """Some files of the checkpoint exist, and its folder is not renamed yet."""
    from unmask.trainer.distributed.state import RunState

    write = RunState.write

    def write_and_die(self: Any, folder: Path, *working: Any) -> None:
        write(self, folder, *working)
        if "step-00000004" in folder.name:
            (folder / "state-00000.safetensors").write_bytes(b"half")
            die()

    RunState.write = write_and_die


def while_a_line_is_logged() -> None:
    log = RunFolder.log

    def log_and_die(self: Any, line: dict[str, Any]) -> None:
        if line["step"] == 5:
            self._metrics.write('{"step": 5, "lo')
            self._metrics.flush()
            die()
        log(self, line)

    RunFolder.log = log_and_die


def while_the_final_model_is_written() -> None:
    import unmask.models.adapter_folders as adapters

    save = adapters.save_model

    def save_and_die(denoiser: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        save(denoiser, tokenizer, folder, *rest)
        (folder / "model.safetensors").write_bytes(b"half")
        die()

    adapters.save_model = save_and_die


def before_the_first_checkpoint() -> None:
    log = RunFolder.log

    def log_and_die(self: Any, line: dict[str, Any]) -> None:
        log(self, line)
        if line["step"] == 1:
            die()

    RunFolder.log = log_and_die


MOMENTS = [
    (before_the_first_checkpoint, []),
    (while_a_checkpoint_is_written, [2]),
    (while_a_line_is_logged, [2, 4]),
    (while_the_final_model_is_written, [4, 6]),
]


def train_until(moment: Callable[[], None], recipe: TrainRecipe) -> None:
    moment()
    Trainer(recipe).train()


def pretrain_until(moment: Callable[[], None], recipe: PretrainRecipe) -> None:
    moment()
    pretrain(recipe)


def check_what_a_kill_left(folder: Path, saved: list[int]) -> None:
    assert steps_saved(folder) == saved
    assert not (folder / "final").exists()


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trainer(train_recipe(tiny_model, tmp_path_factory.mktemp("whole") / "run")).train()


@pytest.fixture(scope="module")
def whole_pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(pretrain_recipe(tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize(("moment", "saved"), MOMENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_training_that_is_killed_and_resumed_is_the_uninterrupted_run(
    whole: Path, tiny_model: Path, tmp_path: Path, moment: Callable[[], None], saved: list[int]
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    assert exit_code_of(train_until, moment, recipe) == -signal.SIGKILL
    check_what_a_kill_left(tmp_path / "run", saved)
    folder = Trainer(recipe, resume=True).train()
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)
    assert not list(folder.glob("**/.incomplete-*"))


@pytest.mark.parametrize(("moment", "saved"), MOMENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_pretraining_that_is_killed_and_resumed_is_the_uninterrupted_run(
    whole_pretraining: Path, tmp_path: Path, moment: Callable[[], None], saved: list[int]
) -> None:
    recipe = pretrain_recipe(tmp_path / "run")
    assert exit_code_of(pretrain_until, moment, recipe) == -signal.SIGKILL
    check_what_a_kill_left(tmp_path / "run", saved)
    folder = pretrain(recipe, resume=True)
    assert weights(folder) == weights(whole_pretraining)
    assert metrics(folder) == metrics(whole_pretraining)


def resume(recipe: TrainRecipe) -> None:
    Trainer(recipe, resume=True).train()


def test_a_run_that_is_killed_repeatedly_ends_with_the_same_model(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    for num_lines in (2, 4, 6):
        process = start(resume, recipe)
        deadline = time.monotonic() + 60
        lines = tmp_path / "run" / "metrics.jsonl"
        while process.is_alive() and not (lines.exists() and lines.read_text().count("\n") >= num_lines):
            assert time.monotonic() < deadline
        process.kill()
        process.join(60)
    folder = Trainer(recipe, resume=True).train()
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)


# --- processes that hang ---


def train_and_print(model: Path, folder: Path, settings: tuple[str, ...], printed: Path) -> None:
    """Run `unmask train`, and write its output to a file."""
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(unmask_train(model, folder, *settings))


def train_on_a_terminal(model: Path, folder: Path, terminal: str) -> None:
    """Run `unmask train` without an end as the process that a terminal belongs to."""
    os.setsid()
    # Tests that run under nohup pass on that the signal of a closed terminal is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # The first terminal that a new session opens is its own.
    theirs = os.open(terminal, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(theirs, descriptor)
    # The streams of a process that is started by a server are not those of a terminal.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(d, mode) for d, mode in ((0, "r"), (1, "w"), (2, "w")))
    # A normal exit would flush the streams of the closed terminal, which fails.
    os._exit(unmask_train(model, folder, "max_steps=100000"))


def test_a_process_whose_reward_hangs_ends_with_a_message(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n\ndef hangs(completions, **_):\n    time.sleep(10_000)\n\nhangs.per_completion = True\n"
    )
    printed, settings = tmp_path / "printed.txt", ("reward_timeout=0.5", f"reward_funcs=[{tmp_path}/mine.py:hangs]")
    assert exit_code_of(train_and_print, tiny_model, tmp_path / "run", settings, printed, timeout=60) == 2
    said = printed.read_text()
    assert 'RewardError: reward function "hangs" did not return within 0.5 s' in said
    assert "Traceback" not in said


def test_a_terminal_that_is_closed_stops_the_run_in_good_order(tiny_model: Path, tmp_path: Path) -> None:
    """The process has a terminal of its own, which the test closes after the first lines."""
    ours, theirs = os.openpty()
    process = start(train_on_a_terminal, tiny_model, tmp_path / "run", os.ttyname(theirs))
    try:
        while not steps_saved(tmp_path / "run"):
            assert process.is_alive()
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 65536)
        os.close(theirs)
        os.close(ours)
        process.join(120)
        assert process.exitcode == 128 + signal.SIGHUP
    finally:
        process.kill()
    last = steps_saved(tmp_path / "run")[-1]
    assert metrics(tmp_path / "run")[-1]["step"] == last


def test_a_disk_without_space_for_a_checkpoint_is_reported_before_the_first_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.runs.checkpoints.RESERVED", 2**60)
    with raises(RunError, "the disk has", "a checkpoint needs 0.1 MiB", "--resume", snapshot=False):
        Trainer(train_recipe(tiny_model, tmp_path / "run")).train()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
