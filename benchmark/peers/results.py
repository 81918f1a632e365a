"""Results of the comparison: one record for each release and setting, and the table of all."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmark.peers.phases import PHASES
from benchmark.peers.releases import RELEASES
from benchmark.peers.setting import SHAPES

MEMORY = ("rollout", "update")
"""Phases whose memory is measured."""
COLUMNS = (*PHASES, "whole step", *(f"{phase}, {what}" for what in ("process", "tensors") for phase in MEMORY))

Record = dict[str, Any]
"""Release, setting, load of the machine, and of each phase the `seconds` of both sides in each round
and the `peaks` of both sides: MiB of the process and of tensors."""


class Results:
    """Records in a file, one in each line. A new record replaces an earlier one of the same release
    and setting.

    Args:
        file: file with earlier records, which is written after each new one; None to keep no file.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file is not None and file.is_file() else []
        self.records: dict[tuple[str, str], Record] = {}
        for record in map(json.loads, lines):
            self.records[record["release"], record["setting"]] = record

    def add(self, record: Record) -> None:
        """Add a record, or what it measures to an earlier one, and write the file."""
        key = record["release"], record["setting"]
        earlier = self.records.get(key, {})
        for part in ("seconds", "peaks"):
            record[part] = earlier.get(part, {}) | record[part]
        self.records[key] = record
        if self.file is not None:
            order = [(release, setting) for release in RELEASES for setting in SHAPES]
            known = [self.records[key] for key in order if key in self.records]
            self.file.write_text("".join(json.dumps(record) + "\n" for record in known))

    def table(self, absent: list[str]) -> list[str]:
        """Return the table of all records as Markdown, with a line for each release in `absent`,
        whose files are not there."""
        lines = [f"| release | setting | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
        for release in RELEASES:
            for setting in SHAPES:
                if (release, setting) in self.records:
                    lines.append(line_of(self.records[release, setting]))
            if release in absent:
                lines.append(f"| {release} | not measured: no checkout |")
        return lines

    def origins(self) -> list[str]:
        """Return the files of the releases and the commits that were measured, as Markdown."""
        files = {(s.origin, s.path) for release in RELEASES.values() for s in release.sources}
        return ["| file | origin |", "|---|---|", *(f"| `{path}` | {origin} |" for origin, path in sorted(files))]


def line_of(record: Record) -> str:
    """Return the line of a record."""
    cells = {phase: ratio_text(*sides) for phase, sides in record["seconds"].items()}
    if set(record["seconds"]) == set(PHASES):
        parts = [p for p in PHASES if p != "scoring" or RELEASES[record["release"]].scores]
        totals = [sum(statistics.median(record["seconds"][part][side]) for part in parts) for side in (0, 1)]
        cells["whole step"] = f"{totals[0] / totals[1]:.2f}"
    for phase, sides in record["peaks"].items():
        for what, theirs, ours in zip(("process", "tensors"), *sides, strict=True):
            cells[f"{phase}, {what}"] = f"{theirs / max(ours, 0.1):.2f} ({theirs:.0f}/{ours:.0f})"
    return f"| {record['release']} | {record['setting']} | {' | '.join(cells.get(column, '') for column in COLUMNS)} |"


def ratio_text(theirs: list[float], ours: list[float]) -> str:
    """Return the median ratio of the rounds, its range, and the quotient of the minima."""
    ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}; {min(theirs) / min(ours):.2f})"
