"""What a Python program defines, reads and imports, found from its syntax tree alone: nothing here runs it."""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache

MAX_CODE = 2**16
"""Characters of a program that are looked at; a longer one is not run."""
_MAX_DEPTH = 200
"""Levels of nesting that `ast.unparse`, which calls itself for each, can write within Python's recursion limit."""
BUILTINS = frozenset(dir(builtins))
_READS_ANY_NAME = frozenset({"eval", "exec", "globals", "locals", "vars", "compile", "__import__", "__all__"})
"""Names by which a program may read others that its text does not show."""


@lru_cache(maxsize=64)
def parse(code: str) -> ast.Module | None:
    """The syntax tree of a text, or None if it is no Python, too long or too deep. Callers share it: do not change it.

    Example:
        >>> parse("x + 1") is None, parse("x +") is None, parse("x + " * 300 + "1") is None
        (False, True, True)
    """
    if len(code) > MAX_CODE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
            return tree if _depth(tree) <= _MAX_DEPTH else None
    # CPython reports nesting beyond its parser's stack as any of these, depending on version and depth.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _depth(tree: ast.AST) -> int:
    """How deep a tree is nested, up to the first level beyond the limit."""
    depth, level = 0, [tree]
    while level and depth <= _MAX_DEPTH:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def defined_names(tree: ast.Module) -> set[str]:
    """Names that the statements of a module bind at its top: functions, classes, imports, assignments."""
    return {name for node in tree.body for name in names_of(node)}


def names_of(node: ast.stmt) -> set[str]:
    """Names that a statement binds: a function, a class, imports, assignments."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return {_bound_by(alias) for alias in aliases}
        case ast.Assign(targets=targets):
            return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def returns(tree: ast.Module) -> bool:
    """Whether a module has a `return` outside of its functions, so that it is the body of one.

    Example:
        >>> returns(ast.parse("for y in x:\\n    return y")), returns(ast.parse("def f(x):\\n    return x"))
        (True, False)
    """
    inner: list[ast.AST] = list(tree.body)
    while inner:
        node = inner.pop()
        if isinstance(node, ast.Return):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            inner += ast.iter_child_nodes(node)
    return False


def free_names(tree: ast.AST) -> set[str]:
    """Names that a tree reads and binds nowhere, builtins included."""
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.arg(arg=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                bound.update(map(_bound_by, aliases))
    return read - bound


def without_dead_code(code: str, names: Iterable[str] = ()) -> str:
    """A program without imports that it never uses, and without what it would do only as a script (`if __name__ == "__main__"`).

    A sandbox may lack a module that a program imports out of habit.

    Args:
        code: a program, any text.
        names: what is called from outside, and stays even where the program itself does not use it.

    Returns:
        The program; the text itself where there is nothing to remove, or where it may read names that its text does not show.

    Example:
        >>> without_dead_code("import numpy as np\\nimport math\\ndef f(x): return math.sqrt(x)")
        'import math\\n\\ndef f(x):\\n    return math.sqrt(x)'
    """
    parsed = parse(code)
    if parsed is None:
        return code
    body = [node for node in parsed.body if not _is_script(node)]
    used = {node.id for top in body for node in ast.walk(top) if isinstance(node, ast.Name)} | set(names)
    imported = {_bound_by(alias) for top in body for alias in _imports(top)} - {"*"}
    if used & _READS_ANY_NAME or (len(body) == len(parsed.body) and imported <= used):
        return code
    try:
        # A copy by way of text: the tree is shared.
        tree = _UnusedImports(used).visit(ast.parse(ast.unparse(ast.Module(body, []))))
        tree.body = [node for node in tree.body if not isinstance(node, ast.Pass)]
        return ast.unparse(ast.fix_missing_locations(tree))
    except (ValueError, RecursionError):
        return code


class _UnusedImports(ast.NodeTransformer):
    """Removes imports of names that are not used."""

    def __init__(self, used: set[str]) -> None:
        self.used = used

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        return self._kept(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        return node if node.module == "__future__" else self._kept(node)

    def _kept(self, node: ast.Import | ast.ImportFrom) -> ast.stmt:
        node.names = [alias for alias in node.names if _bound_by(alias) in self.used | {"*"}]
        return node if node.names else ast.Pass()


def _imports(top: ast.stmt) -> Iterator[ast.alias]:
    for node in ast.walk(top):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__"):
            yield from node.names


def _bound_by(alias: ast.alias) -> str:
    return (alias.asname or alias.name).partition(".")[0]


def _is_script(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":` without an `else`."""
    match node:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()]), orelse=[]):
            return True
    return False
