"""A comparison in Python: from a dict to its results, and again without repeating a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.comparisons import SMALL
from tests.helpers.messages import raises
from unmask import compare
from unmask.core.errors import ConfigError
from unmask.trainer.comparison.load import load_compare

TINY: dict[str, Any] = {**SMALL, "seeds": [0], "tuning": None}


@pytest.mark.slow
def test_a_comparison_returns_its_results_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = TINY | {"output_dir": str(tmp_path / "small")}
    result = compare(recipe)
    assert "final 2/2  sudoku" in capsys.readouterr().err
    assert result.folder == tmp_path / "small"
    finals = [record for record in result.records if record["stage"] == "final"]
    assert [record["method"] for record in finals] == ["entropy", "late steps"]
    assert all(0 <= record["accuracy"]["0"] <= 1 for record in finals)
    assert str(result) == (tmp_path / "small" / "table.md").read_text()
    assert {row[0] for table in result.tables for row in table.rows} >= {"entropy", "late steps"}
    assert tmp_path / "small" / "compute.png" in result.figures
    again = compare(recipe, progress=False)
    assert again.records == result.records
    assert capsys.readouterr().err == ""


def test_a_dict_of_changes_picks_methods_by_name_and_sets_keys() -> None:
    recipe = load_compare(TINY, {"methods": ["late steps"], "seeds": [3, 4], "tasks.sudoku.budget": 20_000})
    assert (list(recipe.methods), recipe.seeds, recipe.tasks["sudoku"].budget) == (["late steps"], (3, 4), 20_000)
    assert load_compare(recipe, ["seeds=[5]"]).seeds == (5,)
    # The dict that was given is not changed.
    assert [*TINY["methods"]] == ["entropy", "late steps"]


def test_a_method_that_is_not_there_is_refused() -> None:
    with raises(ConfigError, "lat steps", "late steps"):
        load_compare(TINY, {"methods": "lat steps"})


def test_a_comparison_runs_at_least_one_job() -> None:
    with raises(ConfigError, "jobs = 0", "at least 1"):
        compare(TINY, jobs=0)
