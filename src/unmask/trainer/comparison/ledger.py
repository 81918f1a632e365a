"""The records of a comparison's jobs. cells.jsonl has one line for each job, and code.json has the
hashes of the code that made the results.

All tables and figures are made from cells.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from unmask.core.errors import RunError
from unmask.core.files import read_json_lines, read_json_object
from unmask.runs.atomic import disk_faults_explained, write_atomically
from unmask.trainer.comparison import sources
from unmask.trainer.comparison.jobs import ComparisonJob, Key, Record, folder_of, key_of


class Ledger:
    """Records of a comparison; if several have the same key, only the newest counts.

    Args:
        folder: folder of the comparison.

    Raises:
        RunError: if one of the ledger's files is damaged.
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
        """Newest record of each key, the oldest first."""
        return list(self._records.values())

    def of(self, job: ComparisonJob) -> Record | None:
        """Return the record of a job; None if the job has neither finished nor failed yet."""
        return self._records.get(job.key)

    def folder_of(self, job: ComparisonJob) -> Path:
        """Return the run folder of a job; if the job has a record, the folder of the run that made
        the record."""
        record = self.of(job)
        return job.folder if record is None else folder_of(job.root, record)

    def add(self, record: Record, files: Iterable[Mapping[str, str]] = ()) -> None:
        """Append a record, and store the hashes of the files on which its result depends."""
        new = {name: dict(part) for part in files if (name := sources.digest_of(part)) not in self._files}
        with disk_faults_explained(self.folder):
            if new:
                self._files |= new
                write_atomically(self._code_path, json.dumps(self._files, indent=1) + "\n")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self._records[key_of(record)] = record

    def edited(self, record: Record) -> list[str]:
        """Return the names of the files that have changed since a record was made. The list is
        empty if the record does not name its code."""
        return [name for part in self._parts(record) for name in sources.edited(part)]

    def unchecked(self, record: Record) -> list[str]:
        """Return the names of the missing files of a record, for which changes cannot be
        detected."""
        return [name for part in self._parts(record) for name in sources.missing(part)]

    def foreign(self, jobs: Sequence[ComparisonJob]) -> list[Record]:
        """Return records that have the stage, task and method of a job but other settings."""
        is_current = _currency(jobs)
        return [record for record in self.records if is_current(record) is False]

    def settle(self, jobs: Sequence[ComparisonJob]) -> None:
        """Move `foreign` records to superseded.jsonl, and move earlier records of these settings
        and this code back.

        Therefore no table mixes results of different settings. Records of seeds that are no longer
        in the recipe stay. An incomplete line that a killed process left is removed.
        """
        is_current = _currency(jobs)
        restored = {
            key_of(record): record
            for record in self._aside.values()
            if is_current(record) and not self.edited(record) and key_of(record) not in self._records
        }
        kept = {key: record for key, record in self._records.items() if is_current(record) is not False}
        self._move(restored | kept)

    def set_aside(self, records: Iterable[Record]) -> None:
        """Move records to superseded.jsonl."""
        keys = {key_of(record) for record in records}
        self._move({key: record for key, record in self._records.items() if key not in keys})

    def _move(self, kept: dict[Key, Record]) -> None:
        """Keep these records in cells.jsonl, and move all others to superseded.jsonl."""
        everything = self._aside | {_full_key(record): record for record in self.records}
        kept_keys = {_full_key(record) for record in kept.values()}
        self._records = kept
        self._aside = {key: record for key, record in everything.items() if key not in kept_keys}
        with disk_faults_explained(self.folder):
            _write(self.path, self._records.values())
            if self._aside or self._aside_path.exists():
                _write(self._aside_path, self._aside.values())

    def _parts(self, record: Record) -> list[Mapping[str, str]]:
        # Without code.json the record only shows that its code was tracked.
        unknown = {str(self._code_path.resolve()): ""}
        return [self._files.get(name, unknown) for name in record.get("code", ())]


def _currency(jobs: Sequence[ComparisonJob]) -> Callable[[Record], bool | None]:
    """Return a function of a record. It returns whether the record has the settings of one of the
    jobs, or None if no job has the record's stage, task and method."""
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
    advice = "Restore the file, or remove the line; the job then runs again."
    records = read_json_lines(path, advice=advice)
    labels = {"stage": str, "task": str, "method": str, "seed": int, "variant": str}
    for number, record in enumerate(records, 1):
        if not all(isinstance(record.get(name), kind) for name, kind in labels.items()):
            raise RunError(
                f"{path}, line {number} is not a record of a comparison, because it lacks one of {', '.join(labels)}. {advice}"
            )
    return records


def _read_code(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    hashes = read_json_object(path)
    if not all(isinstance(part, dict) for part in hashes.values()):
        raise RunError(
            f"{path} does not hold hashes of code. Restore it, or remove it; the tables then state that the code is unknown."
        )
    return hashes


def _write(path: Path, records: Iterable[Record]) -> None:
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
