"""Tables and figures from cells.jsonl alone: the numbers in them, and that they follow the
lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.helpers.comparisons import SMALL, final, of, small, trial, written
from tests.helpers.messages import raises
from tests.helpers.runs import unmask
from unmask.core.errors import RunError
from unmask.functional.intervals import wilson_interval
from unmask.recipes.load import dump
from unmask.report.comparison import comparison_of
from unmask.report.comparison_files import report
from unmask.report.table_files import write_tables
from unmask.trainer.comparison.jobs import Record
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.results import Results

pytestmark = pytest.mark.slow

# Sampled, seeds 0, 1, 2: a 0.2, 0.4, 0.9; b 0.1, 0.5, 0.6.
RECORDS = [
    *(final("t", "base", seed, 0.125, 0.25, steps=0, token_passes=0, reward_calls=0) for seed in (0, 1, 2)),
    *(final("t", "a", seed, v, settings={"x.rate": 1e-3}) for seed, v in enumerate((0.2, 0.4, 0.9))),
    *(final("t", "b", seed, v) for seed, v in enumerate((0.1, 0.5, 0.6))),
]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """`made(records, **changes)`: the folder of a report on these lines, with these changes to the
    recipe."""

    def make(records: list[Record] = RECORDS, **changes: Any) -> Path:
        folder = written(tmp_path / "c", records)
        return report(of(**{"baselines": ["b"], "output_dir": str(folder)} | changes)).parent

    return make


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take a second of a report, in tests that look at tables."""
    for name in ("plot_compute", "plot_decoding"):
        monkeypatch.setattr(f"unmask.report.comparison_files.{name}", lambda _results, _path: False)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def lines_of(axis: Any) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axis.lines]


# --- the table ---


@pytest.mark.usefixtures("undrawn")
def test_the_table_has_means_with_intervals_and_paired_differences(made: Callable[..., Path]) -> None:
    table = (made() / "table.md").read_text().splitlines()
    # t of 2 degrees of freedom is 4.3027; standard errors √(0.13/3), √(0.07/3) and, of the
    # differences, 0.2/√3. 0.5 ± 0.896 and 0.4 ± 0.657 would leave the range of a share.
    assert "| base |  |  | 3 | 0 | 0 | 0 | 0.125 ± 0.000 | 0.250 ± 0.000 |" in table
    assert "| a | rate 0.001 |  | 3 | 10 | 0.99M | 1,280 | 0.500 (0.000 to 1.000) | 0.500 ± 0.000 |" in table
    assert "| b |  |  | 3 | 10 | 0.99M | 1,280 | 0.400 (0.000 to 1.000) | 0.500 ± 0.000 |" in table
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


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_two_baselines_are_held_against_each_other_once(made: Callable[..., Path]) -> None:
    records = [final("t", method, seed, 0.5) for method in "abc" for seed in (0, 1)]
    table = (made(records, methods={m: {} for m in "abc"}, baselines=["b", "c"]) / "table.md").read_text()
    differences = table[table.index("| difference, paired by seed |") : table.index("| test, paired by seed |")]
    assert re.findall(r"^\| (. - .) \|", differences, re.MULTILINE) == ["a - b", "c - b", "a - c"]


@pytest.mark.usefixtures("undrawn")
def test_one_seed_has_no_intervals_and_failures_are_listed(made: Callable[..., Path]) -> None:
    failed = {"stage": "final", "task": "t", "method": "b", "seed": 0, "variant": "v", "failed": "the loss is nan"}
    table = (made([RECORDS[3], failed]) / "table.md").read_text()
    assert "| a | rate 0.001 |  | 1 | 10 | 0.99M | 1,280 | 0.200 | 0.500 |" in table
    assert "| difference, paired by seed |" not in table
    assert table.endswith("## Failed\n\n- b on t, seed 0: the loss is nan\n")
    assert "## Failed" not in (made([*RECORDS[:6], failed, *RECORDS[6:]]) / "table.md").read_text(), "it was run again"


@pytest.mark.usefixtures("undrawn")
def test_the_best_mean_is_bold_only_if_its_paired_interval_says_so(made: Callable[..., Path]) -> None:
    # Greedy, a is above b by 0.1 to 0.14 by seed: their intervals overlap, that of the difference is
    # above 0.
    seeds = list(range(5))
    sure = [
        final("t", m, s, 0.5, v)
        for m, vs in (("a", (0.3, 0.41, 0.52, 0.63, 0.74)), ("b", (0.2, 0.3, 0.4, 0.5, 0.6)))
        for s, v in enumerate(vs)
    ]
    assert "| 0.520 ± 0.216 |" not in (table := (made(sure, seeds=seeds) / "table.md").read_text())
    assert "| **0.520 ± 0.216** |" in table
    assert "Bold: the largest mean of a column, if the 95 % intervals of its paired differences" in table
    best = {
        (r["method"], r["temperature"]): r["is_best"]
        for r in rows(made(sure, seeds=seeds) / "table.csv")
        if not r["minus"]
    }
    assert best == {("a", "0.9"): "False", ("a", "0"): "True", ("b", "0.9"): "False", ("b", "0"): "False"}
    # A third line that is as good takes the certainty away, and so does a seed less.
    third = [final("t", "c", s, 0.5, v) for s, v in enumerate((0.3, 0.4, 0.5, 0.65, 0.75))]
    table = (made([*sure, *third], methods={m: {} for m in "abc"}, seeds=seeds) / "table.md").read_text()
    assert "**0." not in table
    assert (
        "**t, greedy: no method is certainly the best.** a has the largest mean, but the 95 % intervals of its "
        "differences from c contain 0."
    ) in table
    for number, said in ((4, "only 4 seeds"), (1, "only 1 seed")):
        table = (made([r for r in sure if r["seed"] < number], seeds=seeds) / "table.md").read_text()
        assert "**0." not in table
        assert f"**t: no method is called the best, because a line has {said}.** Use at least 5." in table


@pytest.mark.parametrize(("number", "said"), [(1, "one seed"), (2, "2 seeds"), (4, "4 seeds"), (5, ""), (9, "")])
def test_few_seeds_are_announced(made: Callable[..., Path], drawn: list[Figure], number: int, said: str) -> None:
    records = [final("t", "a", seed, 0.5 + seed / 100) for seed in range(number)]
    table = (made(records, seeds=list(range(number)), baselines=[]) / "table.md").read_text()
    assert (f"**Few seeds: {said}.** With fewer than five seeds these numbers are not reliable" in table) == bool(said)
    assert (
        "With few seeds, differences may be due to chance."
        in drawn[0].legends[0].get_title().get_text().replace("\n", " ")
    ) == bool(said)


def test_no_number_of_a_share_leaves_its_range(made: Callable[..., Path]) -> None:
    records = [final("t", m, s, v, 1 - v) for m, vs in (("a", (0.0, 1.0)), ("b", (1.0, 0.0))) for s, v in enumerate(vs)]
    folder = made(records)
    for name, lowest in (("table", -1), ("compute", 0), ("decoding", 0)):
        for row in rows(folder / f"{name}.csv"):
            least = 0 if not row.get("minus") else lowest
            assert least <= float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) <= 1
    assert "| a - b | 2 | +0.000 (-1.000 to +1.000) | +0.000 (-1.000 to +1.000) |" in (folder / "table.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_table_says_budget_base_and_shape_of_every_method_and_all_tasks_at_a_glance(tmp_path: Path) -> None:
    recipe = small(tmp_path, "tuning=", tasks={"one": SMALL["tasks"]["sudoku"], "two": SMALL["tasks"]["sudoku"]})
    records = [
        *(final(task, "base", s, 0.25) for task in ("one", "two") for s in (0, 1)),
        *(final("one", "entropy", s, 0.5, num_prompts=8, num_generations=4) for s in (0, 1)),
        *(final("two", "entropy", s, 0.75, num_prompts=8, num_generations=4) for s in (0, 1)),
        *(final("one", "late steps", s, 0.5, num_prompts=32, num_generations=1) for s in (0, 1)),
    ]
    written(recipe.folder, records)
    table = report(recipe).read_text()
    assert "| sampled at 0.9 | token passes | base | entropy, 8 x 4 | late steps, 32 x 1 |" in table
    assert "| one | 6,000 | 0.250 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 |" in table
    assert "| two | 6,000 | 0.250 ± 0.000 | 0.750 ± 0.000 |  |" in table
    assert "| entropy |  | 8 x 4 | 2 |" in table
    assert "Budget: 6,000 token passes." in table


def test_the_shape_of_older_results_is_that_which_the_comparison_sets(tmp_path: Path) -> None:
    entropy, late = SMALL["methods"].values()
    late = late | {"by_task": {"sudoku": {"num_prompts": 4, "num_generations": 3}}}
    recipe = small(tmp_path, "tuning=", methods={"entropy": entropy, "late steps": late})
    lines = [final("sudoku", method, 0, 0.5) for method in ("entropy", "late steps")]
    assert [Results(recipe, lines).shape("sudoku", m) for m in ("entropy", "late steps")] == ["2 x 2", "4 x 3"]
    chosen = final("sudoku", "entropy", 0, 0.5, settings={"num_prompts": 6})
    assert Results(recipe, [chosen]).shape("sudoku", "entropy") == "6 x 2"
    recorded = final("sudoku", "entropy", 0, 0.5, num_prompts=16, num_generations=2)
    assert Results(recipe, [recorded]).shape("sudoku", "entropy") == "16 x 2"
    assert Results(of(), [final("t", "a", 0, 0.5)]).shape("t", "a") == ""


@pytest.mark.usefixtures("undrawn")
def test_counts_are_rounded_in_one_way_in_table_and_page(made: Callable[..., Path]) -> None:
    records = [final("t", "a", s, 0.5, reward_calls=calls, steps=2 + s) for s, calls in enumerate((630, 631))]
    folder = made(records, seeds=[0, 1], baselines=[])
    (folder / "recipe.yaml").write_text(dump(of(seeds=[0, 1])))
    assert "| 2 | 3 | 0.99M | 631 |" in (folder / "table.md").read_text()
    (line,) = comparison_of(folder, "c")["tasks"][0]["methods"]
    assert (line["calls"], line["text"]) == (631, {"steps": "3", "passes": "0.99M", "calls": "631"})


@pytest.mark.usefixtures("undrawn")
def test_a_bar_or_a_formula_in_a_name_stays_in_its_cell(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", [final("t", "=a|b", seed, 0.5) for seed in (0, 1)])
    report(of(methods=["=a|b"], output_dir=str(folder)))
    assert "| =a\\|b |" in (folder / "table.md").read_text()
    assert rows(folder / "table.csv")[0]["method"] == "'=a|b"


# --- what was tried ---


@pytest.mark.usefixtures("undrawn")
def test_all_trials_are_listed_with_the_choice(made: Callable[..., Path]) -> None:
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
    bands = [collection.get_paths()[0].vertices[:, 1] for collection in panel.collections]
    # 0.5 + 0.896 and 0.4 - 0.657 are cut to the range of a share.
    assert [(band.min(), band.max()) for band in bands] == [(0.0, 1.0), (0.0, 1.0)]
    narrow = [*RECORDS[:3], *(final("t", "a", seed, v) for seed, v in enumerate((0.5, 0.51, 0.52)))]
    made(narrow)
    top = drawn[2].axes[0].collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(0.51 + 4.302653 * 0.01 / 3**0.5, rel=1e-6)
    (panel,) = decoding.axes
    assert lines_of(panel) == [[[2.0, 0.125], [8.0, greedy]] for greedy in (0.25, 0.5, 0.5)]
    for name in ("compute", "decoding"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "solved share of test examples" in (folder / f"{name}.svg").read_text()


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


def test_lines_differ_by_more_than_colour_and_at_most_six_have_a_band(tmp_path: Path, drawn: list[Figure]) -> None:
    methods = [f"m{i}" for i in range(10)]
    records = [final("t", m, s, i / 20 + s / 50, i / 20 + s / 50) for i, m in enumerate(methods) for s in (0, 1)]
    report(of(["t"], methods, output_dir=str(written(tmp_path / "c", records))))
    for figure in drawn:
        (panel,) = figure.axes
        looks = [(line.get_linestyle(), line.get_marker()) for line in panel.lines]
        assert len(set(looks)) == 10
        banded = [len(collection.get_paths()) > 0 for collection in panel.collections]
        assert banded == [False] * 4 + [True] * 6
        assert "only for the 6 lines of a panel that end highest" in figure.legends[0].get_title().get_text().replace(
            "\n", " "
        )


def test_the_figures_say_what_the_bands_are_and_of_how_many_seeds(
    made: Callable[..., Path], drawn: list[Figure]
) -> None:
    made()
    made([record for record in RECORDS if record["seed"] == 1])
    notes = [figure.legends[0].get_title().get_text().replace("\n", " ") for figure in drawn]
    assert notes[0].startswith("3 seeds. Bands: 95 % Student-t interval over seeds")
    assert notes[3].startswith("One seed. Bands: 95 % Wilson interval over examples")


def test_denoising_steps_have_ticks_where_they_were_measured(made: Callable[..., Path], drawn: list[Figure]) -> None:
    steps = {str(2**i): i / 8 for i in range(5)}
    made([final("t", "a", seed, 0.5, decoding_accuracy=steps) for seed in (0, 1)])
    (axis,) = drawn[1].axes
    drawn[1].canvas.draw()
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    assert axis.get_xticks(minor=True).tolist() == []


def test_names_are_shown_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    methods = ["$x^$", "_hidden", "a$b$"]
    records = [final("$t_$", m, s, 0.5) for m in methods for s in (0, 1)]
    folder = written(tmp_path / "c", records)
    report(of(["$t_$"], methods, output_dir=str(folder)))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == methods
    svg = (folder / "compute.svg").read_text()
    assert all(f">{name}<" in svg for name in (*methods, "$t_$"))


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


def test_accuracy_is_also_drawn_against_reward_calls_if_they_were_recorded(
    made: Callable[..., Path], drawn: list[Figure]
) -> None:
    def with_calls(record: Record, calls: int) -> Record:
        return record | {"curve": [p | {"reward_calls": calls * (p["step"] > 0)} for p in record["curve"]]}

    records = [*RECORDS[:3], *(with_calls(r, 400) for r in RECORDS[3:6]), *(with_calls(r, 2_000) for r in RECORDS[6:])]
    folder = made(records)
    assert {path.name for path in folder.glob("reward_calls.*")} == {
        f"reward_calls.{s}" for s in ("csv", "pdf", "png", "svg")
    }
    compute, calls, _ = drawn
    assert [line[-1][0] for line in lines_of(calls.axes[0])] == [0.4, 2.0]
    assert calls.axes[0].get_xlabel() == "thousand reward calls"
    assert [line[-1][0] for line in lines_of(compute.axes[0])] == [0.99, 0.99]
    # The ticks of the other axis are where the runs are evaluated: at fifths of the budget of 1M.
    assert [t.get_text() for t in compute.axes[0].get_xticklabels()] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    table = (folder / "table.md").read_text()
    assert "| after 400 reward calls, 128 examples | sampled at 0.9 | greedy |" in table
    # a has used all of its calls there, and b a fifth.
    assert "| b | 0.080 (0.000 to 0.211) |" in table
    assert "reward calls, 128 examples" not in (made() / "table.md").read_text()


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
    monkeypatch.setattr("unmask.trainer.comparison.run.compare", None)
    assert unmask("compare", tmp_path / "small.yaml", "tuning=", "--report") == 0
    out = capsys.readouterr().out
    assert re.search(r"\nentropy - late steps +2 +\+0\.000 ± 0\.000 +\+0\.000 ± 0\.000 *\n", out)
    assert "| ---" not in out, "no raw Markdown"
    assert "Few seeds: 2 seeds." in out
    assert out.splitlines()[-4:] == [
        f"table: {recipe.folder / 'table.md'}",
        *(f"figure: {recipe.folder / name}.png" for name in ("compute", "decoding")),
        f"to write all of it into one page: unmask report {recipe.folder}",
    ]
    assert sorted(path.name for path in recipe.folder.iterdir()) == sorted(
        ["cells.jsonl", "table.md", "table.csv"]
        + [f"{name}.{suffix}" for name in ("compute", "decoding") for suffix in ("csv", "pdf", "png", "svg")]
    )


@pytest.mark.usefixtures("undrawn")
def test_a_report_shows_the_tasks_methods_and_seeds_that_are_selected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"one": SMALL["tasks"]["sudoku"], "two": SMALL["tasks"]["sudoku"]}
    recipe = small(tmp_path, "tuning=", tasks=tasks)
    values = {
        ("one", "entropy"): 0.25,
        ("one", "late steps"): 0.5,
        ("two", "entropy"): 0.75,
        ("two", "late steps"): 1.0,
    }
    written(recipe.folder, [final(*pair, seed, value - seed / 8) for pair, value in values.items() for seed in (0, 1)])

    def shown(*options: str) -> list[str]:
        assert unmask("compare", tmp_path / "small.yaml", "tuning=", "--report", *options) == 0
        table = (recipe.folder / "table.md").read_text()
        assert ("one: Budget" in capsys.readouterr().out) == ("## one" in table), "the terminal shows what the file has"
        return re.findall(r"^\| (?:entropy|late steps) \|.*\| (\d\.\d{3})[^|]*\| 0.500", table, re.MULTILINE)

    assert shown() == ["0.188", "0.438", "0.688", "0.938"]
    assert shown("--tasks", "two") == ["0.688", "0.938"]
    assert shown("--methods", "Late-Steps") == ["0.438", "0.938"]
    assert shown("--seeds", "1", "--tasks", "one", "--methods", "entropy") == ["0.125"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "7,8"], ["seeds 7, 8", "seeds 0, 1"]),
        (["--tasks", "suduko"], ['"suduko"', 'Did you mean "sudoku"?']),
        (["--methods", "entropi"], ['"entropi"', 'Did you mean "entropy"?']),
        (["--seeds", "one"], ['--seeds "one"']),
        (["--methods", " , "], ['--methods " , "', "names nothing"]),
    ],
    ids=lambda value: "".join(value[:1]) + value[-1].strip(),
)
def test_a_selection_that_has_no_results_or_is_misspelt_is_refused(
    tmp_path: Path, options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small(tmp_path, "tuning=")
    written(recipe.folder, [final("sudoku", method, seed, 0.5) for method in recipe.methods for seed in (0, 1)])
    assert unmask("compare", tmp_path / "small.yaml", "tuning=", "--report", *options) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (recipe.folder / "table.md").exists()


def test_a_report_on_nothing_is_refused(tmp_path: Path) -> None:
    with raises(RunError, "cells.jsonl"):
        report(of(output_dir=str(tmp_path)))


# --- faults ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"stage": "final"\n{}\n', ["line 1", "JSON object"]),
        (b"\x89PNG\xff\xfe\n", ["UTF-8"]),
        (b"[1]\n", ["line 1", "JSON object"]),
        (b'{"stage": "final", "task": "t"}\n', ["line 1", "record of a comparison"]),
        (b"[" * 100_000 + b"\n", ["line 1", "JSON object"]),
    ],
    ids=["not JSON", "not text", "a list", "missing keys", "too deep"],
)
def test_a_damaged_ledger_is_named_by_line(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "cells.jsonl").write_bytes(content)
    with raises(RunError, "cells.jsonl", *words):
        report(of(output_dir=str(tmp_path)))


def test_a_record_without_its_numbers_is_named(made: Callable[..., Path]) -> None:
    with raises(RunError, "a on t", "seed 1"):
        made([final("t", "a", 0, 0.5), final("t", "a", 1, 0.5, accuracy=0.5)])
    with raises(RunError, "0.3", "0.9", "evaluation.temperatures"):
        made([final("t", "a", 0, 0.5)], evaluation={"temperatures": [0.3]})


def test_damaged_hashes_of_code_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", RECORDS)
    for content in ("{", '{"a": 1}'):
        (folder / "code.json").write_text(content)
        with raises(RunError, "code.json"):
            report(of(output_dir=str(folder)))


@pytest.mark.usefixtures("undrawn")
def test_results_whose_hashes_are_missing_or_wrong_are_of_unknown_code(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", [record | {"code": ["0123", "4567"]} for record in RECORDS])
    assert "it is unknown whether they have changed: code.json" in report(of(output_dir=str(folder))).read_text()
    (folder / "code.json").write_text("{}")
    assert "| a † |" in report(of(output_dir=str(folder))).read_text()
