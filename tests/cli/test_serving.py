"""`unmask serve` answers on the loopback, and explains what it cannot do."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.messages import check
from tests.helpers.runs import start, unmask
from tests.helpers.servers import get, post


def serve_to_file(model: str, file: str, *options: str) -> None:
    """Run `unmask serve` and write what it prints to a file."""
    with Path(file).open("w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        sys.exit(unmask("serve", model, *options))


def address_in(file: Path) -> str:
    """Return the address that a server has printed."""
    for _ in range(600):
        if file.exists() and "listening on " in (text := file.read_text()):
            return text.partition("listening on ")[2].split()[0]
        time.sleep(0.1)
    raise TimeoutError(file.read_text())


@pytest.mark.slow
def test_a_server_answers_until_it_is_stopped(tiny_model: Path, tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    process = start(serve_to_file, str(tiny_model), str(printed), "--port", "0", "--max-rows", "2")
    url = address_in(printed)
    assert url.startswith("http://127.0.0.1:")
    assert "warning" not in printed.read_text()
    assert get(url, "/get_model_info").json()["model_path"] == str(tiny_model)
    request = {"input_ids": [[4, 5]], "sampling_params": {"max_new_tokens": 8}, "return_step_maps": True}
    assert len(post(url, request).json()[0]["output_ids"]) in (8, 128)
    assert post(url, request | {"input_ids": [[4]] * 3}).status_code == 400
    process.terminate()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "int4"), ("int4",)),
        (("--weights-dir", "nowhere"), ("--weights-dir nowhere",)),
        (("--host", "256.0.0.1"), ("256.0.0.1", "--port")),
    ],
)
def test_a_server_that_cannot_start_says_why(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], words: tuple[str, ...]
) -> None:
    assert unmask("serve", tiny_model, *options) == 2
    check(capsys.readouterr().err, *words, snapshot="256" not in options[1])


def test_missing_packages_are_named(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.sampling.remote import app

    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert unmask("serve", tiny_model) == 2
    check(capsys.readouterr().err, "starlette and uvicorn", "unmask[serve]")
