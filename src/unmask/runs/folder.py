"""A run folder: config.yaml, run.json, data.json, metrics.jsonl, rollouts/, checkpoints/, best/,
final/.

No file in it is ever half written. Only one process at a time owns a folder, by a lock on run.lock.
The other ranks of a distributed run only read the folder. A checkpoint is complete or absent: it is
written under another name, flushed to the disk and renamed. Its manifest holds the run's id and the
hashes of its files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import yaml

from unmask.core.errors import RunError
from unmask.core.files import read_json_object, read_yaml
from unmask.core.settings import flat
from unmask.runs.atomic import (
    INCOMPLETE,
    disk_faults_explained,
    folder_replaced_whole,
    take_lock,
    tidy,
    write_atomically,
)
from unmask.runs.checkpoints import (
    Alone,
    Peers,
    checkpoints_in,
    damage_explained,
    facts_of,
    fault_of,
    is_of_another,
    step_of,
    to_delete,
    write_manifest,
)
from unmask.runs.continued import changed_settings, rows_that_count
from unmask.runs.extension import difference_of
from unmask.runs.folder_path import check_path
from unmask.runs.metrics import FILE as METRICS
from unmask.runs.metrics import read_metric_lines

logger = logging.getLogger("unmask")

Write = Callable[[Path], Sequence[Path] | None]
"""Function that writes files of a checkpoint into a folder and returns the paths of those whose
hashes this rank computes; the main rank computes those of the others."""
ALONE = Alone()


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it is created if it does not exist.
        config: the resolved recipe as a tree. A resumed run compares it with the recorded recipe.
        resume: True to continue from the newest checkpoint, if there is one.
        is_main: True if this process writes.
        data: source of the examples, with their hashes. This record is stored in data.json and
            compared like the recipe.
        completed: function that adds to a recorded recipe the defaults of settings that did not
            exist when it was recorded.
        working: function called during reads and writes of large files, to report progress.

    Raises:
        RunError: if the path is not a folder, cannot be written, or is in use by another process;
            or if it holds a run and `resume` is not set, or its settings or examples differ.
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
        working: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.is_main = is_main
        self.working = working
        self.id = ""
        """Id of the run, which is also in its checkpoints; empty on ranks that only read."""
        self._lock: TextIO | None = None
        self._metrics: TextIO | None = None
        if not is_main:
            return
        with disk_faults_explained(path):
            check_path(self.path)
        try:
            with disk_faults_explained(path):
                path.mkdir(parents=True, exist_ok=True)
                self._lock = take_lock(path / "run.lock")
                if self._holds_run():
                    self._check_same(dict(config), dict(data or {}), resume, completed)
                    self._check_steps(config.get("max_steps"))
                self._take_id()
                write_atomically(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
                if data:
                    write_atomically(path / "data.json", json.dumps(data, indent=1) + "\n")
                for folder in (path, path / "checkpoints"):
                    tidy(folder)
        except BaseException:
            self.close()
            raise

    @property
    def metrics_path(self) -> Path:
        """File with the metrics; see `unmask.runs.metrics`."""
        return self.path / METRICS

    @property
    def data(self) -> dict[str, Any]:
        """Content of data.json, the source of the examples; empty if the task generates them."""
        path = self.path / "data.json"
        with _restoring_advised():
            return read_json_object(path) if path.exists() else {}

    @property
    def facts(self) -> dict[str, Any]:
        """Content of run.json: the run's id, the ids that trackers gave it, and notes on
        extensions."""
        path = self.path / "run.json"
        with _restoring_advised():
            return read_json_object(path) if path.exists() else {}

    def add_facts(self, **facts: Any) -> None:
        """Add facts to run.json."""
        with disk_faults_explained(self.path, self.last_step()):
            write_atomically(self.path / "run.json", json.dumps(self.facts | facts, indent=1) + "\n")

    @property
    def final(self) -> Path:
        """Folder of the finished model, in transformers' format."""
        return self.path / "final"

    @property
    def best(self) -> Path:
        """Folder of the model with the best evaluation on the validation split. It does not exist
        if there are no such evaluations."""
        return self.path / "best"

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return checkpoints_in(self.path)

    def last_step(self) -> int:
        """Return the number of training steps at the newest checkpoint; 0 if there is no
        checkpoint."""
        checkpoints = self.checkpoints()
        return step_of(checkpoints[-1]) if checkpoints else 0

    def save_checkpoint(self, step: int, write: Write, keep: int, peers: Peers = ALONE) -> None:
        """Write a checkpoint, rename its folder when it is complete, and delete older checkpoints.

        All ranks call this method. Each writes files of its own and computes their hashes; then the
        main rank writes the manifest. The newest `keep` intact checkpoints stay.

        Args:
            step: number of training steps done.
            write: function that writes this rank's files into a folder and returns their paths. It
                may take part in collectives, and must raise an error only after the last of them.
            keep: number of intact checkpoints to keep.
            peers: the ranks of the run.

        Raises:
            RunError: if a rank does not see the folder, the disk is full, or the checkpoint differs
                when it is read back. No older checkpoint is deleted then.
        """
        target, faults = self.path / "checkpoints" / f"step-{step:08d}", partial(disk_faults_explained, self.path)
        with contextlib.ExitStack() as stack:
            with peers.agreed():
                aside = stack.enter_context(self.written_aside(target))
            with peers.agreed(), faults(self.last_step()):
                if not aside.is_dir():
                    raise RunError(
                        f"rank {peers.index} does not see {aside}, which rank 0 has created. Set output_dir to a folder on a "
                        "disk that all ranks share."
                    )
                paths = write(aside) or ()
                own = facts_of(paths, aside, self.working)
            known = {name: fact for part in peers.objects(own) for name, fact in part.items()}
            with peers.agreed():
                if self.is_main:
                    write_manifest(aside, self.id, step, known, self.working)
                stack.close()
        with peers.agreed():
            # Each rank reads a share of the files back.
            if (
                fault := fault_of(target, share=slice(peers.index, None, peers.count), reading=self.working)
            ) is not None:
                raise RunError(
                    f"the new checkpoint {target} is damaged: {fault}. Check the disk; no older checkpoint was deleted."
                )
        if self.is_main:
            for old in to_delete(self.checkpoints(), keep, self.id):
                shutil.rmtree(old)

    def newest_checkpoint(self, peers: Peers = ALONE) -> Path | None:
        """Return the folder of the newest checkpoint after a full check; None if there is no
        checkpoint. All ranks call this method, and each reads a share of the files.

        Raises:
            RunError: if the checkpoint is damaged, belongs to another run, or is not visible to a
                rank.
        """
        checkpoints = peers.from_main(self.checkpoints())
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        with peers.agreed():
            with damage_explained(newest):
                share = slice(peers.index, None, peers.count)
                if (fault := fault_of(newest, share=share, reading=self.working)) is not None:
                    raise ValueError(fault)
            if self.is_main and is_of_another(newest, self.id):
                raise RunError(
                    f"the checkpoint {newest} does not belong to the run {self.path}. Remove this folder to continue from the "
                    f"previous checkpoint. To train from its weights, start a new run with model={newest}."
                )
        return newest

    @contextlib.contextmanager
    def written_aside(self, target: Path) -> Iterator[Path]:
        """Yield a folder to write into, and let it replace `target` if the block ends without an
        error.

        All ranks enter the block and get the same folder; the rank that owns the run folder renames
        it.
        """
        aside = target.parent / f"{INCOMPLETE}{target.name}"
        if not self.is_main:
            yield aside
            return
        with disk_faults_explained(self.path, self.last_step()), folder_replaced_whole(target, aside, self.working):
            yield aside

    def open_metrics(self, step: int) -> None:
        """Open metrics.jsonl to append to it, and delete the lines of steps after `step`, because
        the run repeats these steps."""
        if not self.is_main:
            return
        with disk_faults_explained(self.path):
            if self.metrics_path.exists():
                lines = [line for line in read_metric_lines(self.path) if line["step"] <= step]
                if step > 0 and max((line["step"] for line in lines), default=0) < step:
                    logger.warning(
                        f"{self.metrics_path} ends before step {step}, where the run continues, so its curves have a gap."
                    )
                write_atomically(self.metrics_path, "".join(json.dumps(line) + "\n" for line in lines))
            self._metrics = self.metrics_path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self._metrics is not None:
            with disk_faults_explained(self.path, self.last_step()):
                self._metrics.write(json.dumps(metrics) + "\n")
                self._metrics.flush()

    def close(self) -> None:
        """Close the files and release the lock."""
        for file in (self._metrics, self._lock):
            if file is not None:
                # A full disk raises here again, but the write of the line has already reported it.
                with contextlib.suppress(OSError):
                    file.close()
        self._metrics = self._lock = None

    def _holds_run(self) -> bool:
        """Return whether the folder holds a run. A run that failed before its first line of metrics
        does not count."""
        metrics = self.metrics_path
        has_metrics = metrics.exists() and (not metrics.is_file() or metrics.stat().st_size > 0)
        return has_metrics or bool(self.checkpoints())

    def _take_id(self) -> None:
        """Read the run's id from run.json, or create one."""
        recorded = self.facts.get("id")
        if isinstance(recorded, str) and recorded:
            self.id = recorded
            return
        if checkpoints := self.checkpoints():
            raise RunError(
                f"{self.path / 'run.json'} is missing or has no id, so {checkpoints[-1]} may belong to another run. Restore the "
                f"file. To train from the weights of this checkpoint, start a new run with model={checkpoints[-1]}."
            )
        self.id = uuid.uuid4().hex
        self.add_facts(id=self.id)

    def _check_same(
        self,
        config: dict[str, Any],
        data: dict[str, Any],
        resume: bool,
        completed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        """Refuse to continue the run in this folder unless `resume` is set and settings and
        examples are the same."""
        if not resume:
            raise RunError(
                f"{self.path} already holds a run. Add --resume to continue it (in Python resume=True), or set output_dir "
                "to another folder."
            )
        with _restoring_advised():
            recorded = dict(completed(read_yaml(self.path / "config.yaml")))
        if (self.path / "data.json").exists():
            before_rows, rows = rows_that_count(self.data, data)
            recorded, config = recorded | {"data": before_rows}, config | {"data": rows}
        before, now = flat(recorded), flat(config)
        changed = changed_settings(before, now)
        if changed == {"max_steps"}:
            self._extend(before, now)
        elif changed:
            lines = [f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in sorted(changed)]
            raise RunError(
                f"{self.path} was started with other settings, which a resumed run cannot change:\n"
                + "\n".join(lines)
                + "\nUse the settings of the run, or set output_dir to another folder."
            )

    def _check_steps(self, max_steps: int | None) -> None:
        """Refuse a `max_steps` that the run has already passed."""
        done = self.last_step()
        if max_steps is not None and done > max_steps:
            raise RunError(
                f"{self.path} has a checkpoint of step {done}, which is more than max_steps = {max_steps}. Set max_steps to "
                f"{done} or more; to train for fewer steps, set output_dir to another folder."
            )

    def _extend(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Accept another `max_steps`, and record its effect in run.json."""
        if difference := difference_of(before, now, self.last_step()):
            logger.warning(f"{self.path}: {difference}")
            self.add_facts(extended=[*self.facts.get("extended", ()), difference])


@contextlib.contextmanager
def _restoring_advised() -> Iterator[None]:
    """Add a remedy to an error about an unreadable file of the run."""
    try:
        yield
    except RunError as error:
        error.add_note("Restore this file from a copy, or set output_dir to another folder.")
        raise
