"""cells.jsonl: what has been done, a line each. All tables and figures come from it alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from unmask.compare.jobs import Job, Record, key_of, read_lines
from unmask.run_folder import disk_faults_explained, write_atomically


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

    def settle(self, jobs: Sequence[Job]) -> int:
        """Let the records of the jobs' stages, tasks and methods be those of the jobs' variants and no others.

        What other settings made is moved to superseded.jsonl, and what these made before is moved back, so that no table mixes
        the two. Half a line that a killed process left is gone.

        Returns:
            How many records were set aside.
        """
        labels = {job.key[:3] for job in jobs}
        variants = {(*job.key[:3], job.variant) for job in jobs}
        everything = self._aside | self._records
        current = {
            key: record
            for key, record in everything.items()
            if ((*key[:3], record["variant"]) in variants if key[:3] in labels else key in self._records)
        }
        set_aside = len(self._records.keys() - current.keys())
        self._records = current
        self._aside = {key: record for key, record in everything.items() if key not in current}
        with disk_faults_explained(self.path.parent):
            _write(self.path, self._records.values())
            if self._aside or self._aside_path.exists():
                _write(self._aside_path, self._aside.values())
        return set_aside


def _write(path: Path, records: Iterable[Record]) -> None:
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
