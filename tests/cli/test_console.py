"""What a person sees of a run: lines in a pipe, a bar on a terminal, tables that fit."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from unmask.cli import console
from unmask.cli.console import ProgressView, accuracies, progress, results_table, table
from unmask.cli.lists import task_page
from unmask.core.errors import ConfigError
from unmask.evaluation.evaluate import Evaluation
from unmask.methods import METHODS
from unmask.models.families import FAMILIES
from unmask.runs.metrics import temperature_name

EVALUATED = {"eval/test@0/accuracy": 0.25, "eval/test@0/low": 0.1, "eval/test@0.9/accuracy": 0.125}


def show(is_terminal: bool, *steps: tuple[int, dict[str, Any]]) -> str:
    """What is seen of these steps of a run of 10."""
    out = io.StringIO()
    target = Console(file=out, force_terminal=is_terminal, width=100, legacy_windows=False)
    with progress("train", 10, target) as view:
        for step, metrics in steps:
            view(step, metrics)
    return out.getvalue()


def test_a_pipe_gets_a_line_for_each_step() -> None:
    lines = show(
        False,
        (0, EVALUATED),
        (1, {"loss": 0.12345, "reward": 0.5, "grad_norm": 2.0, "learning_rate": 1e-4}),
        (2, {"loss": -0.001, "reward": 0.75} | EVALUATED),
    ).splitlines()
    assert lines[0] == "train step 0/10  solved: greedy 0.250, sampled at 0.9 0.125"
    assert re.fullmatch(r"train step 1/10  loss 0\.123  reward 0\.500  grad_norm 2\.000  \d+ s left", lines[1])
    assert re.fullmatch(r"train step 2/10  loss -0\.001  reward 0\.750  solved: greedy 0\.250, .* \d+ s left", lines[2])
    assert len(lines) == 3


def test_the_time_that_is_left_is_that_of_the_steps_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 103.0, 106.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(clock))
    # Resumed after step 4: 3 s a step, and 4 to go.
    lines = show(False, (5, {}), (6, {})).splitlines()
    assert "left" not in lines[0]
    assert lines[1].endswith("12 s left")


def test_a_terminal_gets_a_bar_and_a_line_for_each_evaluation() -> None:
    shown = show(True, (0, EVALUATED), (1, {"loss": 0.5, "reward": 0.25}), (10, {"loss": 0.5, "reward": 0.25}))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "train step 0: solved: greedy 0.250, sampled at 0.9 0.125" in plain
    assert "10/10" in plain
    assert "loss 0.500  reward 0.250" in plain


def test_a_pipe_gets_the_last_completion_with_the_accuracies() -> None:
    out = io.StringIO()
    with progress("train", 10, Console(file=out, width=100)) as view:
        view.example("[bold]12\n34\x1b[2J", 0.25)
        view(1, {"loss": 1.0})
        view(2, {"loss": 1.0} | EVALUATED)
    first, second, third = out.getvalue().splitlines()
    assert "last completion" not in first + second
    assert third == "  last completion, reward 0.250: [bold]12 34␛[2J"


def test_a_terminal_shows_reward_accuracy_time_left_and_the_last_completion() -> None:
    out = io.StringIO()
    with progress("train", 10, Console(file=out, force_terminal=True, width=90, legacy_windows=False)) as view:
        view(0, EVALUATED)
        view.example("12\n34 [red]" + 300 * "x", 0.25)
        view(5, {"loss": 0.5, "reward": 0.75})
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "loss 0.500  reward 0.750  solved: greedy 0.250, sampled at 0.9 0.125" in plain
    assert "last completion, reward 0.250: 12 34 [red]xxx" in plain
    assert re.search(r"5/10 .*(\d:\d\d:\d\d|-:--:--)", plain)
    # It never wraps: the bar would jump.
    assert max(len(line) for line in plain.splitlines()) <= 90


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 1) as view:
        assert isinstance(view, ProgressView)
        view(1, {"loss": 1.0})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train step 1/1  loss 1.000")


def test_accuracies_are_told_in_words() -> None:
    assert accuracies({"reward": 1.0}) == ""
    assert accuracies(EVALUATED) == "solved: greedy 0.250, sampled at 0.9 0.125"
    assert [temperature_name(t) for t in (0, "0.0", 0.5, "1.0")] == [
        "greedy",
        "greedy",
        "sampled at 0.5",
        "sampled at 1",
    ]


def test_a_table_takes_its_cells_literally(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "value"], [["[red]x[/red]", 1], ["y", None]], "[bold]title")
    printed = capsys.readouterr().out
    assert printed.startswith("[bold]title\n")
    assert re.search(r"\[red\]x\[/red\]\s+1", printed)
    assert re.search(r"y\s+None", printed)


def test_a_table_spells_out_what_would_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name"], [["a\x1b]0;owned\x07b"]], "title\x1b[2J")
    printed = capsys.readouterr().out
    assert "\x1b]" not in printed
    assert "\x1b[2J" not in printed
    assert "a␛]0;owned␇b" in printed


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_a_listing_cuts_no_name_on_a_narrow_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    console.methods_table()
    console.families_table()
    words = capsys.readouterr().out.split()
    wanted = [*METHODS, *(method.paper.removeprefix("arXiv:") for method in METHODS.values()), *FAMILIES]
    wanted += [family.native_class for family in FAMILIES.values()]
    assert {word for name in wanted for word in name.split() if len(word) < 20} <= {*words}


def test_results_fit_into_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = Evaluation(
        num_rows=512,
        num_solved=436,
        accuracy=436 / 512,
        low=0.8183,
        high=0.8798,
        reward=0.9531,
        reward_se=0.0049,
        temperature=0.9,
        length=256,
        steps=128,
        items=[],
    )
    results_table([result], "a/very/long/path " * 8)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "a/very/long/path " * 8
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if "436" in line)
    assert re.split(r"\s{2,}", row.strip()) == [
        "256",
        "128",
        "T = 0.9",
        "436 of 512",
        "0.852 (0.818 to 0.880)",
        "0.953 ± 0.005",
    ]


def test_a_wrong_option_of_a_task_is_told_without_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("max_blank=3", "5"):
        with pytest.raises(ConfigError):
            task_page("sudoku", [option])
        assert capsys.readouterr().out == ""
    task_page("sudoku", ["max_blanks=8"])
    assert "min_blanks" in capsys.readouterr().out
