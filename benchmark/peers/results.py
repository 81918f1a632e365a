"""Results of the comparison: one record for each release and setting, and the table of all."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from benchmark.peers.peak import RUNS_BEFORE
from benchmark.peers.phases import PHASES, SIDES
from benchmark.peers.releases import RELEASES
from benchmark.peers.setting import SHAPES

COLUMNS = (*PHASES, "whole step", *(f"{phase}, {what}" for what in ("process", "tensors") for phase in RUNS_BEFORE))

OUT_OF_MEMORY, FAILED = "out of memory", "failed"
"""What stands in a record for the numbers of a side whose device had no memory left, or that raised
another error."""

Record = dict[str, Any]
"""Release, setting, and of each phase the `seconds` and the `peaks` of the sides `theirs` and
`ours`, and the `load` of the machine after the measurement of the time. Seconds are those of each
round, and peaks are MiB of the process and of tensors; or either is `OUT_OF_MEMORY` or `FAILED`.
A record of a GPU says `about` it what it is."""


class Results:
    """Records in a file, one in each line. What is measured again replaces what was there.

    Args:
        file: file with earlier records, which is written after each measurement; None to keep no file.
        about: name of the card, versions and commit, which new records repeat; None on a CPU.
    """

    def __init__(self, file: Path | None, about: dict[str, Any] | None = None) -> None:
        self.file, self.about = file, about
        lines = file.read_text().splitlines() if file is not None and file.is_file() else []
        self.records: dict[tuple[str, str], Record] = {}
        for record in map(json.loads, lines):
            self.records[record["release"], record["setting"]] = record

    def add(self, release: str, setting: str, part: str, phase: str, found: dict[str, Any]) -> None:
        """Add what was measured of a phase to a part of the record, and write the file."""
        new: Record = {"release": release, "setting": setting, "seconds": {}, "load": {}, "peaks": {}}
        record = self.records.setdefault((release, setting), new)
        record[part].setdefault(phase, {}).update(found)
        if self.about is not None:
            record["about"] = self.about
        if part == "seconds":
            record["load"][phase] = round(os.getloadavg()[0], 1)
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

    def summary(self) -> list[str]:
        """Return the lowest and the highest ratio of all releases at each setting with records as
        Markdown: medians of times, and memory."""
        lines = [f"| setting | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
        for setting in SHAPES:
            ratios = [ratios_of(record) for (_, where), record in self.records.items() if where == setting]
            if not ratios:
                continue
            found = [sorted(ratio[column] for ratio in ratios if column in ratio) for column in COLUMNS]
            cells = [f"{column[0]:.2f} to {column[-1]:.2f}" if column else "" for column in found]
            lines.append(f"| {setting} | {' | '.join(cells)} |")
        return lines

    def origins(self) -> list[str]:
        """Return the files of the releases and the commits that were measured, as Markdown."""
        files = {(s.origin, s.path) for release in RELEASES.values() for s in release.sources}
        return ["| file | origin |", "|---|---|", *(f"| `{path}` | {origin} |" for origin, path in sorted(files))]


def ratios_of(record: Record) -> dict[str, float]:
    """Return the ratios of a record by column."""
    ratios = {}
    seconds = with_both_sides(record["seconds"])
    for phase, sides in seconds.items():
        ratios[phase] = statistics.median(one / other for one, other in zip(*sides_of(sides), strict=True))
    if set(seconds) == set(PHASES):
        parts = [p for p in PHASES if p != "scoring" or RELEASES[record["release"]].scores]
        theirs, ours = (sum(statistics.median(record["seconds"][part][side]) for part in parts) for side in SIDES)
        ratios["whole step"] = theirs / ours
    for phase, sides in with_both_sides(record["peaks"]).items():
        both = zip(("process", "tensors"), *sides_of(sides), strict=True)
        ratios |= {f"{phase}, {what}": one / max(other, 0.1) for what, one, other in both}
    return ratios


def with_both_sides(part: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the phases of a part of a record that have numbers of both sides."""
    return {
        phase: sides
        for phase, sides in part.items()
        if set(sides) == set(SIDES) and not any(isinstance(found, str) for found in sides.values())
    }


def sides_of(found: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """Return what was found for the release and for this package."""
    theirs, ours = (found[side] for side in SIDES)
    return theirs, ours


def line_of(record: Record) -> str:
    """Return the line of a record: ratios, and what they come from."""
    cells = {column: f"{ratio:.2f}" for column, ratio in ratios_of(record).items()}
    for phase, sides in with_both_sides(record["seconds"]).items():
        cells[phase] += f" {spread_text(*sides_of(sides))}"
    for phase, sides in with_both_sides(record["peaks"]).items():
        for index, what in enumerate(("process", "tensors")):
            cells[f"{phase}, {what}"] += f" ({'/'.join(f'{sides[side][index]:.0f}' for side in SIDES)})"
    for phase, sides in [*record["seconds"].items(), *record["peaks"].items()]:
        if missing := [f"{found}: {side}" for side in SIDES if isinstance(found := sides.get(side), str)]:
            cells[phase] = ", ".join(missing)
    return f"| {record['release']} | {record['setting']} | {' | '.join(cells.get(column, '') for column in COLUMNS)} |"


def spread_text(theirs: list[float], ours: list[float]) -> str:
    """Return the smallest and the largest ratio of the rounds, and the quotient of the minima."""
    ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
    return f"({min(ratios):.2f}-{max(ratios):.2f}; {min(theirs) / min(ours):.2f})"
