"""Imports point down only: what each part of the package may import, read from the source with `ast`.

Every import counts, wherever it stands: at the top, in a function, under TYPE_CHECKING, or as a literal name given to
`import_module`. A part that is not in the list is an error, so a new folder has to be given its place here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from benchmark.module_graph import PACKAGE, imports

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

LAYERS = [
    "core",
    "functional",
    "runs",
    "models",
    "sampling",
    "rewards",
    "methods",
    "tasks",
    "recipes",
    "evaluation",
    "trainer",
    "trainer.comparison",
    "report",
    "report.api",
    "cli",
    "__main__",
]
"""Parts of the package from the ground up: each may import those before it."""

FEWER: dict[str, set[str]] = {
    "functional": {"core"},
    "rewards": {"core"},
    "methods": {"core", "functional"},
    "tasks": {"core", "runs", "rewards"},
    "report": {"core", "functional", "runs", "recipes", "trainer.comparison"},
    "__main__": {"cli"},
    "__init__": {"core", "evaluation", "methods", "models", "recipes", "report.api", "sampling", "tasks"},
}
"""Parts that may import less than everything below them."""

ONLY: dict[str, set[str]] = {
    "core": {"jaxtyping", "pydantic", "torch", "yaml"},
    "functional": {"jaxtyping", "numpy", "scipy", "torch"},
    "rewards.protocol": set(),
    "rewards.worker": set(),
    "rewards.workers": set(),
}
"""Modules and folders that may use the standard library and nothing else from outside but these."""

NEVER = {"methods": ("transformers", "tokenizers", "torch.distributed"), "tasks": ("torch", "transformers")}
"""Names from outside that a part must not reach, whether imported or as an attribute of what is."""


def part_of(name: str) -> str:
    """Return the part that a dotted name below `unmask` belongs to, such as `trainer` for `trainer.loop`."""
    first, second = [*name.split("."), ""][:2]
    return nested if (nested := f"{first}.{second}") in LAYERS else first


def may_import(part: str) -> set[str]:
    """Return the parts that a part may import, besides itself."""
    return FEWER[part] if part in FEWER else set(LAYERS[: LAYERS.index(part)])


def names_used(source: str, file: PurePath) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute dotted name of what a file imports, and of the attributes of torch that it reads."""
    yield from imports(source, file)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
                yield node.lineno, f"torch.{attribute}"


def violations(source: str, file: PurePath) -> list[str]:
    """Return one sentence for each import of a file that its part does not allow."""
    module = ".".join(file.with_suffix("").parts)
    part = part_of(module)
    if part not in LAYERS and part not in FEWER:
        return [f"{file}: {part} has no layer: give it one in tests/test_layers.py"]
    limited = next((allowed for name, allowed in ONLY.items() if f"{module}.".startswith(f"{name}.")), None)
    wrong_imports = []
    for line, name in names_used(source, file):
        top, _, rest = name.partition(".")
        if top == "unmask":
            # The root resolves names lazily, upwards: only its version may be imported from it.
            wrong = part_of(rest) not in may_import(part) | {part, "__version__"}
        else:
            wrong = any(f"{name}.".startswith(f"{banned}.") for banned in NEVER.get(part, ()))
            wrong |= limited is not None and top not in limited | sys.stdlib_module_names
        if wrong:
            wrong_imports.append(f"{file}:{line}: {part} must not import {name}")
    return wrong_imports


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_imports_only_what_its_layer_allows(file: Path) -> None:
    assert violations((PACKAGE / file).read_text(), file) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sampling/loop.py", "from unmask.trainer import Trainer"),
        ("sampling/loop.py", "from unmask import trainer"),
        ("sampling/loop.py", "from unmask import Trainer"),
        ("sampling/loop.py", "import unmask"),
        ("sampling/loop.py", "from ..rewards import protocol"),
        ("sampling/loop.py", "def f():\n    import unmask.tasks.base"),
        ("sampling/loop.py", "if TYPE_CHECKING:\n    from unmask.tasks import sudoku"),
        ("sampling/loop.py", "importlib.import_module('unmask.rewards.scorer')"),
        ("functional/entropy.py", "from unmask.models import Denoiser"),
        ("functional/entropy.py", "import pandas as pd"),
        ("core/records.py", "from unmask.models import Denoiser"),
        ("core/records.py", "import transformers"),
        ("tasks/sudoku.py", "from torch import Tensor"),
        ("methods/egspo.py", "from unmask.models import Denoiser"),
        ("methods/egspo.py", "from transformers import AutoTokenizer"),
        ("methods/egspo.py", "from torch import distributed"),
        ("methods/egspo.py", "import torch\ntorch.distributed.barrier()"),
        ("rewards/scorer.py", "from unmask.sampling.encoding import generate"),
        ("rewards/protocol.py", "import torch"),
        ("evaluation/evaluate.py", "from unmask.trainer import Trainer"),
        ("trainer/loop.py", "from unmask.report import figures"),
        ("trainer/loop.py", "from unmask.trainer.comparison import run"),
        ("report/html.py", "from unmask.trainer import Trainer"),
        ("report/html.py", "from unmask.report.api import trainer"),
        ("runs/folder.py", "from unmask.cli import main"),
        ("trainer/loop.py", "from unmask.report.progress import progress"),
        ("utils.py", "import math"),
    ],
)
def test_an_upward_or_sideways_import_is_reported(file: str, source: str) -> None:
    assert len(violations(source, PurePath(file))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sampling/loop.py", "from unmask.core.records import Views\nfrom .orders import ORDERS\nfrom . import orders"),
        (
            "functional/entropy.py",
            "import math\nimport torch.nn.functional\nfrom unmask.core.errors import UnmaskError",
        ),
        ("methods/egspo.py", "import torch\nfrom torch import Tensor\nfrom unmask.functional import entropy"),
        ("tasks/sudoku.py", "import re\nfrom unmask.core.config import Config"),
        ("trainer/loop.py", "from unmask import __version__\nfrom unmask.evaluation.evaluate import evaluate"),
        ("trainer/comparison/jobs.py", "from unmask.trainer.loop import Trainer"),
        ("report/tables.py", "from unmask.trainer.comparison.results import Results"),
        ("report/api/trainer.py", "from unmask.trainer.loop import Trainer"),
        ("cli/training.py", "def train():\n    from unmask.trainer import Trainer"),
    ],
)
def test_a_downward_import_is_not_reported(file: str, source: str) -> None:
    assert violations(source, PurePath(file)) == []


def test_the_whole_package_is_read() -> None:
    assert {part_of(".".join(file.with_suffix("").parts)) for file in FILES} == {*LAYERS, "__init__"}


SHARED_BY_METHODS = {"base", "ratio", "views"}


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
