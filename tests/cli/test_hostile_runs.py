"""Run folders that are damaged: every file, with every fault, under each command that reads it,
ends well or with one message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.runs import train_recipe, unmask, unmask_train
from unmask.trainer import Trainer

pytestmark = pytest.mark.slow

SETTINGS = ("log_rollouts_steps=6", "log_rollouts_guesses=2")
CHECKPOINT = "checkpoints/step-00000006"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def dangling(path: Path) -> None:
    remove(path)
    path.symlink_to(path.with_name("nowhere"))


def loop(path: Path) -> None:
    remove(path)
    path.symlink_to(path.name)


FAULTS: dict[str, Callable[[Path], object]] = {
    "gone": remove,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(b"\xff\x00\n" * 100),
    "null": lambda path: path.write_text("null\n"),
    "list": lambda path: path.write_text("[]\n"),
    "object": lambda path: path.write_text("{}\n"),
    "digits": lambda path: path.write_text("1" * 5000 + "\n"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "folder": folder,
    "dangling": dangling,
    "loop": loop,
}

READ_BY = {
    "config.yaml": ("resume", "plot", "report"),
    "run.json": ("resume",),
    "metrics.jsonl": ("resume", "plot", "report"),
    "rollouts/step-00000006.safetensors": ("report",),
    f"{CHECKPOINT}/manifest.json": ("resume", "merge"),
    f"{CHECKPOINT}/state-00000.safetensors": ("resume", "merge"),
    f"{CHECKPOINT}/config.json": ("merge",),
    "final/config.json": ("eval",),
    "final/model.safetensors": ("eval",),
    "final/tokenizer.json": ("eval",),
}


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trainer(train_recipe(tiny_model, tmp_path_factory.mktemp("runs") / "run", *SETTINGS)).train()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", READ_BY)
def test_a_damaged_file_ends_in_no_trace(
    run: Path, tiny_model: Path, tmp_path: Path, name: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in READ_BY[name]:
        place = tmp_path / command
        shutil.copytree(run, place)
        config = place / "config.yaml"
        config.write_text(config.read_text().replace(str(run), str(place)))
        FAULTS[fault](place / name)
        commands: dict[str, Callable[[], int]] = {
            "resume": lambda place=place: unmask_train(tiny_model, place, *SETTINGS, "--resume"),
            "plot": lambda place=place: unmask("plot", place, "--output", tmp_path / "a.png"),
            "report": lambda place=place: unmask("report", place, "--output", tmp_path / "a.html"),
            "merge": lambda place=place: unmask("merge", place / CHECKPOINT, tmp_path / "merged"),
            "eval": lambda place=place: unmask(
                "eval", place, "--task", "sudoku", "--rows", 1, "--steps", 4, "--output", tmp_path / "a.json"
            ),
        }
        # Any exception without a message would fail here.
        code = commands[command]()
        told = capsys.readouterr().err
        assert code in (0, 2)
        assert code == 0 or "Error: " in told
        assert "Traceback" not in told
        shutil.rmtree(tmp_path / "merged", ignore_errors=True)


def test_a_broken_link_as_checkpoints_is_refused_before_the_first_step(
    tiny_model: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    dangling(place / "checkpoints")
    assert unmask_train(tiny_model, place, *SETTINGS, "--resume") == 2
    told = capsys.readouterr().err
    assert f"RunError: {place}/checkpoints is a link to {place}/nowhere, which does not exist" in told
    assert not (place / "nowhere").exists()
    assert (place / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_binary_records_of_a_comparison_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    for content, said in ((b"\xff\n", "is not UTF-8 text"), (b"[1]\n", "line 1 is not a JSON object")):
        (tmp_path / "cells.jsonl").write_bytes(content)
        from unmask.core.errors import RunError
        from unmask.trainer.comparison.ledger import Ledger

        with pytest.raises(RunError, match=said):
            Ledger(tmp_path)
        assert unmask("report", tmp_path) == 2
        assert unmask("plot", tmp_path) == 2
        assert "Traceback" not in capsys.readouterr().err
