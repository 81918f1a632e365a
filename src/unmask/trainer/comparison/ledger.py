"""cells.jsonl: what has been done, a line each. All tables and figures come from it; code.json beside it says by which code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from unmask.core.errors import RunError
from unmask.core.files import read_json_lines, read_json_object
from unmask.runs.atomic import write_atomically
from unmask.runs.folder import disk_faults_explained
from unmask.trainer.comparison import sources
from unmask.trainer.comparison.jobs import ComparisonJob, Key, Record, folder_of, key_of


class Ledger:
    """The records of a comparison; of several with one key the newest counts.

    Args:
        folder: of the comparison.

    Raises:
        RunError: a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path, self._aside_path, self._code_path = (
            folder / name for name in ("cells.jsonl", "superseded.jsonl", "code.json")
        )
        self._records = {key_of(record): record for record in _read(self.path)}
        self._aside = {_full_key(record): record for record in _read(self._aside_path)}
        self._files = _read_code(self._code_path)

    @property
    def records(self) -> list[Record]:
        """All that count, oldest first."""
        return list(self._records.values())

    def of(self, job: ComparisonJob) -> Record | None:
        """The record of a job, if it is done or has failed."""
        return self._records.get(job.key)

    def folder_of(self, job: ComparisonJob) -> Path:
        """The run folder of a job: of the run that left its record, if there is one."""
        record = self.of(job)
        return job.folder if record is None else folder_of(job.root, record)

    def add(self, record: Record, files: Iterable[Mapping[str, str]] = ()) -> None:
        """Append a line, and keep the hashes of the files that the result depends on."""
        new = {name: dict(part) for part in files if (name := sources.digest_of(part)) not in self._files}
        with disk_faults_explained(self.folder):
            if new:
                self._files |= new
                write_atomically(self._code_path, json.dumps(self._files, indent=1) + "\n")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self._records[key_of(record)] = record

    def edited(self, record: Record) -> list[str]:
        """Names of the files that were edited since a record was made; none for a version that kept no track of code."""
        return [name for part in self._parts(record) for name in sources.edited(part)]

    def unchecked(self, record: Record) -> list[str]:
        """Names of the files of a record that are not here, so that it is not known whether they were edited."""
        return [name for part in self._parts(record) for name in sources.missing(part)]

    def foreign(self, jobs: Sequence[ComparisonJob]) -> list[Record]:
        """Records of the jobs' stages, tasks and methods that other settings than the jobs' made."""
        is_current = _currency(jobs)
        return [record for record in self.records if is_current(record) is False]

    def settle(self, jobs: Sequence[ComparisonJob]) -> None:
        """Move what is `foreign` to superseded.jsonl, and what these settings and this code made before back.

        So no table mixes the two. Seeds that are no longer asked for are left where they are. Half a line that a killed
        process left is gone.
        """
        is_current = _currency(jobs)
        back = {
            key_of(record): record
            for record in self._aside.values()
            if is_current(record) and not self.edited(record) and key_of(record) not in self._records
        }
        stays = {key: record for key, record in self._records.items() if is_current(record) is not False}
        self._move(back | stays)

    def set_aside(self, records: Iterable[Record]) -> None:
        """Move records to superseded.jsonl."""
        gone = {key_of(record) for record in records}
        self._move({key: record for key, record in self._records.items() if key not in gone})

    def _move(self, staying: dict[Key, Record]) -> None:
        everything = self._aside | {_full_key(record): record for record in self.records}
        kept = {_full_key(record) for record in staying.values()}
        self._records = staying
        self._aside = {key: record for key, record in everything.items() if key not in kept}
        with disk_faults_explained(self.folder):
            _write(self.path, self._records.values())
            if self._aside or self._aside_path.exists():
                _write(self._aside_path, self._aside.values())

    def _parts(self, record: Record) -> list[Mapping[str, str]]:
        # Without code.json nothing is known of the code but that it was kept track of.
        unknown = {str(self._code_path.resolve()): ""}
        return [self._files.get(name, unknown) for name in record.get("code", ())]


def _currency(jobs: Sequence[ComparisonJob]) -> Callable[[Record], bool | None]:
    """Whether a record's settings are those of the jobs; None where the jobs say nothing of its stage, task and method."""
    labels = {job.key[:3] for job in jobs}
    variants = {(*job.key[:3], job.variant) for job in jobs}

    def is_current(record: Record) -> bool | None:
        label = key_of(record)[:3]
        return (*label, record["variant"]) in variants if label in labels else None

    return is_current


def _full_key(record: Record) -> Key:
    return (*key_of(record), *record.get("code", ()))


def _read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    advice = "Restore the file, or remove the line; what it recorded is then run again."
    records = read_json_lines(path, advice=advice)
    labels = {"stage": str, "task": str, "method": str, "seed": int, "variant": str}
    for number, record in enumerate(records, 1):
        if not all(isinstance(record.get(name), kind) for name, kind in labels.items()):
            raise RunError(
                f"{path}, line {number} is not a record of a comparison: it lacks one of {', '.join(labels)}. {advice}"
            )
    return records


def _read_code(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    found = read_json_object(path)
    if not all(isinstance(part, dict) for part in found.values()):
        raise RunError(
            f"{path} does not hold the hashes of code that the results were made by. Restore it, or remove it; tables then say "
            "that the code is not known."
        )
    return found


def _write(path: Path, records: Iterable[Record]) -> None:
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
