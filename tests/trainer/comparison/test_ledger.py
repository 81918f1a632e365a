"""cells.jsonl: lines that count, half lines, and what other settings made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.comparisons import final, written
from unmask.trainer.comparison.jobs import ComparisonJob, Record
from unmask.trainer.comparison.ledger import Ledger


@dataclass(frozen=True)
class Piece(ComparisonJob):
    """A job with a variant of our choosing."""

    name: str

    @property
    def variant(self) -> str:
        return self.name

    def run(self) -> Record:
        raise NotImplementedError


def piece(method: str, seed: int, variant: str) -> Piece:
    return Piece(Path(), "final", "t", method, seed, variant)


def lines(path: Path) -> list[tuple[str, int, str]]:
    return [(r["method"], r["seed"], r["variant"]) for r in map(json.loads, path.read_text().splitlines())]


def test_a_record_is_found_by_its_job_and_by_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(piece("a", 0, "v").record(accuracy=0.5))
    record = Ledger(tmp_path).of(piece("a", 0, "v"))
    assert record is not None
    assert (record["accuracy"], record["seed"], record["version"]) == (0.5, 0, "0.1.0")
    for other in (piece("a", 0, "w"), piece("a", 1, "v"), piece("b", 0, "v")):
        assert ledger.of(other) is None


def test_of_two_lines_of_a_job_the_newer_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for accuracy in (0.25, 0.75):
        ledger.add(piece("a", 0, "v").record(accuracy=accuracy))
    assert [r["accuracy"] for r in Ledger(tmp_path).records] == [0.75] == [r["accuracy"] for r in ledger.records]


def test_half_a_line_is_dropped_before_the_next_is_written(tmp_path: Path) -> None:
    ledger = Ledger(written(tmp_path / "c", [final("t", "a", 0, 0.5)], tail='{"stage": "fin'))
    ledger.settle([piece("a", 0, "v"), piece("a", 1, "v")])
    ledger.add(piece("a", 1, "v").record())
    assert lines(tmp_path / "c" / "cells.jsonl") == [("a", 0, "v"), ("a", 1, "v")]


def test_what_other_settings_made_is_set_aside_and_comes_back_with_them(tmp_path: Path) -> None:
    ledger = Ledger(written(tmp_path / "c", [final("t", m, s, 0.5) for m in ("a", "b") for s in (0, 1)]))
    before = ledger.records
    assert len(ledger.foreign([piece("a", 0, "w")])) == 2
    ledger.settle([piece("a", 0, "w"), piece("a", 1, "w")])
    ledger.add(piece("a", 0, "w").record())
    # Of the other method nothing was said.
    assert lines(tmp_path / "c" / "cells.jsonl") == [("b", 0, "v"), ("b", 1, "v"), ("a", 0, "w")]
    assert lines(tmp_path / "c" / "superseded.jsonl") == [("a", 0, "v"), ("a", 1, "v")]
    again = Ledger(tmp_path / "c")
    again.settle([piece("a", 0, "v")])
    assert sorted(map(str, again.records)) == sorted(map(str, before))
    assert lines(tmp_path / "c" / "superseded.jsonl") == [("a", 0, "w")]


def test_records_of_seeds_outside_the_recipe_stay(tmp_path: Path) -> None:
    ledger = Ledger(written(tmp_path / "c", [final("t", "a", seed, 0.5) for seed in (0, 1)]))
    assert ledger.foreign([piece("a", 0, "v")]) == []
    ledger.settle([piece("a", 0, "v")])
    assert lines(tmp_path / "c" / "cells.jsonl") == [("a", 0, "v"), ("a", 1, "v")]
    assert not (tmp_path / "c" / "superseded.jsonl").exists()
