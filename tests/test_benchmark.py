"""The programs of benchmark/ run at tiny size. What they measure is not looked at: timing belongs in no test."""

from __future__ import annotations

import pytest

from benchmark import speed


def test_the_speed_table_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--batch=4", "--selected=2", "--steps=4", "--length=8", "--repeats=1", "--width=16", "--layers=1"])
    table = capsys.readouterr().out
    for row in ("| rollout |", "| old or reference pass |", "| update |", "| whole RL step |", "| peak memory"):
        assert row in table
    assert table.count("| rollout |") == table.count("| update |") == 2, "ours, and the published way's"
