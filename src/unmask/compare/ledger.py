"""cells.jsonl: what has been done, a line each. All tables and figures come from it alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unmask.compare.jobs import Job, Key, Record, key_of, read_lines
from unmask.files import write_atomically
from unmask.run_folder import disk_faults_explained


class Ledger:
    """The records of a comparison; of several with one key the newest counts.

    Args:
        folder: of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._aside_path = folder / "cells.jsonl", folder / "superseded.jsonl"
        self._records = {key_of(record): record for record in read_lines(self.path)}
        self._aside = {key_of(record): record for record in read_lines(self._aside_path)}

    @property
    def records(self) -> list[Record]:
        """All that count, oldest first."""
        return list(self._records.values())

    def of(self, job: Job) -> Record | None:
        """The record of a job, if it is done or has failed."""
        return self._records.get(job.key)

    def add(self, record: Record) -> None:
        """Append a line."""
        with disk_faults_explained(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._records[key_of(record)] = record

    def foreign(self, jobs: Sequence[Job]) -> list[Record]:
        """Records of the jobs' stages, tasks and methods that other settings than the jobs' made."""
        is_current = _currency(jobs)
        return [record for record in self.records if is_current(record) is False]

    def settle(self, jobs: Sequence[Job]) -> None:
        """Move what is `foreign` to superseded.jsonl, and what these settings made before back, so that no table mixes the two.

        Seeds that are no longer asked for are left where they are. Half a line that a killed process left is gone.
        """
        is_current = _currency(jobs)
        everything = self._aside | self._records
        before = self._records.keys()

        def stays(key: Key, record: Record) -> bool:
            current = is_current(record)
            return key in before if current is None else current

        self._records = {key: record for key, record in everything.items() if stays(key, record)}
        self._aside = {key: record for key, record in everything.items() if key not in self._records}
        with disk_faults_explained(self.path.parent):
            _write(self.path, self._records.values())
            if self._aside or self._aside_path.exists():
                _write(self._aside_path, self._aside.values())


def _currency(jobs: Sequence[Job]) -> Callable[[Record], bool | None]:
    """Whether a record's settings are those of the jobs; None where the jobs say nothing of its stage, task and method."""
    labels = {job.key[:3] for job in jobs}
    variants = {(*job.key[:3], job.variant) for job in jobs}

    def is_current(record: Record) -> bool | None:
        label = key_of(record)[:3]
        return (*label, record["variant"]) in variants if label in labels else None

    return is_current


def _write(path: Path, records: Iterable[Record]) -> None:
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
