"""pass@k in the tables of a comparison: whether a method has narrowed what the model can find."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.helpers.comparisons import final, of
from unmask.report.table_files import tables_of, write_tables
from unmask.report.tables import diversity
from unmask.trainer.comparison.results import Results
from unmask.trainer.comparison.statistics import Statistics


def results(*, is_complete: bool = True) -> Results:
    """Return results of three seeds in which the method `a` is better than the base at k = 1 and worse at k = 4."""
    one = {"base": (0.2, 0.7), "a": (0.5, 0.6), "b": (0.4, 0.7)}
    records = [
        final("t", method, seed, first, pass_at={"0.9": {"1": first, "4": last + 0.1 * (seed - 1)}})
        for method, (first, last) in one.items()
        for seed in (0, 1, 2)
    ]
    return Results(of(), records if is_complete else [*records[:-1], final("t", "b", 2, 0.4)])


def test_a_table_shows_pass_at_k_and_the_paired_change_at_the_largest_k() -> None:
    found = results()
    table = diversity(found, "t", "0.9")
    assert table is not None
    assert table.columns == ["pass@k, sampled at 0.9", "k = 1", "k = 4", "k = 4 minus base"]
    by_method = {row[0]: row[1:] for row in table.rows}
    assert by_method["base"] == ["0.200 ± 0.000", "0.700 ± 0.248", ""]
    # The seeds move both alike, so the difference of each pair is the same.
    assert by_method["a"] == ["0.500 ± 0.000", "0.600 ± 0.248", "-0.100 ± 0.000"]
    assert by_method["b"][2] == "+0.000 ± 0.000"
    assert table in tables_of(found, Statistics(found), "t")
    assert diversity(found, "t", "0") is None, "greedy decoding has one completion"


def test_without_several_samples_in_every_run_there_is_no_table(tmp_path: Path) -> None:
    for found in (results(is_complete=False), Results(of(), [final("t", "a", seed, 0.5) for seed in (0, 1, 2)])):
        assert diversity(found, "t", "0.9") is None
        assert len(tables_of(found, Statistics(found), "t")) == 1
        write_tables(found, tmp_path)
        assert not (tmp_path / "diversity.csv").exists()


def test_the_file_has_all_digits(tmp_path: Path) -> None:
    write_tables(results(), tmp_path)
    assert "| pass@k, sampled at 0.9 | k = 1 | k = 4 | k = 4 minus base |" in (tmp_path / "table.md").read_text()
    with (tmp_path / "diversity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["k"]) for row in rows] == [(m, k) for k in "14" for m in ("base", "a", "b")]
    assert float(rows[4]["pass_at_k"]) == 0.6
    assert float(rows[4]["se"]) > 0.05
