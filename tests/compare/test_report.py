"""Tables and figures from cells.jsonl alone: the numbers in them, and that they follow the lines."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tests.compare.small import final, of, small, trial, written
from tests.small_runs import unmask
from unmask.compare.jobs import Record
from unmask.compare.recipe import CompareRecipe
from unmask.compare.report import report
from unmask.compare.results import Results
from unmask.compare.tables import write_tables
from unmask.errors import RunError
from unmask.functional.intervals import wilson_interval

# Sampled, seeds 0, 1, 2: a 0.2, 0.4, 0.9; b 0.1, 0.5, 0.6.
RECORDS = [
    *(final("t", "base", seed, 0.125, 0.25, steps=0, token_passes=0, reward_calls=0) for seed in (0, 1, 2)),
    *(final("t", "a", seed, v, settings={"x.rate": 1e-3}) for seed, v in enumerate((0.2, 0.4, 0.9))),
    *(final("t", "b", seed, v) for seed, v in enumerate((0.1, 0.5, 0.6))),
]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """`made(records, **changes)`: the folder of a report on these lines, with these changes to the recipe."""

    def make(records: list[Record] = RECORDS, **changes: Any) -> Path:
        folder = written(tmp_path / "c", records)
        return report(of(**{"baselines": ["b"], "output_dir": str(folder)} | changes)).parent

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved, kept open."""
    figures: list[Figure] = []
    monkeypatch.setattr(plt, "close", figures.append)
    return figures


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def lines_of(axis: Any) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axis.lines]


# --- the table ---


def test_the_table_has_means_with_intervals_and_paired_differences(made: Callable[..., Path]) -> None:
    table = (made() / "table.md").read_text().splitlines()
    # t of 2 degrees of freedom is 4.3027; standard errors √(0.13/3), √(0.07/3) and, of the differences, 0.2/√3.
    assert "| base |  | 3 | 0 | 0 | 0 | 0.125 ± 0.000 | 0.250 ± 0.000 |" in table
    assert "| a | rate 0.001 | 3 | 10 | 0.99M | 1,280 | 0.500 ± 0.896 | 0.500 ± 0.000 |" in table
    assert "| b |  | 3 | 10 | 0.99M | 1,280 | 0.400 ± 0.657 | 0.500 ± 0.000 |" in table
    assert "| a - b | 3 | +0.100 ± 0.497 | +0.000 ± 0.000 |" in table
    assert "Budget: 1M token passes." in table


def test_the_table_follows_every_accuracy(tmp_path: Path) -> None:
    def table(records: list[Record]) -> str:
        return write_tables(Results(of(baselines=["b"]), records), tmp_path).read_text()

    before = table(RECORDS)
    for i, record in enumerate(RECORDS):
        for temperature in ("0.9", "0"):
            changed = record | {"accuracy": record["accuracy"] | {temperature: 0.75}}
            assert table([*RECORDS[:i], changed, *RECORDS[i + 1 :]]) != before
    assert table(RECORDS) == before


def test_the_csv_has_what_the_table_rounds(made: Callable[..., Path]) -> None:
    found = rows(made() / "table.csv")
    keyed = {(r["method"], r["minus"], r["temperature"]): r for r in found}
    assert list(keyed) == [
        *((method, "", t) for method in ("base", "a", "b") for t in ("0.9", "0")),
        *(("a", "b", t) for t in ("0.9", "0")),
    ]
    mean = keyed["a", "", "0.9"]
    assert [float(mean[k]) for k in ("accuracy", "se", "seeds")] == pytest.approx([0.5, (0.13 / 3) ** 0.5, 3])
    assert [float(mean[k]) for k in ("reward", "steps", "token_passes", "reward_calls", "seconds")] == pytest.approx(
        [0.6, 10, 990_000, 1280, 2]
    )
    assert float(mean["half_width"]) == pytest.approx(4.302653 * float(mean["se"]), rel=1e-6)
    difference = keyed["a", "b", "0.9"]
    assert [float(difference[k]) for k in ("accuracy", "se")] == pytest.approx([0.1, 0.2 / 3**0.5])


def test_two_baselines_are_held_against_each_other_once(made: Callable[..., Path]) -> None:
    records = [final("t", method, seed, 0.5) for method in "abc" for seed in (0, 1)]
    table = (made(records, methods={m: {} for m in "abc"}, baselines=["b", "c"]) / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines() if " - " in line] == ["| a - b", "| c - b", "| a - c"]


def test_one_seed_has_no_intervals_and_failures_are_listed(made: Callable[..., Path]) -> None:
    failed = {"stage": "final", "task": "t", "method": "b", "seed": 0, "variant": "v", "failed": "the loss is nan"}
    table = (made([RECORDS[3], failed]) / "table.md").read_text()
    assert "| a | rate 0.001 | 1 | 10 | 0.99M | 1,280 | 0.200 | 0.500 |" in table
    assert "difference" not in table
    assert table.endswith("## Failed\n\n- b on t, seed 0: the loss is nan\n")
    assert "## Failed" not in (made([*RECORDS[:6], failed, *RECORDS[6:]]) / "table.md").read_text(), "it was run again"


# --- what was tried ---


def test_all_that_was_tried_is_told_with_what_was_chosen(made: Callable[..., Path]) -> None:
    failed = {"stage": "tuning", "task": "t", "method": "a", "seed": 7, "variant": "w", "settings": {"rate": 4}}
    tried = [trial("a", 7, 1, 0.25, 0.75), trial("a", 7, 2, 0.5, 1.0), failed | {"failed": "the loss is nan"}]
    folder = made([*tried, *RECORDS], tuning={"grid": {"rate": [1, 2, 4]}, "seeds": [7]})
    assert (folder / "tuning.md").read_text().splitlines()[4:] == [
        "| t | a | rate 1 | 1 | 0.250 | 0.750 | 0.500 |  |",
        "| t | a | rate 2 | 1 | 0.500 | 1.000 | 0.750 | chosen |",
        "| t | a | rate 4 | 0 |  |  |  | failed: seed 7: the loss is nan |",
    ]
    verdicts = [(r["settings"], r["accuracy@0.9"], r["mean"], r["verdict"]) for r in rows(folder / "tuning.csv")]
    assert verdicts[:2] == [("rate 1", "0.25", "0.5", ""), ("rate 2", "0.5", "0.75", "chosen")]
    made([trial("a", 7, 1, 1.0, 1.0), *tried[1:]], tuning={"grid": {"rate": [1, 2, 4]}, "seeds": [7]})
    assert "| 1.000 | chosen, at the edge of the grid |" in (folder / "tuning.md").read_text()


# --- the figures ---


def test_the_lines_go_through_the_means_and_the_bands_to_the_intervals(
    made: Callable[..., Path], drawn: list[Figure]
) -> None:
    folder = made()
    compute, decoding = drawn
    (panel,) = compute.axes
    assert lines_of(panel) == [
        [[0.0, 0.0], [0.99, pytest.approx(0.5)]],
        [[0.0, 0.0], [0.99, pytest.approx(0.4)]],
    ]
    top = panel.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(0.5 + 4.302653 * (0.13 / 3) ** 0.5, rel=1e-6)
    (panel,) = decoding.axes
    assert lines_of(panel) == [[[2.0, 0.125], [8.0, greedy]] for greedy in (0.25, 0.5, 0.5)]
    for name in ("compute", "decoding"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "solved share of test rows" in (folder / f"{name}.svg").read_text()


def test_equal_numbers_give_equal_pictures(made: Callable[..., Path]) -> None:
    first, again = ((made() / "compute.svg").read_bytes() for _ in range(2))
    other = (made([*RECORDS[:-1], final("t", "b", 2, 0.7)]) / "compute.svg").read_bytes()
    assert first == again != other


def test_every_task_has_a_panel_and_every_method_a_look_of_its_own(tmp_path: Path, drawn: list[Figure]) -> None:
    methods = [f"m{i}" for i in range(9)]
    records = [final(task, method, seed, 0.5) for task in ("t", "u") for method in methods for seed in (0, 1)]
    report(of(["t", "u", "unrun"], methods, output_dir=str(written(tmp_path / "c", records))))
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["t", "u"]
    looks = [[(line.get_color(), line.get_linestyle()) for line in panel.lines] for panel in panels]
    assert looks[0] == looks[1]
    assert len(set(looks[0])) == 9


def test_the_numbers_of_the_figures_are_beside_them(made: Callable[..., Path]) -> None:
    folder = made()
    compute = rows(folder / "compute.csv")
    assert [(r["method"], r["temperature"], float(r["token_passes"])) for r in compute] == [
        (method, t, passes) for method in "ab" for t in ("0.9", "0") for passes in (0, 990_000)
    ]
    assert float(compute[1]["accuracy"]) == pytest.approx(0.5)
    decoding = rows(folder / "decoding.csv")
    assert [(r["method"], r["decoding_steps"], float(r["accuracy"])) for r in decoding] == [
        ("base", "2", 0.125),
        ("base", "8", 0.25),
        *((method, steps, accuracy) for method in "ab" for steps, accuracy in (("2", 0.125), ("8", 0.5))),
    ]


def test_a_single_seed_has_the_interval_of_its_rows(made: Callable[..., Path], drawn: list[Figure]) -> None:
    folder = made([record for record in RECORDS if record["seed"] == 1])
    row = rows(folder / "decoding.csv")[-1]
    num_rows = of().evaluation.num_rows
    assert (float(row["low"]), float(row["high"])) == wilson_interval(num_rows // 2, num_rows)
    assert drawn[1].axes[0].collections[-1].get_paths()[0].vertices[:, 1].max() == pytest.approx(float(row["high"]))


# --- the command ---


def test_a_report_needs_no_run_folder_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe: CompareRecipe = small(tmp_path, "tuning=")
    records = [final("sudoku", method, seed, 0.5) for method in recipe.methods for seed in (0, 1)]
    written(recipe.folder, records)
    monkeypatch.setattr("unmask.compare.run.compare", None)
    assert unmask("compare", tmp_path / "small.yaml", "tuning=", "--report") == 0
    out = capsys.readouterr().out
    assert "| entropy - late steps | 2 | +0.000 ± 0.000 | +0.000 ± 0.000 |" in out
    assert out.splitlines()[-4:] == [
        f"table: {recipe.folder / 'table.md'}",
        f"figure: {recipe.folder / 'compute.png'}",
        f"figure: {recipe.folder / 'decoding.png'}",
        f"all of it on one page: unmask report {recipe.folder}",
    ]
    assert sorted(path.name for path in recipe.folder.iterdir()) == sorted(
        ["cells.jsonl", "table.md", "table.csv"]
        + [f"{name}.{suffix}" for name in ("compute", "decoding") for suffix in ("csv", "png", "svg")]
    )


def test_a_report_on_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="has no results yet: it has no cells.jsonl, or an empty one. Run the comparison"
    ):
        report(of(output_dir=str(tmp_path)))
