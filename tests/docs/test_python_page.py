"""The page "unmask from Python" runs from top to bottom in one namespace, as a notebook does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import unmask
from tests.helpers.shown import Page, pages


@pytest.fixture(scope="module")
def page() -> Page:
    """The page itself."""
    return next(page for page in pages() if page.name == "docs/python.md")


@pytest.fixture(scope="module")
def notebook(page: Page, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The names that exist after every block has run, in a folder that holds the files of the page."""
    folder, module = tmp_path_factory.mktemp("notebook"), ModuleType("notebook")
    for name, text in page.files().items():
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "notebook", module)
        for number, block in enumerate(page.python(), start=1):
            exec(compile(block, f"block {number} of {page.name}", "exec"), module.__dict__)
    module.__dict__["place"] = folder
    return module


def test_the_page_needs_one_import(page: Page) -> None:
    imports = [line for block in page.python() for line in re.findall(r"^(?:import|from) .*", block, re.MULTILINE)]
    assert imports == ["import unmask as um"]


def test_the_page_lists_every_public_name(page: Page) -> None:
    table = page.text.partition("## All names")[2]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(unmask.__all__)


@pytest.mark.slow
def test_the_page_samples_and_evaluates(notebook: ModuleType) -> None:
    assert len(notebook.texts) == 4
    assert notebook.paths.tokens.shape == (4, 16)
    assert (notebook.result.num_rows, notebook.result.steps) == (64, 8)


def test_the_page_trains_and_opens_the_run(notebook: ModuleType) -> None:
    assert notebook.folder == Path("runs/mine")
    run = unmask.open_run(notebook.place / "runs" / "mine")
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3, 4]
    assert list(run.rollouts) == [2, 4]
    # Two groups of four completions were saved, and EGSPO trains on at most eight steps of each.
    assert notebook.advantages.tolist() == run.rollouts[2].trained.advantage.tolist()
    assert 8 <= len(notebook.advantages) <= 64
    assert {path.name for path in run.folder.iterdir()} >= {"curve.png", "report.html", "final", "rollouts"}


def test_the_page_trains_its_own_method_and_compares_it(notebook: ModuleType) -> None:
    run = unmask.open_run(notebook.place / "runs" / "first-step")
    # One view of each completion: two groups of four.
    assert [line.get("diffusion/num_views") for line in run.metrics] == [None, 8.0, 8.0]
    finals = [record for record in notebook.comparison.records if record["stage"] == "final"]
    assert {(record["method"], record["seed"]) for record in finals} == {
        (m, s) for m in ("egspo", "mine") for s in (0, 1)
    }
    assert not any("failed" in record for record in finals)
    assert "| mine " in str(notebook.comparison)
