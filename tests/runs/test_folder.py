"""Run folders: one owner, one run, complete or absent checkpoints, whole lines, and a disk that
fills up."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.helpers.messages import raises
from tests.helpers.runs import start
from unmask.core.errors import RunError
from unmask.runs.checkpoints import Alone, check_disk_space, fault_of, read_manifest
from unmask.runs.folder import RunFolder

CONFIG: dict[str, Any] = {"seed": 0, "save_steps": 25, "optim": {"learning_rate": 1e-3, "betas": [0.9, 0.95]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def folder(path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(path, CONFIG, resume=False)
    yield folder
    folder.close()


def leave_a_run(path: Path, config: dict[str, Any] = CONFIG) -> None:
    """A folder as a run that logged a step leaves it."""
    folder = RunFolder(path, config, resume=False)
    folder.open_metrics(0)
    folder.log({"step": 1, "loss": 0.5})
    folder.close()


def hold(path: Path, is_held: Any, may_end: Any) -> None:
    """Own a run folder until the event is set."""
    folder = RunFolder(path, CONFIG, resume=True)
    is_held.set()
    may_end.wait(60)
    folder.close()


class FullDisk(io.StringIO):
    """A file on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def checkpoint(text: str) -> Any:
    def write(folder: Path) -> None:
        (folder / "state").write_text(text)

    return write


def test_the_configuration_is_kept_as_yaml_that_reads_back(folder: RunFolder, path: Path) -> None:
    assert yaml.safe_load((path / "config.yaml").read_text()) == CONFIG


# --- one owner ---


@pytest.mark.slow
def test_a_folder_in_use_by_another_process_is_refused_until_that_ends(path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    is_held, may_end = context.Event(), context.Event()
    owner = start(hold, path, is_held, may_end)
    assert is_held.wait(60)
    with raises(RunError, "another process", str(path), "output_dir"):
        RunFolder(path, CONFIG, resume=True)
    may_end.set()
    owner.join(60)
    RunFolder(path, CONFIG, resume=True).close()


def test_a_refused_start_gives_the_folder_back(path: Path) -> None:
    leave_a_run(path)
    with raises(RunError, "already holds a run") as refusal:
        RunFolder(path, CONFIG, resume=False)
    RunFolder(path, CONFIG, resume=True).close()
    # What was refused lives on in the trace of its error; it must not hold the folder from there.
    assert refusal.traceback


def test_a_process_that_does_not_write_takes_no_lock_and_makes_nothing(path: Path) -> None:
    other = RunFolder(path, CONFIG, resume=False, is_main=False)
    other.open_metrics(0)
    other.log({"step": 1})
    other.close()
    assert not path.exists()


# --- one run ---


def test_a_folder_that_holds_a_run_is_refused_and_nothing_of_it_changes(path: Path) -> None:
    leave_a_run(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with raises(RunError, str(path), "--resume"):
        RunFolder(path, {**CONFIG, "seed": 1}, resume=False)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_resume_with_other_settings_names_each_key_with_both_values(path: Path) -> None:
    leave_a_run(path)
    changed = {"seed": 1, "save_steps": 25, "optim": {"learning_rate": 1e-3, "betas": [0.9, 0.99]}}
    with pytest.raises(RunError) as caught:
        RunFolder(path, changed, resume=True)
    assert str(caught.value).splitlines() == [
        f"{path} was started with other settings, which a resumed run cannot change:",
        "  optim.betas: [0.9, 0.95] -> [0.9, 0.99]",
        "  seed: 0 -> 1",
        "Use the settings of the run, or set output_dir to another folder.",
    ]


def test_where_rows_come_from_is_kept_and_a_resume_on_other_rows_is_refused(path: Path) -> None:
    data = {"train": {"source": "rows.jsonl", "sha256": "ab"}}
    folder = RunFolder(path, CONFIG, resume=False, data=data)
    folder.open_metrics(0)
    folder.log({"step": 1})
    folder.close()
    assert json.loads((path / "data.json").read_text()) == data
    RunFolder(path, CONFIG, resume=True, data=data).close()
    for other in ({"train": {"source": "rows.jsonl", "sha256": "cd"}}, {}):
        with raises(RunError, "settings"):
            RunFolder(path, CONFIG, resume=True, data=other)
    assert json.loads((path / "data.json").read_text()) == data


def test_a_run_on_rows_that_a_task_makes_keeps_no_data_file(folder: RunFolder, path: Path) -> None:
    assert not (path / "data.json").exists()


@pytest.mark.parametrize(
    "key", ["reward_workers", "save_steps", "save_total_limit", "reward_timeout", "views_per_forward"]
)
def test_a_resume_may_change_what_does_not_touch_the_result(path: Path, key: str) -> None:
    leave_a_run(path)
    RunFolder(path, {**CONFIG, key: 7}, resume=True).close()
    assert yaml.safe_load((path / "config.yaml").read_text())[key] == 7


def test_a_key_that_did_not_exist_when_the_run_was_recorded_counts_as_its_default(path: Path) -> None:
    def completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
        return {"later": 1, **recorded}

    leave_a_run(path)
    with raises(RunError, "later: 1 -> 2"):
        RunFolder(path, {**CONFIG, "later": 2}, resume=True, completed=completed)
    RunFolder(path, {**CONFIG, "later": 1}, resume=True, completed=completed).close()
    assert yaml.safe_load((path / "config.yaml").read_text())["later"] == 1


def test_a_start_that_failed_before_its_first_line_leaves_no_run(path: Path) -> None:
    failed = RunFolder(path, CONFIG, resume=False)
    failed.open_metrics(-1)
    failed.close()
    RunFolder(path, {**CONFIG, "seed": 1}, resume=False).close()
    assert yaml.safe_load((path / "config.yaml").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("place", "reason"), [("taken", "is a file"), ("taken/run", "Not a directory")], ids=["a file", "below a file"]
)
def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "taken").write_text("keep me")
    with raises(RunError, str(tmp_path / place), reason, "output_dir"):
        RunFolder(tmp_path / place, CONFIG, resume=False)
    assert (tmp_path / "taken").read_text() == "keep me"


def test_a_place_that_may_not_be_written_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with raises(RunError, str(path), "Permission"):
        RunFolder(path, CONFIG, resume=False)


# --- checkpoints ---


def test_checkpoints_are_rotated_and_the_newest_kept(folder: RunFolder, path: Path) -> None:
    assert (folder.last_step(), folder.checkpoints()) == (0, [])
    for step in (9, 10, 100, 1000):
        folder.save_checkpoint(step, checkpoint(f"after {step}"), keep=2)
    assert [p.name for p in (path / "checkpoints").iterdir() if p.name != "step-00001000"] == ["step-00000100"]
    assert folder.last_step() == 1000
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert (newest / "state").read_text() == "after 1000"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda p: (p / "state").write_text("after 2?"), None),
        (lambda p: (p / "state").write_text("half"), "state has 4 bytes instead of 8"),
        (lambda p: (p / "state").unlink(), "state is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "it has no readable manifest.json"),
    ],
    ids=["other bytes", "cut", "gone", "no manifest"],
)
def test_rotation_does_not_count_a_damaged_checkpoint_so_the_last_good_one_stays(
    folder: RunFolder, damage: Any, fault: str | None
) -> None:
    for step in (10, 20):
        folder.save_checkpoint(step, checkpoint(f"after {step}"), keep=2)
    newest = folder.checkpoints()[-1]
    damage(newest)
    assert fault_of(newest) == (fault or "state has changed since it was written")
    # Of bytes that changed in place under the same size only a full reading tells, and only the
    # newest is read in full.
    assert fault_of(newest, thorough=False) == fault
    folder.save_checkpoint(30, checkpoint("after 30"), keep=2)
    kept = [p.name[-2:] for p in folder.checkpoints()]
    assert kept == (["10", "20", "30"] if fault else ["20", "30"])


def test_a_checkpoint_that_does_not_read_back_stops_the_run_before_anything_is_deleted(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_checkpoint(1, checkpoint("good"), keep=1)
    monkeypatch.setattr("unmask.runs.folder.fault_of", lambda *_, **__: "state has changed since it was written")
    with raises(RunError, "state", "no older checkpoint was deleted"):
        folder.save_checkpoint(2, checkpoint("bad"), keep=1)
    assert [p.name[-1] for p in folder.checkpoints()] == ["1", "2"]


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_is_put_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(path, CONFIG, resume=False)
    with folder.written_aside(folder.best) as aside:
        (aside / "model").write_text("first")
    rename = Path.rename

    def die_between(self: Path, target: Path) -> Path:
        if target == folder.best:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", die_between)
    with pytest.raises(KeyboardInterrupt), folder.written_aside(folder.best) as aside:
        (aside / "model").write_text("second")
    monkeypatch.undo()
    folder.close()
    assert not folder.best.exists()
    RunFolder(path, CONFIG, resume=True).close()
    assert (folder.best / "model").read_text() == "first"
    assert not list(path.glob(".replaced-*"))


def test_a_disk_without_room_refuses_before_anything_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
    check_disk_space(path, 50 * 2**20, 7)
    with raises(RunError, str(path), "100.0 MiB", "90.0 MiB", "16.0 MiB", "step 7", "--resume"):
        check_disk_space(path, 90 * 2**20, 7)


class OneOfTwo(Alone):
    """A rank of two, whose peer agrees to everything and has written `theirs`."""

    count = 2

    def __init__(self, index: int, theirs: dict[str, Any]) -> None:
        self.index, self.theirs = index, theirs

    def objects(self, value: Any) -> list[Any]:
        return [value, self.theirs]


def test_the_manifest_takes_the_hashes_that_other_ranks_computed(folder: RunFolder) -> None:
    def write(aside: Path) -> list[Path]:
        (aside / "mine").write_text("1")
        (aside / "theirs").write_text("22")
        return [aside / "mine"]

    # Another hash than that of the file shows that the main rank does not read a file of its peer.
    folder.save_checkpoint(1, write, 1, OneOfTwo(0, {"theirs": (2, "hash of rank 1")}))
    files = read_manifest(folder.checkpoints()[0])["files"]
    assert files["theirs"] == [2, "hash of rank 1"]
    assert files["mine"][1] == sha256(b"1").hexdigest()


@pytest.mark.parametrize(("index", "notices"), [(0, False), (1, True)])
def test_each_rank_reads_a_share_of_the_files_back(folder: RunFolder, index: int, notices: bool) -> None:
    def write(aside: Path) -> None:
        for name in ("a", "b"):
            (aside / name).write_text("x")

    folder.save_checkpoint(1, write, 1)
    (folder.checkpoints()[0] / "b").write_text("y")
    fault = fault_of(folder.checkpoints()[0], share=slice(index, None, 2))
    assert fault == ("b has changed since it was written" if notices else None)


def test_a_rank_that_does_not_see_the_new_folder_says_that_the_disk_must_be_shared(path: Path) -> None:
    # The main rank creates the folder; this rank has another disk.
    other = RunFolder(path, CONFIG, resume=False, is_main=False)
    with raises(RunError, "rank 1", "output_dir", "disk that all ranks share"):
        other.save_checkpoint(1, lambda aside: None, 1, OneOfTwo(1, {}))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors and torch.save raise on a disk that is really full.
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("[enforce fail at inline_container.cc:815] . PytorchStreamWriter failed writing file data/0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_leaves_the_checkpoints_as_they_were_and_says_so(
    folder: RunFolder, path: Path, error: Exception
) -> None:
    folder.save_checkpoint(1, checkpoint("good"), keep=1)

    def fail(aside: Path) -> None:
        (aside / "state").write_text("ha")
        raise error

    with raises(RunError, str(path), "disk is full", "step 1", "--resume"):
        folder.save_checkpoint(2, fail, keep=1)
    assert [p.name for p in (path / "checkpoints").iterdir()] == ["step-00000001"]
    assert (folder.checkpoints()[0] / "state").read_text() == "good"


def test_a_fault_that_is_not_the_disks_passes_unchanged_and_leaves_no_checkpoint(folder: RunFolder, path: Path) -> None:
    def fail(_: Path) -> None:
        raise KeyError("a bug of ours")

    with pytest.raises(KeyError, match="a bug of ours"):
        folder.save_checkpoint(1, fail, keep=1)
    assert list((path / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_was_being_written_when_the_process_was_killed_is_removed(path: Path) -> None:
    leave_a_run(path)
    for place in ("checkpoints/.incomplete-step-00000005", ".incomplete-final"):
        (path / place).mkdir(parents=True)
        (path / place / "model.safetensors").write_text("half")
    folder = RunFolder(path, CONFIG, resume=True)
    assert folder.last_step() == 0
    folder.close()
    assert list(path.glob("**/.incomplete-*")) == []


def test_a_damaged_checkpoint_is_named_with_what_to_do(folder: RunFolder, path: Path) -> None:
    folder.save_checkpoint(3, checkpoint("x"), keep=1)
    (folder.checkpoints()[0] / "state").write_text("y")
    with raises(RunError, f"{path}/checkpoints/step-00000003", "state", "Remove"):
        folder.newest_checkpoint()


def test_the_finished_model_replaces_an_earlier_one_whole(folder: RunFolder) -> None:
    for text, extra in (("first", True), ("second", False)):
        with folder.written_aside(folder.final) as aside:
            (aside / "model").write_text(text)
            if extra:
                (aside / "left over").write_text("")
    assert [(file.name, file.read_text()) for file in folder.final.iterdir()] == [("model", "second")]


# --- metrics ---


def test_metrics_are_one_object_a_line_and_are_appended_to(folder: RunFolder, path: Path) -> None:
    folder.open_metrics(0)
    folder.log({"step": 1, "loss": 0.5})
    folder.log({"step": 2, "loss": 0.25})
    assert [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
    ]


def test_half_a_line_and_lines_that_are_done_again_are_dropped(folder: RunFolder, path: Path) -> None:
    kept = '{"step": 0, "eval": 1}\n{"step": 1}\n{"step": 2}\n'
    (path / "metrics.jsonl").write_text(kept + '{"step": 3}\n{"step": 4, "lo')
    folder.open_metrics(2)
    folder.log({"step": 3, "again": True})
    assert (path / "metrics.jsonl").read_text() == kept + '{"step": 3, "again": true}\n'


def test_a_disk_that_is_full_when_a_line_is_logged_is_explained(
    folder: RunFolder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_checkpoint(4, checkpoint("good"), keep=1)
    folder.open_metrics(4)
    monkeypatch.setattr(folder, "_metrics", FullDisk())
    with raises(RunError, str(path), "disk is full", "step 4"):
        folder.log({"step": 5})


@pytest.mark.parametrize("target", ["nowhere", "elsewhere"])
def test_a_link_in_the_place_of_a_model_is_replaced_and_not_followed(path: Path, target: str) -> None:
    (path.parent / "elsewhere").mkdir()
    (path.parent / "elsewhere" / "mine").write_text("kept")
    with closing(RunFolder(path, {}, resume=False)) as folder:
        folder.final.symlink_to(path.parent / target)
        with folder.written_aside(folder.final) as aside:
            (aside / "config.json").write_text("{}")
        assert [file.name for file in folder.final.iterdir()] == ["config.json"]
        assert not folder.final.is_symlink()
    assert (path.parent / "elsewhere" / "mine").read_text() == "kept"
    assert not list(path.glob(".*"))


def test_a_folder_with_other_files_is_refused_and_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("mine: 1  # and a comment\n")
    with raises(RunError, "not a run folder"):
        RunFolder(path, {}, resume=True)
    assert (path / "config.yaml").read_text() == "mine: 1  # and a comment\n"
    assert [file.name for file in path.iterdir()] == ["config.yaml"]
