"""unmask plot: the lines go through the runs' numbers, and every interval is the one that it should
be."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from tests.helpers.comparisons import final, small, written
from tests.helpers.messages import raises
from tests.helpers.paths import RESULTS
from tests.helpers.runs import unmask
from unmask.core.errors import ConfigError, RunError
from unmask.recipes.load import dump
from unmask.report.plot import group_runs, plot_metrics, range_of

GREEDY = "eval/test@0/accuracy"


def run(folder: Path, values: list[float], accuracies: dict[int, float], passes: int = 10, **settings: Any) -> Path:
    """A run folder whose reward is `values`, step by step from 1."""
    folder.mkdir(parents=True)
    own = {"seed": 0, "output_dir": str(folder), "method": {"type": "egspo", "beta": 0.0}, "max_steps": len(values)}
    (folder / "config.yaml").write_text(yaml.safe_dump(own | settings))
    lines: list[dict[str, Any]] = [{"step": 0}]
    lines += [
        {"step": i + 1, "reward": v, "loss": v, "compute/token_passes": passes, "curve": [1]}
        for i, v in enumerate(values)
    ]
    for line in lines:
        if (accuracy := accuracies.get(line["step"])) is not None:
            line |= {GREEDY: accuracy, "eval/test@0/low": accuracy / 2, "eval/test@0/high": (1 + accuracy) / 2}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_table(path: Path, expected: Path) -> None:
    """Assert that two CSV files hold the same texts, and the same numbers up to rounding."""
    for row, wanted in zip(rows(path), rows(expected), strict=True):
        assert list(row) == list(wanted)
        for value, other in zip(row.values(), wanted.values(), strict=True):
            try:
                assert float(value) == pytest.approx(float(other), rel=1e-9, nan_ok=True)
            except ValueError:
                assert value == other


@pytest.mark.slow
def test_a_single_run_has_the_wilson_interval_that_it_logged(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = run(tmp_path / "a", [0.5, 0.75], {0: 0.25, 2: 0.5})
    assert plot_metrics([folder], [], tmp_path / "x.svg") == tmp_path / "x.svg"
    accuracy, reward = drawn[0].axes
    assert accuracy.lines[0].get_xydata().tolist() == [[0, 0.25], [2, 0.5]]
    assert reward.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    heights = accuracy.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.125, 0.75)
    assert "95 % interval over examples (Wilson)" in accuracy.get_title()
    assert "one run: no interval" in reward.get_title()
    assert [(r["metric"], r["step"], r["mean"], r["low"], r["high"]) for r in rows(tmp_path / "x.csv")] == [
        (GREEDY, "0", "0.25", "0.125", "0.625"),
        (GREEDY, "2", "0.5", "0.25", "0.75"),
        ("reward", "1", "0.5", "nan", "nan"),
        ("reward", "2", "0.75", "nan", "nan"),
    ]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "test accuracy, greedy" in (tmp_path / "x.svg").read_text()


@pytest.mark.slow
def test_only_the_formats_that_are_named_are_written(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [0.5, 0.75], {0: 0.25, 2: 0.5})
    plot_metrics([folder], [], tmp_path / "x.png", suffixes=[".png"])
    assert sorted(path.name for path in tmp_path.glob("x*")) == ["x.csv", "x.png"]


@pytest.mark.slow
def test_runs_of_other_seeds_are_one_line_with_the_interval_over_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    folders = [run(tmp_path / str(s), [v], {1: v}, passes=10 + s, seed=s) for s, v in enumerate((0.2, 0.3, 0.7))]
    plot_metrics(folders, [GREEDY, "reward"], tmp_path / "x.png", x="token_passes")
    for name, row in zip((GREEDY, "reward"), rows(tmp_path / "x.csv"), strict=True):
        assert (row["metric"], row["runs"], float(row["token_passes"])) == (name, "3", 11)
        # t of 2 degrees of freedom, and a standard deviation of (0.07)^0.5.
        half = 4.302653 * (0.07 / 3) ** 0.5
        assert half > 0.6, "so both are cut to the range of a share, and of a task's own reward"
        assert [float(row[key]) for key in ("mean", "low", "high")] == pytest.approx([0.4, 0.0, 1.0])
    plot_metrics(folders, ["loss"], tmp_path / "y.png")
    (row,) = rows(tmp_path / "y.csv")
    assert [float(row[key]) for key in ("mean", "low", "high")] == pytest.approx([0.4, 0.4 - half, 0.4 + half])
    assert drawn[0].axes[0].lines[0].get_xdata().tolist() == [11e-6]
    assert "over seeds" in drawn[0].axes[0].get_title()


@pytest.mark.slow
def test_only_steps_that_all_seeds_have_are_drawn(tmp_path: Path) -> None:
    folders = [run(tmp_path / "0", [0.1, 0.2, 0.3], {}), run(tmp_path / "1", [0.1, 0.2], {}, seed=1, max_steps=3)]
    plot_metrics(folders, ["reward"], tmp_path / "x.png")
    assert [r["step"] for r in rows(tmp_path / "x.csv")] == ["1", "2"]


@pytest.mark.slow
def test_smoothing_is_optional_and_labelled_and_never_applies_to_accuracies(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    folder = run(tmp_path / "a", [0.0, 1.0, 2.0], {1: 0.0, 2: 0.5, 3: 1.0})
    plot_metrics([folder], [GREEDY, "reward"], tmp_path / "x.png", smooth=2)
    accuracy, reward = drawn[0].axes
    assert accuracy.lines[0].get_ydata().tolist() == [0.0, 0.5, 1.0]
    assert reward.lines[0].get_ydata().tolist() == [0.0, 0.5, 1.5]
    assert "mean of 2 measurements" in reward.get_title()
    assert "mean of" not in accuracy.get_title()
    assert {(r["metric"], r["smoothed_over"]) for r in rows(tmp_path / "x.csv")} == {(GREEDY, "1"), ("reward", "2")}


def test_labels_name_the_differences_between_recipes(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [1.0], {}, optim={"learning_rate": 0.1})
    b = run(tmp_path / "b", [1.0], {}, optim={"learning_rate": 0.2}, seed=3)
    c = run(tmp_path / "c", [1.0], {}, optim={"learning_rate": 0.2}, method={"type": "wd1"})
    assert group_runs([a, b]) == {"optim.learning_rate 0.1": [a], "optim.learning_rate 0.2": [b]}
    assert list(group_runs([b, c])) == ["egspo", "wd1"]
    assert group_runs([a]) == {"a": [a]}
    assert list(group_runs([a, b, c])) == [
        "beta 0.0, type egspo, optim.learning_rate 0.1",
        "beta 0.0, type egspo, optim.learning_rate 0.2",
        "type wd1, optim.learning_rate 0.2",
    ]
    assert group_runs([a, b], ["optim.learning_rate"]) == {"a": [a, b]}
    assert group_runs([a, b], ["optim"]) == {"a": [a, b]}


def test_a_run_named_twice_does_not_count_as_two_seeds(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [1.0], {})
    shutil.copytree(folder, tmp_path / "b")
    with raises(RunError, "same seed"):
        plot_metrics([folder, tmp_path / "b"], [], tmp_path / "x.png")


def test_metrics_that_cannot_be_drawn_are_errors(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [1.0], {})
    with raises(RunError, '"rewrd"', '"reward"'):
        plot_metrics([folder], ["rewrd"], tmp_path / "x.png")
    with raises(ConfigError, "--metric curve"):
        plot_metrics([folder], ["curve"], tmp_path / "x.png")
    with raises(ConfigError, ".png, .svg, .pdf"):
        plot_metrics([folder], [], tmp_path / "x.jpg")
    with raises(ConfigError, '"steps"', '"step"'):
        plot_metrics([folder], [], tmp_path / "x.png", x="steps")
    (tmp_path / "none").mkdir()
    with raises(RunError, "not a run folder"):
        plot_metrics([tmp_path / "none"], [], tmp_path / "x.png")


@pytest.mark.slow
def test_the_command_draws_runs_and_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "a", [0.5], {1: 0.5})
    assert unmask("plot", folder, "--metric", f"reward, {GREEDY}", "--output", tmp_path / "figures" / "a.png") == 0
    assert capsys.readouterr().out == f"figure: {tmp_path / 'figures' / 'a.png'}\n"
    place = tmp_path / "compare"
    shutil.copytree(RESULTS / "paper-tiny", place)
    assert unmask("plot", place, "--output", tmp_path / "b.svg") == 0
    # This comparison measured no accuracy at other numbers of denoising steps.
    assert capsys.readouterr().out == f"figure: {tmp_path / 'b.svg'}\n"
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["b.csv", "b.pdf", "b.png", "b.svg"]
    assert_same_table(tmp_path / "b.csv", RESULTS / "paper-tiny" / "compute.csv")
    place = tmp_path / "compare-2"
    shutil.copytree(RESULTS / "controls-tiny", place)
    assert unmask("plot", place, "--output", tmp_path / "against.png") == 0
    assert (
        capsys.readouterr().out == f"figure: {tmp_path / 'against.png'}\nfigure: {tmp_path / 'against-decoding.png'}\n"
    )
    assert (tmp_path / "against.png").is_file()
    assert unmask("plot", place, folder) == 2
    assert "Give only its folder" in capsys.readouterr().err


@pytest.mark.slow
def test_labels_of_steps_are_whole_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = run(tmp_path / "a", [0.5, 0.75, 0.5], {0: 0.25})
    plot_metrics([folder], ["reward"], tmp_path / "x.png")
    plot_metrics([folder], ["reward"], tmp_path / "y.png", x="token_passes")
    step, passes = ([float(tick) for tick in figure.axes[0].get_xticks()] for figure in drawn)
    assert all(tick.is_integer() for tick in step)
    assert not all(tick.is_integer() for tick in passes)


@pytest.mark.parametrize(
    ("metric", "config", "expected"),
    [
        ("eval/test@0/accuracy", {}, (0, 1)),
        ("completions/ended_share", {}, (0, 1)),
        ("clip_ratio/region_mean", {}, (0, 1)),
        ("frac_reward_zero_std", {}, (0, 1)),
        ("rewards/sudoku/unparsed", {"reward_funcs": ["a.py:f"]}, (0, 1)),
        ("reward", {}, (0, 1)),
        ("reward", {"reward_weights": [2.0]}, (0, 2)),
        ("reward", {"reward_funcs": ["a.py:f"]}, (-inf, inf)),
        ("eval/test@0/reward", {}, (0, 1)),
        ("rewards/sudoku/mean", {"reward_weights": [2.0]}, (0, 1)),
        ("diffusion/one_step_reward", {}, (0, 1)),
        ("time/rollout", {}, (0, inf)),
        ("loss", {}, (-inf, inf)),
        ("kl", {}, (-inf, inf)),
    ],
)
def test_the_range_of_a_metric(metric: str, config: dict[str, Any], expected: tuple[float, float]) -> None:
    assert range_of(metric, config) == expected


@pytest.mark.slow
def test_more_than_six_lines_have_six_bands(tmp_path: Path, drawn: list[Figure]) -> None:
    folders = [run(tmp_path / str(i), [0.5], {1: i / 10}, optim={"learning_rate": i}) for i in range(8)]
    plot_metrics(folders, [GREEDY], tmp_path / "x.png")
    (panel,) = drawn[0].axes
    assert [len(c.get_paths()) > 0 for c in panel.collections] == [False, False, *[True] * 6]
    assert "only the 6 that end highest" in panel.get_title().replace("\n", " ")


@pytest.mark.slow
def test_strange_names_and_numbers_are_drawn_or_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "a$x_$", [0.5, 0.75], {}, optim={"learning_rate": "$1^$"})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "eval/test@x/accuracy": 0.5, "eval/test@0/accuracy": [1]}\n')
    plot_metrics([folder], ["eval/test@x/accuracy"], tmp_path / "x.png")
    assert "test accuracy, sampled at x" in (tmp_path / "x.svg").read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "eval/test@1/accuracy": 0.5, "eval/test@1/low": [1], "eval/test@1/high": 1}\n')
    plot_metrics([folder], [], tmp_path / "curve.png")
    assert [(r["metric"], r["low"]) for r in rows(tmp_path / "curve.csv") if "@1" in r["metric"]] == [
        ("eval/test@1/accuracy", "nan")
    ]
    assert {r["metric"] for r in rows(tmp_path / "curve.csv")} == {
        "eval/test@x/accuracy",
        "eval/test@1/accuracy",
        "reward",
    }


@pytest.mark.slow
def test_an_unwritable_target_is_an_error_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = run(tmp_path / "a", [0.5], {1: 0.5}), tmp_path / "x.png"
    target.write_text("before, by Matplotlib")
    (tmp_path / "file").write_text("")
    with raises(RunError, "x.png"):
        plot_metrics([folder], [], tmp_path / "file" / "x.png")

    def full(_self: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with raises(RunError, "x.png"):
        plot_metrics([folder], [], target)
    assert target.read_text() == "before, by Matplotlib"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file", "x.png"]


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".csv"])
@pytest.mark.slow
def test_a_figure_overwrites_earlier_figures_and_nothing_else(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = run(tmp_path / "a", [0.5], {1: 0.5}), tmp_path / "paper.png"
    for _ in range(2):
        assert unmask("plot", folder, "--output", target) == 0
    other = target.with_suffix(suffix)
    for content, code in [(b"prompt,answer\n1+1=,2\n" * 500, 2), (b"", 0)]:
        other.write_bytes(content)
        capsys.readouterr()
        assert unmask("plot", folder, "--output", target) == code
        if code:
            assert f"--output {target} would overwrite {other}, which is not a figure" in capsys.readouterr().err
            assert other.read_bytes() == content
    other.unlink()
    other.mkdir()
    assert unmask("plot", folder, "--output", target) == 2


@pytest.mark.slow
def test_the_second_figure_of_a_comparison_overwrites_nothing_either(tmp_path: Path) -> None:
    recipe = small(tmp_path, "tuning=", name="compare")
    place = written(recipe.folder, [final("sudoku", method, seed, 0.5) for method in recipe.methods for seed in (0, 1)])
    (place / "recipe.yaml").write_text(dump(recipe))
    assert unmask("plot", place, "--output", tmp_path / "x.png") == 0
    assert unmask("plot", place, "--output", tmp_path / "x.png") == 0
    (tmp_path / "x-decoding.pdf").write_text("my paper")
    (tmp_path / "x.png").unlink()
    assert unmask("plot", place, "--output", tmp_path / "x.png") == 2
    assert (tmp_path / "x-decoding.pdf").read_text() == "my paper"
    assert not (tmp_path / "x.png").exists()
