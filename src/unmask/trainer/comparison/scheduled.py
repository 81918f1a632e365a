"""Jobs of a comparison on a cluster, through the schedulers of submitit.

Each job writes its result into a file of its own when it ends. If the command that submitted it has
ended by then, the repeated command finds the result there, or waits for the job if it still runs.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError, RunError
from unmask.core.files import read_json_object
from unmask.runs.atomic import take_lock, write_atomically
from unmask.trainer.comparison.jobs import ComparisonJob, Record
from unmask.trainer.comparison.recipe import Scheduler
from unmask.trainer.comparison.workers import Workers, work

if TYPE_CHECKING:
    import submitit

POLL = 1.0
"""Seconds between two looks at the results."""
LOOKS = {"slurm": 15, "local": 1}
"""Number of looks at an ended job until its result is missed. A shared file system can show a file
some seconds late."""
MOST_LOSSES = 3
"""Number of times that a job is submitted again after it ended without a result, as after the failure
of its machine."""


@dataclass
class _Submitted:
    """A job at the scheduler."""

    job: ComparisonJob
    future: Future[Record]
    at_scheduler: submitit.Job[None]
    is_known: bool
    """True if an earlier command submitted the job."""
    is_cancelled: bool = False
    losses: int = 0
    looks_in_vain: int = 0


class ScheduledWorkers(Workers):
    """Workers at a scheduler.

    Args:
        root: folder of the comparison; scripts, logs and results of jobs are in its folder
            scheduler/.
        settings: scheduler, and resources of a job.
        most: maximum number of jobs that wait or run.

    Raises:
        ConfigError: if submitit is not installed, or SLURM is not available.
    """

    def __init__(self, root: Path, settings: Scheduler, most: int) -> None:
        self.most, self._settings, self._folder = most, settings, root.resolve() / "scheduler"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._executor = _executor(self._folder, settings)
        self._submitted: list[_Submitted] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def start(self, job: ComparisonJob) -> Future[Record]:
        future: Future[Record] = Future()
        with self._lock:
            known = self._known(job)
            self._submitted.append(_Submitted(job, future, known or self._submit(job), known is not None))
        return future

    def stop(self) -> None:
        with self._lock:
            for one in self._submitted:
                if not one.is_cancelled:
                    one.is_cancelled = True
                    one.at_scheduler.cancel(check=False)

    def recorded(self, job: ComparisonJob) -> None:
        number = self._file(job, "id")
        if number.exists():
            for path in self._folder.glob(f"{number.read_text()}_*"):
                path.unlink(missing_ok=True)
        for kind in ("id", "json", "lock"):
            self._file(job, kind).unlink(missing_ok=True)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        with suppress(OSError):  # logs of jobs without a result stay
            self._folder.rmdir()

    def _file(self, job: ComparisonJob, kind: str) -> Path:
        return self._folder / f"{job.folder.name}.{kind}"

    def _known(self, job: ComparisonJob) -> submitit.Job[None] | None:
        """Return the job that an earlier command submitted, if there is one."""
        import submitit

        number = self._file(job, "id")
        kind = submitit.SlurmJob if self._settings.type == "slurm" else submitit.LocalJob
        return kind(self._folder, number.read_text()) if number.exists() else None

    def _submit(self, job: ComparisonJob) -> submitit.Job[None]:
        submitted = self._executor.submit(_Run(job, self._file(job, "json"), self._settings.cpus))
        write_atomically(self._file(job, "id"), submitted.job_id)
        return submitted

    def _watch(self) -> None:
        """Look at the jobs from time to time, and give their results to their futures."""
        while not self._closed.wait(POLL):
            with self._lock:
                for one in list(self._submitted):
                    try:
                        result = self._look(one)
                    except Exception as error:
                        self._submitted.remove(one)
                        one.future.set_exception(error)
                    else:
                        if result is not None:
                            self._submitted.remove(one)
                            one.future.set_result(result)

    def _look(self, one: _Submitted) -> Record | None:
        """Return the result of a job, or None if it has not ended. A job that stopped at its time
        limit, or was lost, is submitted again.

        Raises:
            RunError: if the job raised an error, or was lost too often.
        """
        if not one.at_scheduler.done():
            return None
        result = self._file(one.job, "json")
        facts = read_json_object(result) if result.exists() else {}
        if "error" in facts and not one.is_known:
            result.unlink()
            raise RunError(str(facts["error"]))
        if facts and not {"stopped", "error"} & facts.keys():
            return facts
        if one.is_cancelled:
            return {"stopped": signal.SIGINT}
        one.looks_in_vain += not facts
        if not facts and one.looks_in_vain < LOOKS[self._settings.type]:
            return None
        self._submit_again(one, was_saved=bool(facts))
        return None

    def _submit_again(self, one: _Submitted, was_saved: bool) -> None:
        job, log = one.job, one.at_scheduler.paths.stderr
        name = f"the job of {job.method} on {job.task}, seed {job.seed},"
        if one.at_scheduler.paths.result_pickle.exists() and not was_saved and not one.is_known:
            raise RunError(f"{name} raised an error, which its log has: {log}")
        one.losses += not was_saved and not one.is_known
        if one.losses > MOST_LOSSES:
            raise RunError(
                f"{name} ended {one.losses} times without a result. Its log is {log}. The results so far are kept: correct the "
                "cause, such as too little memory or time, and repeat the command."
            )
        self._file(job, "json").unlink(missing_ok=True)
        one.at_scheduler, one.looks_in_vain, one.is_known = self._submit(job), 0, False


@dataclass
class _Run:
    """Call that a job at the scheduler makes: run a job of the comparison, and write its result into
    a file."""

    job: ComparisonJob
    result: Path
    threads: int

    def __call__(self) -> None:
        # The time limit arrives as SIGUSR2, which submitit would answer by ending the process. The
        # trainer saves on SIGUSR1; an evaluation ignores it, because nothing of it could be saved.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        with _waiting_lock(self.result.with_suffix(".lock")):
            # A job that lost its command may have finished while this one waited.
            if self.result.exists() and not {"stopped", "error"} & read_json_object(self.result).keys():
                return
            write_atomically(self.result, json.dumps(self._outcome()))

    def _outcome(self) -> dict[str, Any]:
        if self.job.code_now != self.job.code:
            return {
                "error": "the code or a file of the comparison has changed since the command started, and a job that starts "
                "later would use the new code. All results so far are kept. Repeat the command when your edits are done."
            }
        return work(self.job, self.threads)


def _waiting_lock(path: Path) -> Any:
    """Take a lock, and wait while another process has it."""
    while True:
        with suppress(RunError):
            return take_lock(path)
        time.sleep(POLL)


def _executor(folder: Path, settings: Scheduler) -> submitit.AutoExecutor:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError("a scheduler needs submitit. Install it: pip install 'unmask[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.type)
    except RuntimeError as error:
        raise ConfigError(
            f"scheduler.type = {settings.type} is not available here: {error}. Run the command on a machine that can submit "
            "jobs, or use --jobs."
        ) from error
    executor.update_parameters(
        name="unmask",
        timeout_min=settings.minutes,
        cpus_per_task=settings.cpus,
        gpus_per_node=settings.gpus,
        mem_gb=settings.memory_gb,
        slurm_partition=settings.partition,
        slurm_account=settings.account,
        slurm_additional_parameters=settings.options or None,
        slurm_setup=list(settings.setup) or None,
        local_setup=list(settings.setup) or None,
    )
    return executor
