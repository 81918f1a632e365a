"""Names that a Python program defines, reads and imports, from its syntax tree.

Nothing in this module runs the program.
"""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache

MAX_CODE = 2**16
"""Maximum length of a program in characters. A longer one is not run."""
_MAX_DEPTH = 200
"""Maximum depth of nesting that `ast.unparse`, which is recursive, can write within Python's
limit."""
BUILTINS = frozenset(dir(builtins))
_READS_ANY_NAME = frozenset({"eval", "exec", "globals", "locals", "vars", "compile", "__import__", "__all__"})
"""Names through which a program may read other names that do not occur in its text."""


@lru_cache(maxsize=64)
def parse(code: str) -> ast.Module | None:
    """Return the syntax tree of a text; None if it is not valid Python, too long or too deep.

    Callers share the tree and must not change it.

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
    # CPython raises any of these for deep nesting, depending on version and depth.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _depth(tree: ast.AST) -> int:
    """Return the depth of a tree, counted up to one level beyond the limit."""
    depth, level = 0, [tree]
    while level and depth <= _MAX_DEPTH:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def defined_names(tree: ast.Module) -> set[str]:
    """Return the names that a module binds at its top level by definition or assignment."""
    return {name for node in tree.body for name in names_of(node)}


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement binds: a function, a class, imports, assignments."""
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
    """Return True if a module has a `return` outside of its functions.

    Such a text is the body of a function without its first line.

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
    """Return the names that a tree reads but does not bind, including builtins."""
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
    """Return a program without unused imports and without `if __name__ == "__main__"` blocks.

    A sandbox may lack modules that a program imports but never uses.

    Args:
        code: program, any text.
        names: names that are called from outside, and stay even if the program does not use them.

    Returns:
        The shorter program. If there is nothing to remove, or if the program may read names that do
        not occur in its text, the text itself.

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
        # The tree is shared, so a copy is made through its source.
        tree = _UnusedImports(used).visit(ast.parse(ast.unparse(ast.Module(body, []))))
        tree.body = [node for node in tree.body if not isinstance(node, ast.Pass)]
        return ast.unparse(ast.fix_missing_locations(tree))
    except (ValueError, RecursionError):
        return code


class _UnusedImports(ast.NodeTransformer):
    """Remove imports of unused names."""

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
    """Return True if a statement is `if __name__ == "__main__":` without an `else`."""
    match node:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()]), orelse=[]):
            return True
    return False
