"""Watch over the progress of all ranks. If no rank makes progress, the run ends with an error that
names the rank for which the others wait.

A collective waits for the last rank, by default for half an hour, and then reports a timeout
without a name. `torch.distributed.monitored_barrier` names a rank but cannot replace this module. A
rank that hangs inside a phase holds the others in a collective of that phase, so none of them
reaches a barrier. The timeout of a barrier would also end a step that is slow but makes progress.
So each rank counts its phases, collectives and forward passes. A thread of each rank writes these
counts to torch's key-value store and reads the counts of the other ranks. If no count has changed
for `stuck_timeout` seconds, the others wait for the rank with the lowest counts.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import nn

from unmask.core.errors import LostProcessError

_LOST = re.compile(r"gloo|nccl|onnection (closed|reset|refused)|roken pipe|ocket|imed ?out", re.IGNORECASE)
"""Words that occur in torch's errors after another rank has closed its connection."""
_SOURCE = re.compile(r"^\[/[^\]]*\] ")
"""Location in torch's own source code, with which some of its error messages begin."""
_ENDED = "ended"
"""Key in the store that holds the exit code of a rank which ends with an error of its own."""
BEATS = 10
"""Number of times that a rank publishes its position within `stuck_timeout`."""
SET_UP = "set-up"
"""Phase before a run begins. A rank may load a large model for minutes while the others wait, so a
rank in this phase does not count as stuck."""
LONGEST_PAUSE = 5.0
"""Maximum number of seconds between two publications of a rank's position."""
FAREWELL = 10.0
"""Seconds that rank 0, which hosts the store, waits for the other ranks at the end of a run."""


class Position(NamedTuple):
    """How far a rank has come. The first three counts, in this order, decide which of two ranks is
    ahead."""

    phases: int = 0
    """Number of phases that the rank has begun; all ranks go through the same phases."""
    collectives: int = 0
    """Number of collectives that the rank has entered in this phase."""
    forwards: int = 0
    """Number of forward passes since the last collective."""
    signs: int = 0
    """Number of reward calls, merged tensors, written files and bytes in this phase; this number
    differs between ranks."""
    beats: int = 0
    """Number of times that the rank has published its position; this count grows even if the rank
    itself hangs."""
    step: int = 0
    """Training step, from 1."""
    phase: str = SET_UP
    """Name of the phase."""


class Progress:
    """The progress of one rank, and a watch over all ranks while the context is open. A run of one
    rank needs no watch.

    The watch begins with the set-up of a run (see `set_up`) or, without one, with the run itself.

    Args:
        rank: index of this rank.
        count: number of ranks.
        timeout: seconds without any progress on any rank, after which the run ends.
        folder: run folder, for the message.
    """

    def __init__(self, rank: int, count: int, timeout: float, folder: Path) -> None:
        self.rank, self.count, self.timeout, self.folder = rank, count, timeout, folder
        self.position = Position()
        self._beats = 0
        self._writing: Path | None = None
        self._stop, self._is_ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._store: Any = None

    def begin(self, step: int, phase: str) -> None:
        """Begin a phase of a training step, counted from 1."""
        self.position = Position(self.position.phases + 1, step=step, phase=phase)

    def collective(self) -> None:
        """Count a collective that this rank enters."""
        self.position = self.position._replace(collectives=self.position.collectives + 1, forwards=0)

    def alive(self) -> None:
        """Count a piece of work that only this rank does, such as a reward or a file."""
        self.position = self.position._replace(signs=self.position.signs + 1)

    @contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Run a block in which a change of the size of the files in a folder counts as progress,
        because libraries that write large files report none."""
        self._writing = folder
        try:
            yield
        finally:
            self._writing = None

    def count_forwards(self, module: nn.Module) -> None:
        """Count every forward pass of a module."""

        def count(*_: object) -> None:
            self.position = self.position._replace(forwards=self.position.forwards + 1)

        module.register_forward_pre_hook(count)

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Watch a block that sets up a run. The watch goes on after the block, until the context of
        the run ends. If the block raises an error, the watch ends with the error."""
        self.__enter__()
        try:
            yield
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __enter__(self) -> Progress:
        if self.count > 1 and self._store is None:
            self._store = _open_store()
            self._exchange()
            self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._stop.set()
        if self.count == 1:
            return
        if self._is_ending.is_set():
            # The run is stuck, and this error is a consequence. The thread prints the reason and
            # ends this process.
            self._thread.join()
        if isinstance(error, LostProcessError) or not isinstance(error, Exception | None):
            return
        self._thread.join()
        is_alone = error is not None and not getattr(error, "is_agreed", False)
        with contextlib.suppress(Exception):  # the store raises various errors after its host is gone
            if is_alone and self._store.add("errors", 1) > 1:
                # The first rank with an error prints its message for all.
                self._follow(int(self._store.get(_ENDED)))
            if is_alone:
                self._store.set(_ENDED, str(getattr(error, "exit_code", 1)))
            self._leave(waits=is_alone or self.rank == 0)

    def _leave(self, *, waits: bool) -> None:
        """Note that this rank ends, and wait for the other ranks if `waits`.

        Rank 0 leaves last, because the store ends together with rank 0. A rank that ends alone also
        waits, because the others would take its closed connections for a lost rank.
        """
        deadline = time.monotonic() + FAREWELL
        left = self._store.add("left", 1)
        while waits and left < self.count and time.monotonic() < deadline:
            time.sleep(0.01)
            left = self._store.add("left", 0)

    def _watch(self) -> None:
        pause = min(LONGEST_PAUSE, self.timeout / BEATS)
        stall = Stall(self.timeout, time.monotonic())
        while not self._stop.wait(pause):
            try:
                positions = self._exchange()
                if any(position.phase == SET_UP for position in positions):
                    stall = Stall(self.timeout, time.monotonic())
                message = stall.message(time.monotonic(), positions)
                if self._store.check([_ENDED]):
                    self._follow(int(self._store.get(_ENDED)))
                is_first = message is not None and self._store.add("reported", 1) == 1
            except Exception:  # the store raises various errors after its host is gone
                if not self._stop.wait(self.timeout):
                    self._end("rank 0, which hosts the store of this run, is gone", is_first=True)
                return
            if message is not None:
                self._is_ending.set()
                self._end(message, is_first, dumps=self.rank in stall.missing, linger=2 * pause)

    def _exchange(self) -> list[Position]:
        """Publish the position of this rank, and return the positions of all ranks."""
        self._beats += 1
        position, folder = self.position, self._writing
        written = _bytes_in(folder) if folder is not None else 0
        published = position._replace(beats=self._beats, signs=position.signs + written)
        self._store.set(f"position/{self.rank}", json.dumps(published))
        return [Position(*json.loads(self._store.get(f"position/{rank}"))) for rank in range(self.count)]

    def _follow(self, exit_code: int) -> NoReturn:
        """End this process, without a message, with the exit code of a rank that has an error of
        its own. This process would wait for that rank in the next collective."""
        with contextlib.suppress(Exception):
            self._leave(waits=self.rank == 0)
        os._exit(exit_code)

    def _end(self, message: str, is_first: bool, *, dumps: bool = False, linger: float = 0.0) -> NoReturn:
        """End this process at once: its main thread waits in a call that no exception
        interrupts."""
        with contextlib.suppress(Exception):
            if dumps:
                faulthandler.dump_traceback(sys.stderr)
            if is_first:
                advice = (
                    f"What was saved in {self.folder} is complete: start the run again with --resume. "
                    "If a step is only slow, raise stuck_timeout."
                )
                print(f"{LostProcessError.__name__}: {message}. {advice}", file=sys.stderr, flush=True)
        # The other ranks still read the store, which ends with rank 0.
        time.sleep(linger)
        os._exit(LostProcessError.exit_code)


class Stall:
    """Detector that notices when no rank makes progress, and finds the ranks that the others wait
    for.

    Args:
        timeout: seconds without progress after which the run counts as stuck.
        now: current time, in seconds of any clock.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self.timeout, self._moved = timeout, now
        self._beaten: dict[int, float] = {}
        self._last: dict[int, Position] = {}
        self.missing: set[int] = set()
        """Ranks that the others wait for; empty before the run is stuck."""

    def message(self, now: float, positions: Sequence[Position]) -> str | None:
        """Compare the positions of all ranks with the earlier ones. Return a description of the
        stall, or None if there has been progress within the timeout."""
        for rank, position in enumerate(positions):
            before = self._last.get(rank)
            if before is None or before.beats != position.beats:
                self._beaten[rank] = now
            if before is None or before[:4] != position[:4]:
                self._moved = now
        self._last = dict(enumerate(positions))
        if now - self._moved < self.timeout:
            return None
        silent = {rank for rank, beaten in self._beaten.items() if now - beaten >= self.timeout / 2}
        lowest = min(position[:3] for position in positions)
        self.missing = silent or {rank for rank, position in self._last.items() if position[:3] == lowest}
        names = ", ".join(
            f"rank {rank} (step {positions[rank].step}, {positions[rank].phase}{', no sign of life' if silent else ''})"
            for rank in sorted(self.missing)[:8]
        )
        others = sorted({f"step {p.step}, {p.phase}" for rank, p in self._last.items() if rank not in self.missing})
        who = f"The others ({' and '.join(others)}) wait for" if others else "All ranks are at the same point:"
        return f"no rank has made progress for {self.timeout:g} s. {who} {names}"


@contextmanager
def lost_ranks_explained(count: int) -> Iterator[None]:
    """Turn the error that torch raises when another rank is gone into a LostProcessError that says
    what to do.

    Args:
        count: number of ranks; errors of a run of one rank pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if count == 1 or not _LOST.search(str(error)):
            raise
        raise LostProcessError(
            f"another rank of this run is gone ({_SOURCE.sub('', str(error).splitlines()[0])[:150]}). "
            "Its own message, or the launcher's, says why. What was saved is complete: start the run again with --resume."
        ) from error


def _bytes_in(folder: Path) -> int:
    """Return the total size of the files in a folder, which another thread may be writing."""
    total = 0
    with contextlib.suppress(OSError):  # a temporary file, or the folder, may be gone
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _open_store() -> Any:
    """Connect to the store of the launcher or of rank 0. The watch needs a connection of its own,
    because a main thread that waits keeps torch's connection busy.

    The launcher's store outlives the ranks that torchrun restarts, so each start has its own keys.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5), wait_for_workers=False)
    return PrefixStore(f"unmask/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
