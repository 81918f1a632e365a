"""Progress of a run as a person sees it: lines in a pipe, a bar on a terminal and in a notebook."""

from __future__ import annotations

import errno
import io
import re
import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from unmask.report import progress as module
from unmask.report.progress import ProgressView, accuracies, progress
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
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
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


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a notebook is given to display."""
    shown: list[Any] = []
    display = ModuleType("IPython.display")
    display.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_notebook_without_widgets_is_shown_a_line_for_each_step(
    displayed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.report.progress.find_spec", lambda _: None)
    with progress("train", 2, Console(force_jupyter=True)) as view:
        view(1, {"loss": 0.5, "reward": 0.25})
        view(2, {"loss": 0.25, "reward": 0.5})
    first, second = (part.text for part in displayed)
    assert first.startswith("train step 1/2  loss 0.500  reward 0.250")
    assert second.startswith("train step 2/2  loss 0.250  reward 0.500")


def test_a_notebook_with_widgets_is_shown_a_bar_in_place(displayed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    widgets = ModuleType("ipywidgets")

    class Output(nullcontext[None]):
        def clear_output(self, wait: bool) -> None:
            pass

    widgets.Output = Output  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setattr("unmask.report.progress.find_spec", lambda _: object())
    with progress("train", 2, Console(force_jupyter=True, width=90)) as view:
        view(1, {"loss": 0.5, "reward": 0.25})
        view(2, {"loss": 0.25, "reward": 0.5})
    last = [part.text for part in displayed if getattr(part, "text", "").strip()][-1]
    assert "2/2" in last
    assert "loss 0.250  reward 0.500" in last


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_or_pipe_that_is_closed_does_not_stop_the_run(is_terminal: bool) -> None:
    class Closed(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            Closed.writes += 1
            raise OSError(errno.EIO, "Input/output error")

    with progress("train", 2, Console(file=Closed(), force_terminal=is_terminal)) as view:
        view(1, {"reward": 0.5} | EVALUATED)
        view(2, {"reward": 0.75})
    assert Closed.writes
