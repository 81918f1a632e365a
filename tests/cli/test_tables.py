"""Tables fit their terminal, and listings cut no name."""

from __future__ import annotations

import re

import pytest

from unmask.cli.catalogue import print_methods, print_task
from unmask.cli.checkpoints import print_families
from unmask.cli.evaluation_tables import results_table
from unmask.cli.tables import table
from unmask.core.errors import ConfigError
from unmask.evaluation.evaluate import Evaluation
from unmask.methods import METHODS
from unmask.models.families import FAMILIES


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
    print_methods()
    print_families()
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
        forwards=128.0,
        tokens_per_forward=2.0,
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
    (cost,) = (line for line in lines if "0.852" in line and "436" not in line)
    assert re.split(r"\s{2,}", cost.strip()) == [
        "256",
        "128",
        "T = 0.9",
        "128",
        "2",
        "0.852",
    ]


def test_an_unknown_option_of_a_task_is_an_error_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("max_blank=3", "5"):
        with pytest.raises(ConfigError):
            print_task("sudoku", [option])
        assert capsys.readouterr().out == ""
    print_task("sudoku", ["max_blanks=8"])
    assert "min_blanks" in capsys.readouterr().out
