"""What someone meets first: the version, a fast import, and the commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import files, version
from pathlib import Path

import pytest

import unmask

HEAVY = ("torch", "transformers", "accelerate", "numpy", "pydantic", "matplotlib", "typer")


def run_python(*args: str) -> str:
    """Standard output of a fresh interpreter, which must end well."""
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that are in memory after `statement` in a fresh interpreter."""
    listing = run_python("-c", f"{statement}\nimport sys\nprint('\\n', *sys.modules, sep='\\n')")
    return {name.split(".")[0] for name in listing.splitlines()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import unmask") & {*HEAVY, "unmask"} == {"unmask"}


@pytest.mark.slow
def test_the_check_for_heavy_packages_can_fail() -> None:
    assert "torch" in loaded_by("import unmask.core.records")


@pytest.mark.slow
def test_importing_the_tasks_loads_no_torch() -> None:
    assert loaded_by("import unmask.tasks") & {"torch", "transformers", "pydantic"} == {"pydantic"}


def test_the_version_is_that_of_the_installed_distribution() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", unmask.__version__)
    assert version("unmask") == unmask.__version__, "the install is older than the source: touch pyproject.toml, make"


def test_the_installed_distribution_says_that_it_is_typed() -> None:
    assert "unmask/py.typed" in map(str, files("unmask") or [])


@pytest.mark.parametrize("name", [name for name in unmask.__all__ if name != "__version__"])
def test_a_public_name_is_the_object_of_the_module_that_defines_it(name: str) -> None:
    assert name in dir(unmask)
    assert getattr(unmask, name) is getattr(import_module(unmask._HOME[name]), name)


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(unmask.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == unmask._HOME
    assert {*unmask.__all__} == {*seen, "__version__"}


@pytest.mark.slow
def test_no_folder_of_the_package_replaces_a_public_name() -> None:
    folders = {path.stem for path in Path(unmask.__file__).parent.iterdir()}
    assert not folders & {*unmask.__all__}
    assert run_python("-c", "import unmask, unmask.evaluation.evaluate; print(callable(unmask.evaluate))") == "True\n"


@pytest.mark.slow
def test_the_folders_of_the_package_need_no_import_of_their_own() -> None:
    assert run_python("-c", "import unmask as um; print(um.tasks.Sudoku().completion_length)") == "16\n"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'unmask' has no attribute 'Trainr'"):
        _ = unmask.Trainr


def test_a_name_of_another_library_is_an_import_error_with_advice() -> None:
    with pytest.raises(ImportError, match='unmask has no GRPOTrainer. Use Trainer.*method="diffu_grpo"'):
        exec("from unmask import GRPOTrainer")


def test_python_m_unmask_help_lists_the_commands() -> None:
    listing = run_python("-m", "unmask", "--help")
    commands = set(re.findall(r"^\W*([a-z]+)\s{2,}\S", listing, flags=re.MULTILINE))
    assert commands >= {"demo", "train", "pretrain", "eval", "sample", "methods", "tasks"}


def test_help_loads_no_torch() -> None:
    show_help = """
import sys, unmask.cli
sys.argv = ["unmask", "--help"]
try:
    unmask.cli.main()
except SystemExit:
    pass
"""
    assert loaded_by(show_help) & {"torch", "transformers", "typer"} == {"typer"}
