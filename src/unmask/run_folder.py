"""A run folder: config.yaml, data.json, metrics.jsonl, rollouts/, checkpoints/, best/, final/; nothing is ever half written.

One process at a time owns a folder (a lock on run.lock); the others of a distributed run only read. A checkpoint is complete
or absent: it is written aside, flushed to disk and renamed; a manifest of its files tells whether it still is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from unmask.checkpoints import fault_of, to_delete, write_manifest
from unmask.errors import RunError

_ASIDE = ".incomplete-"
_REPLACED = ".replaced-"
FREE_TO_CHANGE = frozenset(
    {
        "output_dir",
        "report_to",
        "push_to_hub",
        "save_steps",
        "save_total_limit",
        "log_rollouts_steps",
        "log_rollouts_groups",
        "log_rollouts_guesses",
        "stuck_timeout",
        "reward_timeout",
        "reward_item_timeout",
        "reward_workers",
        "rollout_batch_size",
        "views_per_forward",
        "max_tokens_per_forward",
        "reference_offload",
        "gradient_checkpointing",
        "compile",
        "evaluation.batch_size",
    }
)
"""Settings that a resumed run may change: none of them touches what is computed, but for rounding in other batches."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made if need be.
        config: the resolved recipe as a tree; compared with that of the run that is resumed.
        resume: go on from the newest checkpoint, if there is one.
        is_main: whether this process writes.
        data: where the rows come from, with their hashes; kept in data.json and compared like the config.
        completed: gives a recorded config the settings that it lacks because they did not exist yet, so that it compares equal to
            one that has them at their defaults.

    Raises:
        RunError: no folder, or not writable; in use by another process; holds a run and `resume` is not set; holds a run
            with other settings, or on other rows.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        is_main: bool = True,
        data: Mapping[str, Any] | None = None,
        completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> None:
        self.path = path
        self.is_main = is_main
        self.working: Callable[[], None] = lambda: None
        """Called now and then in what takes long where a checkpoint is large."""
        self._lock: TextIO | None = None
        self._metrics: TextIO | None = None
        if not is_main:
            return
        if path.exists() and not path.is_dir():
            raise RunError(f"output_dir {path} is a file. Set output_dir to a folder, there or yet to be made.")
        if path.is_dir() and any(path.iterdir()) and not (path / "run.lock").exists():
            raise RunError(
                f"output_dir {path} holds files that are no run's, which a run might overwrite. Set output_dir to a new folder."
            )
        try:
            with disk_faults_explained(path):
                path.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                recorded, recorded_data = path / "config.yaml", path / "data.json"
                # A start that failed before its first line of metrics has left nothing to lose or to contradict.
                if recorded.exists() and self.metrics_path.exists() and self.metrics_path.stat().st_size:
                    before, now = dict(completed(yaml.safe_load(recorded.read_text()))), dict(config)
                    if recorded_data.exists():
                        before, now = (
                            before | {"data": json.loads(recorded_data.read_text())},
                            now | {"data": data or {}},
                        )
                    self._check_same(before, now, resume)
                write_atomically(recorded, yaml.safe_dump(dict(config), sort_keys=False))
                if data:
                    write_atomically(recorded_data, json.dumps(data, indent=1) + "\n")
                self._tidy()
        except BaseException:
            self.close()
            raise

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> dict[str, Any]:
        """Of data.json: where the rows come from; empty where the task makes them."""
        path = self.path / "data.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def final(self) -> Path:
        """The finished model, in transformers' format."""
        return self.path / "final"

    @property
    def best(self) -> Path:
        """The model of the best evaluation on the validation split, in the same format; absent if that was not evaluated."""
        return self.path / "best"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*"))

    def last_step(self) -> int:
        """Steps done at the newest checkpoint; 0 if there is none."""
        found = self.checkpoints()
        return step_of(found[-1]) if found else 0

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int) -> None:
        """Write a checkpoint aside with `write(folder)`, complete it by a rename, and drop all but the newest `keep` good ones.

        Every process calls it; `write` holds whatever barriers they need.

        Raises:
            RunError: it reads back otherwise than it was written; older ones are left alone then.
        """
        target = self.path / "checkpoints" / f"step-{step:08d}"
        with self.written_aside(target) as folder:
            write(folder)
            if self.is_main:
                write_manifest(folder, self.working)
        if self.is_main:
            if (fault := fault_of(target, reading=self.working)) is not None:
                raise RunError(
                    f"{target} was written and does not read back: {fault}. Look at the disk; nothing was deleted."
                )
            for old in to_delete(self.checkpoints(), keep):
                shutil.rmtree(old)

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint, read again in full; None if there is none.

        Raises:
            RunError: it is damaged.
        """
        found = self.checkpoints()
        if not found:
            return None
        with damage_explained(found[-1]):
            if (fault := fault_of(found[-1], reading=self.working)) is not None:
                raise ValueError(fault)
        return found[-1]

    @contextlib.contextmanager
    def written_aside(self, target: Path) -> Iterator[Path]:
        """A folder to write into that becomes `target` when the block ends well, and vanishes when it does not."""
        aside = target.parent / f"{_ASIDE}{target.name}"
        if not self.is_main:
            yield aside
            return
        try:
            # Inside, so that a full disk is looked at before what filled it is removed.
            with disk_faults_explained(self.path, self.last_step()):
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                yield aside
                for file in aside.rglob("*"):
                    if file.is_file():
                        self.working()
                        _flush(file)
                replaced = target.parent / f"{_REPLACED}{target.name}"
                if target.exists():
                    target.rename(replaced)
                aside.rename(target)
                _flush(target.parent)
                shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def open_metrics(self, step: int) -> None:
        """Begin to append to metrics.jsonl, dropping lines of steps after `step`, which are about to be done again."""
        if not self.is_main:
            return
        with disk_faults_explained(self.path):
            if self.metrics_path.exists():
                kept = [line for line in self.metrics_path.read_text().splitlines() if _step_of(line) <= step]
                write_atomically(self.metrics_path, "".join(line + "\n" for line in kept))
            self._metrics = self.metrics_path.open("a")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self._metrics is not None:
            with disk_faults_explained(self.path, self.last_step()):
                self._metrics.write(json.dumps(metrics) + "\n")
                self._metrics.flush()

    def close(self) -> None:
        """Close the files and give the folder back."""
        for file in (self._metrics, self._lock):
            if file is not None:
                # A full disk shows here again; it was explained when the line was written.
                with contextlib.suppress(OSError):
                    file.close()
        self._metrics = self._lock = None

    def check_writable(self) -> None:
        """Raise what is in the way of another checkpoint's folder, before other processes count on this one to write it.

        Raises:
            RunError: the folder is read-only, the quota is used up, or the like.
        """
        with disk_faults_explained(self.path, self.last_step()):
            trial = self.path / "checkpoints" / f"{_ASIDE}trial"
            trial.mkdir(parents=True, exist_ok=True)
            trial.rmdir()

    def _tidy(self) -> None:
        """Remove what a process left that was killed while it wrote, and put back what it was about to replace."""
        for leftover in self.path.glob(f"**/{_ASIDE}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for replaced in self.path.glob(f"**/{_REPLACED}*"):
            target = replaced.with_name(replaced.name.removeprefix(_REPLACED))
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(target)

    def _take_lock(self) -> None:
        lock = (self.path / "run.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise RunError(
                f"{self.path} is in use by another process. Wait for it, or set output_dir to another folder."
            ) from None
        self._lock = lock

    def _check_same(self, recorded: Mapping[str, Any], config: Mapping[str, Any], resume: bool) -> None:
        if not resume:
            raise RunError(
                f"{self.path} already holds a run. Add --resume to go on with it, or set output_dir to another folder."
            )
        before, now = flat(recorded), flat(config)
        changed = sorted(
            key for key in {*before, *now} if before.get(key) != now.get(key) and key not in FREE_TO_CHANGE
        )
        if changed:
            lines = [f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed]
            raise RunError(
                f"{self.path} was started with other settings, and a resumed run must not change them:\n"
                + "\n".join(lines)
                + "\nSet them back, or set output_dir to another folder."
            )


@contextlib.contextmanager
def damage_explained(checkpoint: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into a RunError that says what to do."""
    try:
        yield
    except Exception as error:  # whatever a damaged file makes torch or safetensors raise
        raise RunError(
            f"the checkpoint {checkpoint} cannot be read ({type(error).__name__}: {error}). "
            "Remove that folder to go on from the checkpoint before it."
        ) from error


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content by `text`, or leave it as it was."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text)
    _flush(aside)
    aside.rename(path)


@contextlib.contextmanager
def disk_faults_explained(path: Path, last_step: int = 0) -> Iterator[None]:
    """Turn "no space left" and "not writable" into a RunError that says what is safe and what to do."""
    try:
        yield
    except Exception as error:
        safe = f" The checkpoint of step {last_step} is complete." if last_step else ""
        number = error.errno if isinstance(error, OSError) else None
        # safetensors wraps the system's error in its own; torch.save says in several ways that it got less far than it wrote.
        wrapped = re.search(
            r"No space left|os error 28|PytorchStreamWriter|iostream|unexpected pos \d+ vs \d+", str(error)
        )
        if number in (errno.ENOSPC, errno.EDQUOT) or wrapped:
            raise RunError(f"{path}: the disk is full.{safe} Make room, then add --resume.") from error
        if number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise RunError(
                f"{path} cannot be written ({os.strerror(number)}).{safe} Allow it, or set output_dir to another folder."
            ) from error
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # The half line of a process that was killed while it wrote.
        return float("inf")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found
