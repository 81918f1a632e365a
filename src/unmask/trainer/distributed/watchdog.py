"""A run of several processes in which one is stuck: it is named, with what it was doing, and the run ends.

In a collective everybody waits for the last one, by default for half an hour, and is then told that "a timeout" happened. Here
each process counts how far it is (steps, phases, meetings with the others, forwards), and a thread of each writes that on a board
that all can read. When nobody has got any further for a time, the one that is least far is what the others wait for.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from torch import nn

from unmask.core.errors import LostProcessError

_LOST = re.compile(r"gloo|nccl|onnection (closed|reset|refused)|roken pipe|ocket|imed ?out", re.IGNORECASE)
"""What torch's errors say when the other end of a connection is gone."""
_SOURCE = re.compile(r"^\[/[^\]]*\] ")
"""Where in torch's own sources an error is from."""
LOOKS = 10
"""Looks at the board in the time after which a run counts as stuck."""
FAREWELL = 10.0
"""Seconds that process 0 waits for the others at the end."""
LONGEST_PAUSE = 5.0
"""Seconds between two looks, at most."""


class Board(Protocol):
    """What the processes write on and read: torch's key-value store."""

    def set(self, key: str, value: str) -> None:
        """Write."""
        ...

    def get(self, key: str) -> bytes:
        """Read; waits until it is there."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a number, 0 at first; returns the sum."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """How far a process is."""

    phases: int = 0
    """Begun since the start; all processes go through the same ones."""
    meetings: int = 0
    """In this phase: collectives that it has come to. Whoever waits in one is further than whoever has yet to come."""
    forwards: int = 0
    """Since the last meeting."""
    signs: int = 0
    """Of life, in this phase: rewards called, files written. Each process has its own number of them."""
    step: int = 0
    phase: str = "start"
    looks: int = 0
    """Of its watchdog, which go on where the process itself does not."""

    def progress(self) -> tuple[int, int, int]:
        """What grows as the process gets on, and says which of two is further."""
        return self.phases, self.meetings, self.forwards


class Watchdog:
    """Watches the processes of a run from one of them; for a single process it does nothing.

    Args:
        rank: of this process.
        count: of processes.
        timeout: seconds without any progress, on any process, after which the run is stuck.
        folder: of the run, for the message.
        board: where the processes meet; default the store that torch's launchers set up.
    """

    def __init__(self, rank: int, count: int, timeout: float, folder: Path, board: Board | None = None) -> None:
        self.rank, self.count, self.timeout, self.folder = rank, count, timeout, folder
        self.place = Place()
        self._stop = threading.Event()
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._board = board

    def __enter__(self) -> Watchdog:
        if self.count > 1:
            self._board = self._board or _open_board()
            self._exchange(0)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._stop.set()
        if self._is_ending.is_set() and self._thread is not None:
            # The others are ending, too, and their going is what failed here. The thread says why, and ends this process.
            self._thread.join()
        if self._thread is not None and (error is None or getattr(error, "is_agreed", False)):
            self._thread.join()
            self._leave()

    def _leave(self) -> None:
        """Process 0 goes last, for the board goes with it."""
        assert self._board is not None
        deadline = time.monotonic() + FAREWELL
        left = self._board.add("unmask/left", 1)
        while self.rank == 0 and left < self.count and time.monotonic() < deadline:
            time.sleep(0.01)
            left = self._board.add("unmask/left", 0)

    def begin(self, step: int, phase: str) -> None:
        """Say what this process is about to do, in which step (from 1)."""
        self.place = Place(self.place.phases + 1, step=step, phase=phase, looks=self.place.looks)

    def meet(self) -> None:
        """Say that this process has come to a collective."""
        self.place = replace(self.place, meetings=self.place.meetings + 1, forwards=0)

    def live(self) -> None:
        """Give a sign of life in what only this process does, and may do for long."""
        self.place = replace(self.place, signs=self.place.signs + 1)

    def count_forwards(self, module: nn.Module) -> None:
        """Take every forward of `module` for progress."""

        def count(*_: object) -> None:
            self.place = replace(self.place, forwards=self.place.forwards + 1)

        module.register_forward_pre_hook(count)

    def _watch(self) -> None:
        pause = min(LONGEST_PAUSE, self.timeout / LOOKS)
        history = History(time.monotonic())
        looks = 0
        while not self._stop.wait(pause):
            looks += 1
            try:
                places = self._exchange(looks)
            except Exception:  # whatever a store raises whose host is gone
                if not self._stop.wait(self.timeout):
                    _end(
                        "process 0, through which the processes of this run found each other, is gone",
                        self.folder,
                        True,
                    )
                return
            found = history.look(time.monotonic(), places, self.timeout)
            if found is not None:
                self._is_ending.set()
                _end(found, self.folder, self.rank == history.speaker, self.rank in history.culprits, linger=2 * pause)

    def _exchange(self, looks: int) -> dict[int, Place]:
        """Write where this process is, and read where all are."""
        assert self._board is not None
        self._board.set(f"unmask/place/{self.rank}", json.dumps(asdict(replace(self.place, looks=looks))))
        return {rank: Place(**json.loads(self._board.get(f"unmask/place/{rank}"))) for rank in range(self.count)}


@contextmanager
def losses_explained(count: int) -> Iterator[None]:
    """Turn what torch raises when a process of several is gone into a LostProcessError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if count == 1 or not _LOST.search(str(error)):
            raise
        raise LostProcessError(
            f"another process of this run is gone ({_SOURCE.sub('', str(error).splitlines()[0])[:150]}). "
            "Its own message, or the launcher's, says why. What was saved is good: start again with --resume."
        ) from error


class History:
    """What one watchdog has seen so far.

    Args:
        now: seconds on any clock.
    """

    def __init__(self, now: float) -> None:
        self._progressed = now
        self._heard: dict[int, float] = {}
        self._last: dict[int, Place] = {}
        self.culprits: set[int] = set()
        """The processes that the others wait for."""
        self.speaker = 0
        """The first process whose watchdog is alive: it speaks for all."""

    def look(self, now: float, places: Mapping[int, Place], timeout: float) -> str | None:
        """Take in where the processes are; what is wrong, in words, if nothing has happened for `timeout` seconds."""
        for rank, place in places.items():
            before = self._last.get(rank)
            if before is None or before.looks != place.looks:
                self._heard[rank] = now
            if before is None or (before.progress(), before.signs) != (place.progress(), place.signs):
                self._progressed = now
        self._last = dict(places)
        if now - self._progressed < timeout:
            return None
        silent = {rank for rank, when in self._heard.items() if now - when >= timeout / 2}
        least = min(place.progress() for place in places.values())
        self.culprits = silent or {rank for rank, place in places.items() if place.progress() == least}
        self.speaker = min(set(places) - silent, default=0)
        return _accusation(self.culprits, silent, places, timeout)


def _accusation(culprits: set[int], silent: set[int], places: Mapping[int, Place], timeout: float) -> str:
    """Who is stuck, where, and since when."""
    named = ", ".join(
        f"process {rank} (step {places[rank].step}, {places[rank].phase}"
        + (", and it gives no sign of life)" if rank in silent else ")")
        for rank in sorted(culprits)[:8]
    )
    if len(culprits) == len(places):
        return f"for {timeout:g} s no process has got any further. All stand at the same place: {named}"
    others = sorted({f"step {p.step}, {p.phase}" for rank, p in places.items() if rank not in culprits})
    return f"for {timeout:g} s no process has got any further. The others (in {' and '.join(others)}) wait for {named}"


def _open_board() -> Board:
    """A connection of our own to the store of the launcher, or of process 0: a waiting main thread keeps the other one busy."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Any = TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5), wait_for_workers=False)
    return store  # type: ignore[no-any-return]


def _end(message: str, folder: Path, is_speaker: bool, is_culprit: bool = False, linger: float = 0.0) -> NoReturn:
    """End this process here and now: its main thread sits in a call that no exception reaches."""
    with contextlib.suppress(Exception):
        if is_culprit:
            faulthandler.dump_traceback(sys.stderr)
        if is_speaker:
            print(
                f"{LostProcessError.__name__}: {message}. The run was ended; what was saved in {folder} is good: "
                "start again with --resume. If a step is only slow, raise stuck_timeout.",
                file=sys.stderr,
                flush=True,
            )
    # The others read the board, too, which may be gone with this process.
    time.sleep(linger)
    os._exit(LostProcessError.exit_code)
