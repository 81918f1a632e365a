"""Expected errors: a test names the class and a few words, and one snapshot file holds every full message.

    with raises(ConfigError, "learning_rate", "-1"):
        load_recipe("sudoku-tiny", {"optim.learning_rate": -1})

The words are what the message must keep whatever its wording: the key, the value that was given, and one word of the remedy.
`tests/messages.txt` holds the whole text under the name of the test, so that a change of wording is one reviewed diff and
no change of a test. `pytest --regenerate-messages` rewrites the messages of the tests that run.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FILE = ROOT / "tests" / "messages.txt"
"""Snapshot of the messages: a line `## NAME` with the test's name, and the message below it."""


class Snapshots:
    """Messages by the name of the test that provokes them.

    Args:
        file: the snapshot file; it may be missing.
        regenerate: record messages instead of comparing them.
    """

    def __init__(self, file: Path = FILE, regenerate: bool = False) -> None:
        self.file, self.regenerate = file, regenerate
        self.recorded = read(file)
        self.counts: dict[str, int] = {}

    def check(self, message: str, test: str) -> None:
        """Compare a message with the recorded one, or record it.

        Args:
            message: full text of the message.
            test: name of the test. Its second message is recorded as `NAME #2`, and so on.
        """
        self.counts[test] = self.counts.get(test, 0) + 1
        name = test if self.counts[test] == 1 else f"{test} #{self.counts[test]}"
        message = normalised(message)
        if self.regenerate:
            self.recorded[name] = message
        elif name not in self.recorded:
            pytest.fail(f"{self.file.name} has no message of {name}. Run pytest --regenerate-messages on this test.")
        else:
            assert message == self.recorded[name], "the message has changed: read it, then --regenerate-messages"

    def save(self) -> None:
        """Write the recorded messages, except those of tests that no longer exist."""
        kept = {name: message for name, message in self.recorded.items() if exists(name)}
        blocks = (f"## {name}\n{message}\n" for name, message in sorted(kept.items()))
        self.file.write_text("\n".join(blocks), encoding="utf-8")


def exists(name: str) -> bool:
    """Return True if the repository has the test that a message is recorded for."""
    path, _, test = name.partition("::")
    file, function = ROOT / path, re.split(r"[\[ ]", test.rpartition("::")[2])[0]
    return file.is_file() and f"def {function}(" in file.read_text(encoding="utf-8")


def read(file: Path) -> dict[str, str]:
    """Return the messages of a snapshot file by name; none if the file is missing."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    blocks = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {name: message.strip("\n") for name, _, message in (block.partition("\n") for block in blocks)}


def normalised(message: str) -> str:
    """Return a message in which temporary folders and the repository's folder have fixed names."""
    # The number after the name of a temporary folder counts the folders of the same name.
    temporary = re.escape(tempfile.gettempdir()) + r"/pytest-of-\w+/pytest-\d+(?:/popen-gw\d+)?/([\w-]+?)\d+(?!\w)"
    message = re.sub(temporary, r"<tmp>/\1", message)
    return message.replace(str(ROOT), "<repository>").strip("\n")


SNAPSHOTS = Snapshots()
"""The snapshots of this test session; `conftest.py` sets whether they are recorded, and saves them."""


@contextmanager
def raises(
    error: type[BaseException], *words: str, snapshot: bool = True
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect an error whose message holds the given words and equals the recorded one.

    Args:
        error: class of the error; a subclass of it does not count.
        words: parts of the message that do not depend on its wording, such as a key, a value or a command.
        snapshot: compare the message with `tests/messages.txt`. Set it to False if the message differs between runs.
    """
    with pytest.raises(error) as caught:
        yield caught
    assert caught.type is error
    check("\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())]), *words, snapshot=snapshot)


def check(message: str, *words: str, snapshot: bool = True) -> None:
    """Check a message that the test holds as text, such as one that a command printed; see `raises`."""
    for word in words:
        assert word in message, f"{word!r} is missing in: {message}"
    if snapshot:
        SNAPSHOTS.check(message, os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])
