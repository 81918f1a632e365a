"""Rollouts of the training steps, which servers may sample one step ahead.

With a staleness of 1, the servers sample the completions of step k + 1 with the weights from which
step k starts, while this process scores the completions of step k and updates. Which weights sample
which step does not depend on speed, so a run with the same seed is the same run. The first step,
also after a resume, is sampled with its own weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from unmask.core.counter import Counter
from unmask.core.records import Row
from unmask.models import Denoiser
from unmask.sampling.engine import RolloutEngine
from unmask.sampling.remote.engine import HttpEngine
from unmask.sampling.remote.servers import POLL_SECONDS
from unmask.trainer.collect import Collector, Sampled

Rows = Callable[[int], list[Row]]
"""Function that returns the examples of a training step, for all ranks."""


class Rollouts:
    """Samples the completions of this rank for each training step.

    Args:
        collector: samples the completions of a step.
        denoiser: model that is trained.
        rows: examples of a training step.
        share: function of the number of groups that returns the slice of their completions that this
            rank owns.
        meter: counter to which the token passes of servers are added.
        max_steps: number of training steps.
        is_ahead: True to sample one step ahead; the engine is then an `HttpEngine`.
        alive: function that is called while this process waits.
        agreed: opens a block in which an error on any rank is raised on all ranks; see
            `Ranks.agreed`.
    """

    def __init__(
        self,
        collector: Collector,
        denoiser: Denoiser,
        rows: Rows,
        share: Callable[[int], slice],
        meter: Counter,
        max_steps: int,
        *,
        is_ahead: bool,
        alive: Callable[[], None] = lambda: None,
        agreed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.collector, self.denoiser, self.rows, self.share = collector, denoiser, rows, share
        self.meter, self.max_steps, self.is_ahead, self.alive = meter, max_steps, is_ahead, alive
        self.agreed = agreed
        self._pending: _Pending | None = None

    def take(self, index: int) -> Sampled | None:
        """Return the completions of the training step `index`, from 0, and begin those of the next
        step if they are sampled ahead. All ranks call this. The result is None on a rank that owns
        no completions.

        Raises:
            UnmaskError: a prompt cannot be used, or a server failed.
        """
        engine: RolloutEngine = self.collector.engine
        if self._pending is None or self._pending.index != index:
            engine.update_weights(self.denoiser, index)
            sampled, passes = self._sampled(self.rows(index), index)
        else:
            # New weights follow, which all ranks publish together or not at all.
            with self.agreed():
                sampled, passes = self._pending.result(self.alive)
        self._pending = None
        self.meter.count += passes
        if self.is_ahead and index + 1 < self.max_steps:
            engine.update_weights(self.denoiser, index)
            assert isinstance(engine, HttpEngine)
            # A tokenizer serves one thread at a time.
            engine.encode([row["prompt"] for row in self.rows(index + 1)])
            self._pending = _Pending(index + 1, lambda: self._sampled(self.rows(index + 1), index + 1))
        return sampled

    def further(self, rows: Sequence[Row], index: int, refill: int) -> Sampled | None:
        """Return the completions of an extra rollout of a training step, with the weights of the
        step. All ranks call this.

        Args:
            rows: its examples, for all ranks.
            index: index of the training step, from 0.
            refill: number of the extra rollout, from 1.
        """
        sampled, passes = self._sampled(rows, index, refill)
        self.meter.count += passes
        return sampled

    def wait(self) -> None:
        """Wait until the completions that are sampled ahead are there, so that the servers can take
        over other weights. All ranks call this.

        Raises:
            UnmaskError: a server failed, on any rank.
        """
        if self._pending is not None:
            with self.agreed():
                self._pending.result(self.alive)

    def _sampled(self, rows: Sequence[Row], index: int, refill: int = 0) -> tuple[Sampled | None, int]:
        """Return the completions of a rollout, and the token passes of the servers."""
        engine, share = self.collector.engine, self.share(len(rows))
        passes = engine.servers.passes if isinstance(engine, HttpEngine) else Counter()
        # Those of an evaluation do not count.
        passes.take()
        if share.start == share.stop:
            # All ranks enter the block of rollouts together.
            with engine.session():
                return None, 0
        return self.collector.sample(rows, index, share, refill=refill), passes.take()


class _Pending:
    """Completions of a training step that a thread is sampling."""

    def __init__(self, index: int, sample: Callable[[], tuple[Sampled | None, int]]) -> None:
        self.index, self._sample = index, sample
        self._found: tuple[Sampled | None, int] | None = None
        self._error: BaseException | None = None
        # A daemon, so that a run which ends with an error does not wait for servers.
        self._thread = threading.Thread(target=self._run, name="rollouts ahead", daemon=True)
        self._thread.start()

    def result(self, alive: Callable[[], None]) -> tuple[Sampled | None, int]:
        """Wait for the completions, and return them.

        Raises:
            UnmaskError: the error of the thread.
        """
        while self._thread.is_alive():
            self._thread.join(POLL_SECONDS)
            alive()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._sample()
        except BaseException as error:  # it is raised in the main thread
            self._error = error
