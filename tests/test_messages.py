"""The helper for expected errors fails if a message changes or is not recorded, and records messages on request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.messages import FILE, SNAPSHOTS, Snapshots, exists, normalised, raises, read
from tests.helpers.paths import ROOT
from unmask.core.errors import ConfigError, UnmaskError

HERE = "tests/test_messages.py::test_a_recorded_message_is_compared"
RECORDED = f"## {HERE}\none\n\n## {HERE} #2\ntwo\nlines\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Snapshot file with two messages of one test."""
    path = tmp_path / "messages.txt"
    path.write_text(RECORDED)
    return path


def test_a_recorded_message_is_compared(file: Path) -> None:
    snapshots = Snapshots(file)
    snapshots.check("one", HERE)
    snapshots.check("two\nlines", HERE)
    with pytest.raises(AssertionError, match="has changed"):
        Snapshots(file).check("another", HERE)
    assert file.read_text() == RECORDED


def test_a_message_that_is_not_recorded_fails(file: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"messages\.txt has no message of tests/x\.py::test_new"):
        Snapshots(file).check("one", "tests/x.py::test_new")


def test_regenerating_records_messages_and_drops_those_of_tests_that_are_gone(file: Path) -> None:
    file.write_text(RECORDED + "\n## tests/gone.py::test_x\nold\n\n## tests/test_messages.py::test_gone[a]\nold\n")
    snapshots = Snapshots(file, regenerate=True)
    snapshots.check("changed", HERE)
    snapshots.save()
    assert read(file) == {HERE: "changed", f"{HERE} #2": "two\nlines"}


def test_a_message_names_no_folder_of_one_machine_or_run(tmp_path: Path) -> None:
    assert normalised(f"{tmp_path}/a is not in {ROOT}/b\n") == f"<tmp>/{tmp_path.name[:-1]}/a is not in <repository>/b"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError("optim.lr: 1 is too large"), ["optim.lr", "2"]),
        (UnmaskError("optim.lr: 1 is too large"), ["optim.lr"]),
    ],
    ids=["a missing word", "another class"],
)
def test_the_class_and_the_words_of_an_error_are_compared(error: Exception, words: list[str]) -> None:
    with pytest.raises((AssertionError, UnmaskError)), raises(ConfigError, *words, snapshot=False):
        raise error


def test_a_subclass_of_the_error_does_not_count() -> None:
    with pytest.raises(AssertionError), raises(UnmaskError, "optim.lr", snapshot=False):
        raise ConfigError("optim.lr: 1 is too large")


def test_the_notes_of_an_error_belong_to_its_message() -> None:
    error = ConfigError("first")
    error.add_note("second")
    with raises(ConfigError, "first", "second", snapshot=False):
        raise error


def test_every_recorded_message_belongs_to_a_test() -> None:
    assert [name for name in read(FILE) if not exists(name)] == []
    assert SNAPSHOTS.file == FILE
