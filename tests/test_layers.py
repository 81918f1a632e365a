"""Imports point down only: what each part of the package may import, read from the source with `ast`.

Every import counts, wherever it stands: at the top, in a function, under TYPE_CHECKING, or as a literal name given to
`import_module`. A part that is not in the table is an error, so a new module has to be given its place here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

import unmask

PACKAGE = Path(unmask.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

LAYER_0 = {
    "text",
    "errors",
    "by_path",
    "files",
    "records",
    "runs",
    "config",
    "functional",
    "reward",
    "workers",
    "deadline",
    "isolated",
}
LAYER_1 = {"models", "samplers", "tasks", "sandbox"}
LAYER_2 = {"methods", "rollout", "engine", "score", "recipe"} | {
    "data_check",
    "usable",
    "rewards",
    "style",
    "elsewhere",
    "keys",
    "faults",
    "eval_recipe",
}
LAYER_3 = {"model_card", "trainer", "evaluate", "eval_results", "harness", "pretrain", "compare", "report"}
BELOW_3 = LAYER_0 | LAYER_1 | LAYER_2

MAY_IMPORT: dict[str, set[str]] = {
    "text": set(),
    "errors": {"text"},
    "files": {"errors"},
    "records": {"config"},
    "runs": {"errors", "text", "files", "config", "records", "functional"},
    "by_path": {"errors"},
    "config": {"errors", "by_path"},
    "functional": {"errors"},
    "reward": {"errors", "deadline", "by_path"},
    "deadline": set(),
    "workers": {"errors", "reward", "deadline"},
    "isolated": {"errors", "reward", "workers"},
    "models": LAYER_0,
    "samplers": LAYER_0,
    "tasks": LAYER_0 | {"sandbox"},
    "sandbox": LAYER_0,
    "methods": LAYER_0,
    "rewards": LAYER_0 | {"tasks"},
    "score": LAYER_0 | {"recipe"},
    "rollout": LAYER_0 | {"models", "samplers", "tasks"},
    "engine": LAYER_0 | {"models", "samplers", "rollout"},
    "elsewhere": set(),
    "keys": LAYER_0 | {"elsewhere", "methods", "tasks"},
    "faults": LAYER_0 | {"keys"},
    "recipe": LAYER_0 | {"faults", "keys", "methods", "models", "tasks"},
    "eval_recipe": LAYER_0 | {"recipe", "tasks"},
    "style": {"errors", "files", "runs"},
    "data_check": LAYER_0 | {"tasks"},
    "usable": LAYER_0 | {"models", "rollout", "tasks"},
    "evaluate": BELOW_3,
    "eval_results": BELOW_3 | {"evaluate"},
    "harness": BELOW_3,
    "model_card": BELOW_3 | {"eval_results"},
    "trainer": BELOW_3 | {"evaluate", "model_card"},
    "pretrain": BELOW_3 | {"evaluate", "model_card", "trainer"},
    "compare": BELOW_3 | {"evaluate", "trainer", "pretrain"},
    "report": LAYER_0 | {"recipe", "style", "compare"},
    "console": BELOW_3 | {"evaluate", "eval_results", "report", "compare"},
    "watch": BELOW_3 | {"report"},
    "training": BELOW_3 | {"trainer", "report", "console"},
    "demo": BELOW_3 | LAYER_3 | {"console", "training"},
    "estimate": BELOW_3 | {"trainer"},
    "doctor": BELOW_3,
    "console_tools": BELOW_3 | {"console", "estimate", "doctor"},
    "cli": BELOW_3 | LAYER_3 | {"console", "console_tools", "demo", "training", "watch"} | {"estimate", "doctor"},
    "__main__": {"cli"},
    "__init__": {"models", "recipe", "training"},
}
"""Parts of ours that each part may import, besides itself."""

ONLY: dict[str, set[str]] = {
    "text": set(),
    "errors": set(),
    "records": {"jaxtyping", "torch"},
    "config": {"pydantic"},
    "functional": {"torch", "jaxtyping", "numpy", "scipy"},
    "reward": set(),
    "deadline": set(),
    "workers": set(),
}
"""Parts that may use the standard library and nothing else from outside but these."""

NEVER = {"methods": ("transformers", "tokenizers", "torch.distributed"), "tasks": ("torch", "transformers")}
"""Names from outside that a part must not reach, whether imported or as an attribute of what is."""


def part_of(file: PurePath) -> str:
    """The part that a file of the package belongs to: `trainer/loop.py` is in `trainer`, `score.py` is `score`."""
    return file.parts[0].removesuffix(".py")


def names_used(source: str, file: PurePath) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports, and of the attributes of torch that it reads."""
    package = ["unmask", *file.parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                yield from ((node.lineno, alias.name) for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = package[: len(package) - level + 1] if level else []
                prefix = ".".join([*base, module] if module else base)
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in aliases)
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[first, *_]):
                if isinstance(first, ast.Constant):
                    yield node.lineno, str(first.value)
            case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
                yield node.lineno, f"torch.{attribute}"


def violations(source: str, file: PurePath) -> list[str]:
    """One sentence for each import of a file that its part is not allowed."""
    part = part_of(file)
    if part not in MAY_IMPORT:
        return [f"{file}: {part} has no layer: give it one in tests/test_layers.py"]
    found = []
    for line, name in names_used(source, file):
        top, *rest = name.split(".")
        if top == "unmask":
            # The root resolves names lazily, upwards: only its version may be asked for.
            target = rest[0] if rest else "the package root"
            wrong = target not in MAY_IMPORT[part] | {part, "__version__"}
        else:
            wrong = any(f"{name}.".startswith(f"{banned}.") for banned in NEVER.get(part, ()))
            wrong |= part in ONLY and top not in ONLY[part] | sys.stdlib_module_names
        if wrong:
            found.append(f"{file}:{line}: {part} must not import {name}")
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_imports_only_what_its_layer_allows(file: Path) -> None:
    assert violations((PACKAGE / file).read_text(), file) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("samplers/loop.py", "from unmask.trainer import Trainer"),
        ("samplers/loop.py", "from unmask import trainer"),
        ("samplers/loop.py", "from unmask import Trainer"),
        ("samplers/loop.py", "import unmask"),
        ("samplers/loop.py", "from ..models import Denoiser"),
        ("samplers/loop.py", "def f():\n    import unmask.models.denoiser"),
        ("samplers/loop.py", "if TYPE_CHECKING:\n    from unmask.tasks import sudoku"),
        ("samplers/loop.py", "importlib.import_module('unmask.score')"),
        ("functional/entropy.py", "from unmask.records import Views"),
        ("functional/entropy.py", "import pandas as pd"),
        ("records.py", "from unmask.models import Denoiser"),
        ("tasks/sudoku.py", "from torch import Tensor"),
        ("methods/egspo.py", "from unmask.models import Denoiser"),
        ("methods/egspo.py", "from transformers import AutoTokenizer"),
        ("methods/egspo.py", "from torch import distributed"),
        ("methods/egspo.py", "import torch\ntorch.distributed.barrier()"),
        ("score.py", "from unmask.rollout import rollout"),
        ("evaluate.py", "from unmask.trainer import Trainer"),
        ("trainer/loop.py", "from unmask.report import figures"),
        ("report/html.py", "from unmask.trainer import Trainer"),
        ("demo.py", "from unmask.cli import main"),
        ("trainer/loop.py", "from unmask.console import progress"),
        ("utils.py", "import math"),
    ],
)
def test_an_upward_or_sideways_import_is_reported(file: str, source: str) -> None:
    assert len(violations(source, PurePath(file))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("samplers/loop.py", "from unmask.records import Trajectory\nfrom .orders import ORDERS\nfrom . import orders"),
        ("functional/entropy.py", "import math\nimport torch.nn.functional\nfrom unmask.errors import UnmaskError"),
        ("methods/egspo.py", "import torch\nfrom torch import Tensor\nfrom unmask.functional import entropy"),
        ("tasks/sudoku.py", "import re\nfrom unmask.config import Config"),
        ("trainer/loop.py", "from unmask import __version__\nfrom unmask.evaluate import evaluate"),
        ("cli/training.py", "def train():\n    from unmask.trainer import Trainer"),
    ],
)
def test_a_downward_import_is_not_reported(file: str, source: str) -> None:
    assert violations(source, PurePath(file)) == []


def test_the_whole_package_is_read() -> None:
    assert {part_of(file) for file in FILES} >= LAYER_0 | {"__init__", "__main__"}


SHARED_BY_METHODS = {"base", "views"}


def methods_imported(source: str, file: PurePath) -> set[str]:
    """Modules of methods/ that a file imports, besides what all methods share."""
    names = [name.split(".") for _, name in names_used(source, file)]
    return {name[2] for name in names if name[:2] == ["unmask", "methods"] and len(name) > 2} - SHARED_BY_METHODS


@pytest.mark.parametrize("file", [f for f in FILES if f.parts[0] == "methods" and f.stem != "__init__"], ids=str)
def test_no_method_imports_another(file: Path) -> None:
    assert methods_imported((PACKAGE / file).read_text(), file) == set()


def test_a_method_that_imports_another_is_reported() -> None:
    for source in ("from unmask.methods.egspo import EGSPO", "from .egspo import EGSPO", "import unmask.methods.egspo"):
        assert methods_imported(source, PurePath("methods/mine.py")) == {"egspo"}
    assert methods_imported("from unmask.methods.base import Method", PurePath("methods/mine.py")) == set()
