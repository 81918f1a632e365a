"""A server and a run in processes of their own: either is killed with kill -9, and the run ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.runs import metrics, start, train_recipe, unmask_train, weights
from tests.helpers.servers import get, serve_folder
from unmask.runs.metrics import read_metrics
from unmask.sampling.remote.app import listening_socket
from unmask.trainer import Trainer

pytestmark = pytest.mark.slow

EACH_STEP = ("save_steps=1", "reward_workers=0")


def free_port() -> int:
    bound = listening_socket("127.0.0.1", 0)
    port = int(bound.getsockname()[1])
    bound.close()
    return port


@contextmanager
def server_process(model: Path, port: int, folder: Path) -> Iterator[int]:
    """Serve a model in a process of its own, and yield its id once it answers."""
    process = start(serve_folder, str(model), port, str(folder))
    for _ in range(1200):
        try:
            get(f"http://127.0.0.1:{port}", "/health")
            break
        except Exception:  # it has not begun to listen
            time.sleep(0.1)
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def overrides(port: int, folder: Path) -> tuple[str, ...]:
    url = f"rollout_engine.urls=[http://127.0.0.1:{port}]"
    return (
        *EACH_STEP,
        "rollout_engine.type=http",
        url,
        f"rollout_engine.weights_dir={folder}",
        "rollout_engine.max_wait=120",
    )


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    return Trainer(train_recipe(tiny_model, tmp_path_factory.mktemp("local") / "run", *EACH_STEP)).train()


def test_a_run_survives_the_death_of_its_server(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "w", free_port()
    folder.mkdir()
    # The second server is in a process that is ready, but listens only when the first is dead.
    with server_process(tiny_model, port, folder) as server:
        process = start(train_in_process, str(tiny_model), str(tmp_path / "run"), overrides(port, folder))
        wait_for_steps(tmp_path / "run", 2)
        os.kill(server, signal.SIGKILL)
    with server_process(tiny_model, port, folder):
        process.join(120)
    assert process.exitcode == 0
    assert "does not answer" in (tmp_path / "run.txt").read_text()
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


def test_a_server_survives_the_death_of_a_run(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "w", free_port()
    folder.mkdir()
    with server_process(tiny_model, port, folder):
        process = start(train_in_process, str(tiny_model), str(tmp_path / "run"), overrides(port, folder))
        wait_for_steps(tmp_path / "run", 2)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(read_metrics(tmp_path / "run")) < len(read_metrics(whole))
        left = list(folder.iterdir())
        recipe = train_recipe(tiny_model, tmp_path / "run", *overrides(port, folder))
        Trainer(recipe, resume=True).train()
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)
    assert left, "the killed run left weights behind"
    assert list(folder.iterdir()) == [], "the resumed run has removed them"


def train_in_process(model: str, folder: str, settings: tuple[str, ...]) -> None:
    """Run `unmask train` and write what it prints to a file."""
    with Path(f"{folder}.txt").open("w", buffering=1) as out:
        os.dup2(out.fileno(), 2)
        sys.exit(unmask_train(Path(model), Path(folder), *settings))


def wait_for_steps(folder: Path, count: int) -> None:
    """Wait until a run has logged a number of training steps."""
    for _ in range(1200):
        if (folder / "metrics.jsonl").exists() and sum("loss" in line for line in read_metrics(folder)) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{folder} has no {count} steps")
