"""Hashes of the code and files that a run's result depends on, so that results from an older
version of the code are not used as results of the current code.

A result depends on the modules of its method, task, order and reward functions, on every file that
its recipe names, on the model folder that it starts from, on the modules that train and evaluate,
and on everything that these modules and files import from unmask or from their own folder.
Comments, docstrings and layout of Python code do not count. The rule misses dependencies that
imports do not show: installed packages, modules that are imported by a computed name, and files
that code opens.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from unmask.recipes.schema import RunRecipe, TrainRecipe
from unmask.sampling.orders import ORDERS

Files = dict[str, str]
"""Hashes of files by name: `unmask/tasks/sudoku.py` for a module of the package, otherwise the
absolute path."""

Stamp = tuple[int, ...]
"""Modification time and size of a file. A file whose stamp has not changed is not read again."""

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder of the package."""

_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
"""Folders of Python's standard library and of installed packages, whose files do not count."""
_ENGINE = ("trainer/comparison/jobs.py", "trainer/loop.py", "evaluation/evaluate.py", "trainer/pretrain.py")
"""Modules with the entry points of training and evaluation."""
_LEFT_OUT = {
    # These import every method, task and order, but a result depends only on its own.
    *("__init__.py", "methods/__init__.py", "tasks/__init__.py", "sampling/orders/__init__.py"),
    # These write files and messages, and do not compute results.
    *("core/errors.py", "evaluation/results.py", "evaluation/model_card.py"),
    *(f"runs/{name}.py" for name in ("__init__", "atomic", "checkpoints", "environment", "folder", "saved_rollouts")),
}


@cache
def engine_files() -> Mapping[str, str]:
    """Return the hashes of the modules that every run uses, whatever its method and task."""
    return _hashed(_closure(PACKAGE / name for name in _ENGINE))


def own_files(recipes: Iterable[RunRecipe], model: str | None = None) -> Files:
    """Return the hashes of the files that recipes depend on in addition to `engine_files`.

    Args:
        recipes: the recipe of a run, and the recipe of the base model that the run starts from.
        model: the folder or hub id of a model that the run starts from instead; the files of a hub
            id are not hashed.
    """
    named = {path for recipe in recipes for path in _named(recipe)}
    code = {path for path in named if path.suffix == ".py"}
    folder = Path(model).resolve() if model else None
    weights = {path for path in folder.iterdir() if path.is_file()} if folder and folder.is_dir() else set()
    files = _hashed(_closure(code) | (named - code) | weights)
    return {name: value for name, value in files.items() if name not in engine_files()}


def digest_of(files: Mapping[str, str]) -> str:
    """Return one short hash of the names and hashes of several files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]


def edited(recorded: Mapping[str, str]) -> list[str]:
    """Return the names of files whose hash differs from the recorded one, except missing files
    outside the package."""
    names = []
    for name, before in recorded.items():
        path = _path(name)
        if path.is_file():
            if _hash(path) != before:
                names.append(name)
        elif path.is_relative_to(PACKAGE):
            names.append(name)
    return names


def missing(recorded: Mapping[str, str]) -> list[str]:
    """Return the names of missing files outside the package, for which changes cannot be
    detected."""
    return [name for name in recorded if not (path := _path(name)).is_file() and not path.is_relative_to(PACKAGE)]


def _named(recipe: RunRecipe) -> Iterator[Path]:
    """Yield the modules of a recipe's task, method and order, and the files that its values
    name."""
    # A class depends on its base classes, which its file may import from another module than the
    # one that defines them.
    parts: list[Any] = [*type(recipe.task).__mro__]
    if isinstance(recipe, TrainRecipe):
        # An order outside the package is among the files that the recipe names.
        parts += [*type(recipe.method).__mro__, ORDERS.get(recipe.sampler.order)]
    for part in parts:
        with suppress(TypeError, OSError):  # for a class that is defined in a notebook
            path = Path(inspect.getfile(part)).resolve()
            if path.is_relative_to(PACKAGE) or not any(map(path.is_relative_to, _LIBRARIES)):
                yield path
    for value in _texts(recipe.model_dump(mode="json", exclude={"model", "output_dir"})):
        # A value can be a file, as in rows.jsonl, or start with one, as in mine.py:reward and
        # package.module:reward.
        start, colon, _ = value.rpartition(":")
        candidates = [Path(value), *([Path(start)] if colon else [])]
        file = next((path for path in candidates if path.suffix and _is_file(path)), None)
        if file is None and colon:
            file = _module_file(start, [Path.cwd()])
        if file is not None:
            yield file.resolve()


def _texts(value: object) -> Iterator[str]:
    """Yield all texts among the values of a tree."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # for example because the name is longer than the system allows
        return False


def _closure(starts: Iterable[Path]) -> set[Path]:
    """Return Python files with everything that they import from the package or from their own
    folders."""
    files: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path in files or (path.is_relative_to(PACKAGE) and str(path.relative_to(PACKAGE)) in _LEFT_OUT):
            continue
        files.add(path)
        waiting += _read(path, _stamp(path))[1]
    return files


@cache
def _read(path: Path, _stamp: Stamp) -> tuple[str, list[Path]]:
    """Return the hash of a Python file, and the files that it imports."""
    tree = _tree(path)
    text = repr(_shape(tree)).encode(errors="surrogatepass")
    return hashlib.sha256(text).hexdigest()[:16], _imported(path, tree)


def _imported(path: Path, tree: ast.AST) -> list[Path]:
    """Return the files of the modules that a file imports anywhere, from the package or from its
    own folder."""
    folders = [] if path.is_relative_to(PACKAGE) else [path.parent, Path.cwd()]
    files = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, roots = [alias.name for alias in node.names], folders
        elif isinstance(node, ast.ImportFrom):
            # The name after `import` is a module or a name in one; each dot in front of a name goes
            # up by a folder.
            start = [node.module] if node.module else []
            names = [*start, *(".".join([*start, alias.name]) for alias in node.names)]
            roots = [path.parents[node.level - 1]] if 0 < node.level <= len(path.parents) else folders
        else:
            continue
        files += [file.resolve() for name in names if (file := _module_file(name, roots))]
    return files


def _module_file(name: str, roots: Iterable[Path]) -> Path | None:
    """Return the file of a module in unmask or in the first root that has it; None for other
    installed modules."""
    first, *_ = parts = name.split(".")
    if not all(map(str.isidentifier, parts)):
        return None
    for root in [PACKAGE.parent] if first == PACKAGE.name else roots:
        base = root.joinpath(*parts)
        for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if _is_file(path):
                return path
    return None


def _hashed(paths: Iterable[Path]) -> Files:
    return {_name(path): _hash(path) for path in sorted(paths)}


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent)) if path.is_relative_to(PACKAGE) else str(path)


def _path(name: str) -> Path:
    return Path(name) if Path(name).is_absolute() else PACKAGE.parent / name


def _stamp(path: Path) -> Stamp:
    # A process runs the package as it was when the process started, so later edits do not matter to
    # it.
    return () if path.is_relative_to(PACKAGE) else ((stat := path.stat()).st_mtime_ns, stat.st_size)


def _hash(path: Path) -> str:
    stamp = _stamp(path)
    return _read(path, stamp)[0] if path.suffix == ".py" else _hash_of_bytes(path, stamp)


@cache
def _hash_of_bytes(path: Path, _stamp: Stamp) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _tree(path: Path) -> ast.AST:
    """Return the syntax tree of a file. For a file that is not valid Python, return a constant that
    holds the text of the file."""
    text = path.read_bytes()
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Constant(text)


def _shape(value: Any) -> Any:
    """Return a syntax tree without docstrings and line numbers, in a form that does not depend on
    the version of Python."""
    if isinstance(value, ast.AST):
        fields = [(name, _shape(getattr(value, name, None))) for name in value._fields]
        return (type(value).__name__, *[field for field in fields if field[1] not in ("None", ())])
    if isinstance(value, list):
        return tuple([_shape(part) for part in value if not _is_text_alone(part)])
    return repr(value)


def _is_text_alone(node: object) -> bool:
    """Return whether a statement is only a string, like a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
