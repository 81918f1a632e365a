"""Files and folders are replaced whole or not at all, and a lock has one owner."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import RunError
from unmask.runs.atomic import folder_replaced_whole, replaced_whole, take_lock, tidy, write_atomically


def test_what_fails_while_a_file_is_replaced_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with replaced_whole(tmp_path / "a.txt") as aside:
            aside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.json"
    write_atomically(target, "old")
    write_atomically(target, "new")
    assert target.read_text() == "new"

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(target, "lost")
    assert target.read_text() == "new"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target, aside = tmp_path / "model", tmp_path / ".incomplete-model"

    def write(name: str, fails: bool = False) -> None:
        with folder_replaced_whole(target, aside) as folder:
            (folder / name).write_text("x")
            if fails:
                raise KeyError(name)

    write("first")
    with pytest.raises(KeyError, match="half"):
        write("half", fails=True)
    assert [path.name for path in target.iterdir()] == ["first"]
    write("second")
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed_and_what_it_was_replacing_is_put_back(tmp_path: Path) -> None:
    for name in (".incomplete-new", ".replaced-old", ".replaced-done", "done"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("x")
    tidy(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "done/done",
        "old/.replaced-old",
    ]


def test_a_lock_has_one_owner_until_it_is_closed(tmp_path: Path) -> None:
    with take_lock(tmp_path / "run.lock"), raises(RunError, "another process"):
        take_lock(tmp_path / "run.lock")
    take_lock(tmp_path / "run.lock").close()
