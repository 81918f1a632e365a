"""Worker processes: their results, and the effect of hangs, crashes and stray output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import RewardError
from unmask.rewards.workers import WorkerOutcome, Workers

pytestmark = pytest.mark.slow

MODULE = """
import os, re, signal, sys, time
from unmask.rewards import Score

def descriptors():
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2 and writes(int(name))]

def writes(end):
    import fcntl
    try:
        return fcntl.fcntl(end, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        return False

def scribble():
    for end in descriptors():
        os.write(end, b'["forged", ""]\\n[[9.0], ""]\\nno end of line')

def do(what):
    if what == "hang":
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    if what == "nap":
        time.sleep(1.4)
    if what == "backtrack":
        return bool(re.match(r"(a+)+b", "a" * 60))
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        sys.exit("bye")
    if what == "eat":
        return len(bytearray(8 * 2**30))
    if what == "print":
        print("noise" * 1000); sys.stdin.read()
    if what == "pid":
        return os.getpid()
    if what == "fork" and not os.fork():
        return "the child's"
    if what == "fork and raise" and not os.fork():
        raise ValueError("the child's")
    if what == "fork and go on" and not os.fork():
        while True:
            time.sleep(0.01)
            scribble()
    if what.startswith("leave a child "):
        if not os.fork():
            os.setsid()
            with open(what.removeprefix("leave a child "), "w") as file:
                file.write(str(os.getpid()))
            time.sleep(30)
            os._exit(0)
        while not os.path.exists(what.removeprefix("leave a child ")):
            time.sleep(0.01)
        os._exit(1)
    if what == "scribble":
        scribble()
    if what == "flood":
        while True:
            for end in descriptors():
                os.write(end, b"x" * 2**16)
    return [what, (1, 2.5), None, Score(0.5, "unparsed")]
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("workers") / "mine.py"
    file.write_text(MODULE)
    return str(file)


@pytest.fixture(scope="module")
def workers(path: str) -> Iterator[Workers]:
    pool = Workers(f"{path}:do", 2, timeout=1.0, memory=4 * 2**30)
    yield pool
    pool.close()


def asked(workers: Workers, *whats: str, **limits: float) -> list[WorkerOutcome]:
    return workers.map([{"what": what} for what in whats], **limits)


def test_values_come_back_in_order_by_way_of_json(workers: Workers) -> None:
    values = [outcome.value for outcome in asked(workers, *map(str, range(8)))]
    assert values == [[str(i), [1, 2.5], None, {"score": 0.5, "reason": "unparsed"}] for i in range(8)]


def test_processes_are_kept_between_calls(workers: Workers) -> None:
    pids = {outcome.value for _ in range(3) for outcome in asked(workers, "pid", "pid")}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids


@pytest.mark.parametrize("what", ["hang", "backtrack"])
def test_a_call_that_hangs_is_stopped_and_costs_only_itself(workers: Workers, what: str) -> None:
    started = time.perf_counter()
    failures = [outcome.failure for outcome in asked(workers, "a", what, "b", "c")]
    assert failures == [None, "timeout", None, None]
    assert 1.0 <= time.perf_counter() - started < 10


def test_time_without_a_processor_does_not_count(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    import unmask.rewards.workers

    asked(workers, "a")
    began = time.monotonic()
    # For half of the time, the process is ready but does not run.
    monkeypatch.setattr(unmask.rewards.workers, "_waited", lambda _: (time.monotonic() - began) / 2)
    assert asked(workers, "nap")[0].failure is None  # 1.4 s, of which 0.7 count
    monkeypatch.setattr(unmask.rewards.workers, "_waited", lambda _: time.monotonic() - began)
    started = time.monotonic()
    assert asked(workers, "hang")[0].failure == "timeout"
    assert time.monotonic() - started >= unmask.rewards.workers.PATIENCE  # times a limit of 1 s
    monkeypatch.undo()
    assert asked(workers, "nap")[0].failure == "timeout"


def test_a_call_that_kills_its_process_costs_only_itself(workers: Workers) -> None:
    assert [outcome.failure for outcome in asked(workers, "die", "a", "die", "b")] == ["crash", None, "crash", None]


def test_a_child_that_outlives_its_process_holds_nobody_up(workers: Workers, tmp_path: Path) -> None:
    (outcome,) = asked(workers, f"leave a child {tmp_path}/pid")
    assert outcome.failure == "crash"
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it is still there, and was not waited for
    assert asked(workers, "a")[0].failure is None


def test_a_file_in_the_current_folder_takes_the_place_of_no_module(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('not the standard library')")
    monkeypatch.chdir(tmp_path)
    pool = Workers(f"{path}:do", timeout=5.0)
    assert asked(pool, "a")[0].failure is None
    pool.close()


def test_an_error_is_reported_and_the_process_continues(workers: Workers) -> None:
    outcomes = asked(workers, "exit", "eat", "a")
    assert [outcome.failure for outcome in outcomes] == ["error", "error", None]
    assert outcomes[0].message == "raised SystemExit: bye"
    # The limit of address space makes an allocation fail in Python instead of exhausting the
    # machine.
    assert outcomes[1].message.startswith("raised MemoryError")


def test_what_a_call_prints_or_reads_does_not_get_between_the_replies(workers: Workers) -> None:
    outcomes = asked(workers, "print", "a")
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert outcomes[0].value[0] == "print"


@pytest.mark.parametrize("what", ["fork", "fork and raise", "scribble", "fork and go on"])
def test_what_others_write_is_taken_for_no_reply(workers: Workers, what: str) -> None:
    outcomes = asked(workers, what, "a", "b", what, "c", "d", "e")
    assert [outcome.failure for outcome in outcomes] == [None] * 7
    assert [outcome.value[0] for outcome in outcomes] == [what, "a", "b", what, "c", "d", "e"]
    workers.close()


def test_a_reply_without_an_end_is_cut_before_it_fills_the_memory(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    import unmask.rewards.workers

    monkeypatch.setattr(unmask.rewards.workers, "LARGEST_REPLY", 2**20)
    assert [outcome.failure for outcome in asked(workers, "flood", "a")] == ["crash", None]


def test_arguments_that_cannot_be_sent_are_an_error_for_the_user(workers: Workers) -> None:
    with pytest.raises(RewardError, match=r"cannot be sent to a worker process .*reward_workers=0"):
        workers.map([{"what": threading.Lock()}])


def test_calls_that_have_not_begun_within_the_budget_are_given_up(workers: Workers) -> None:
    started = time.perf_counter()
    outcomes = asked(workers, *["hang"] * 20, budget=1.5)
    assert {outcome.failure for outcome in outcomes} <= {"timeout", "no time"}
    assert outcomes[-1].failure == "no time"
    assert time.perf_counter() - started < 8
    assert asked(workers, "a")[0].failure is None


def test_threads_may_share_a_pool(workers: Workers) -> None:
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = asked(workers, f"{i}a", f"{i}b")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {i: [outcome.value[0] for outcome in outcomes] for i, outcomes in found.items()} == {
        i: [f"{i}a", f"{i}b"] for i in range(4)
    }


def test_a_function_that_is_not_there_is_an_error_for_the_user(path: str) -> None:
    with pytest.raises(RewardError, match="could not be started: .* unknown name .missing"):
        Workers(f"{path}:missing").map([{}])


def test_workers_end_with_the_process_that_began_them(path: str) -> None:
    program = (
        "import os, sys\nfrom unmask.rewards.workers import Workers\n"
        f"print(Workers({path + ':do'!r}).map([{{'what': 'pid'}}])[0].value, flush=True)\n"
        "os.kill(os.getpid(), 9) if sys.argv[1] == 'killed' else None"
    )
    for end in ("well", "killed"):
        done = subprocess.run([sys.executable, "-c", program, end], capture_output=True, text=True, timeout=60)
        pid = int(done.stdout)
        deadline = time.monotonic() + 10
        while _is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _is_running(pid), end
    assert done.returncode == -signal.SIGKILL


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
