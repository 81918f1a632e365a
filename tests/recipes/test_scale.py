"""From a laptop to four nodes: three recipes that are valid, and a page that shows how they
differ."""

from __future__ import annotations

import difflib

import pytest

from tests.helpers.paths import ROOT
from unmask.cli.estimate.work import work_of
from unmask.recipes.load import load_recipe

FOLDER = ROOT / "examples" / "scale"
PAGE = ROOT / "docs" / "scale.md"
STEPS = [("laptop", "one-gpu"), ("one-gpu", "four-nodes")]


def difference(first: str, second: str) -> str:
    """What `diff` shows of two of the files, without its header."""
    texts = [(FOLDER / f"{name}.yaml").read_text().splitlines() for name in (first, second)]
    lines = list(difflib.unified_diff(*texts, lineterm="", n=0))
    return "\n".join(line for line in lines[2:] if not line.startswith("@@"))


@pytest.mark.parametrize("name", ["laptop", "one-gpu", "four-nodes"])
def test_each_recipe_is_valid(name: str) -> None:
    assert load_recipe(str(FOLDER / f"{name}.yaml")).method.type == "egspo_sa"


@pytest.mark.parametrize(("first", "second"), STEPS)
def test_the_page_shows_how_the_files_differ(first: str, second: str) -> None:
    shown = difference(first, second)
    assert shown in PAGE.read_text(), f"docs/scale.md should show, of {first} and {second}:\n{shown}"


def test_the_page_shows_the_recipe_that_it_begins_with() -> None:
    assert (FOLDER / "laptop.yaml").read_text().strip() in PAGE.read_text()


@pytest.mark.slow
def test_thirty_two_processes_can_share_the_last_recipe() -> None:
    assert work_of(load_recipe(str(FOLDER / "four-nodes.yaml")), 200, processes=32).completions == 8
