"""Print the module graph of the package: its parts with their size, the arrows between them, and cycles.

    python -m benchmark.module_graph

A part is an entry of `src/unmask`, a folder or a single module. An arrow from one part to another
means that at least one file of the first imports from the second, at the top of the file or inside
a function.
"""

from __future__ import annotations

import ast
import graphlib
import io
import token
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

import unmask

PACKAGE = Path(unmask.__file__).parent

ROOT = "__init__"
"""Name of the part that is the package's own `__init__.py`."""

Graph = dict[str, Counter[str]]
"""Graph of parts: for each part, the parts that it imports and the number of imports."""


def imports(source: str, file: PurePath) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute dotted name of everything that a file imports.

    Every import counts: at the top, in a function, under TYPE_CHECKING, or as a literal argument of
    `import_module`.

    Args:
        source: text of the file.
        file: its path below the package, from which relative imports are resolved.
    """
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


def part_of(file: PurePath) -> str:
    """Return the part that a file below the package belongs to."""
    return file.parts[0].removesuffix(".py")


def graph_of(package: Path = PACKAGE) -> Graph:
    """Return the graph of a package's parts.

    A part that reads a name from the package root points to the root. The version is an exception:
    it is a constant there.
    """
    files = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    graph: Graph = {part_of(file): Counter() for file in files}
    for file in files:
        for _, name in imports((package / file).read_text(encoding="utf-8"), file):
            top, _, rest = name.partition(".")
            first = rest.partition(".")[0]
            target = first if first in graph else ROOT
            if top == "unmask" and first != "__version__" and target != part_of(file):
                graph[part_of(file)][target] += 1
    return graph


def cycle_of(graph: Graph) -> list[str]:
    """Return one cycle of the graph, its first part repeated at the end, or an empty list if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def lines_of_code(source: str) -> int:
    """Return the number of lines that hold code: no blank lines, comments and docstrings."""
    layout = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.COMMENT, token.ENDMARKER}
    lines: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for item in tokenize.generate_tokens(io.StringIO(source).readline):
        if item.type == token.NEWLINE:
            # A statement that is a string and nothing else is a docstring.
            if [part.type for part in statement] != [token.STRING]:
                lines.update(line for part in statement for line in range(part.start[0], part.end[0] + 1))
            statement = []
        elif item.type not in layout:
            statement.append(item)
    return len(lines)


def table(package: Path = PACKAGE) -> str:
    """Return the graph as text: one line for each part, those that import nothing first, and a summary."""
    graph, sizes = graph_of(package), Counter[str]()
    for path in package.rglob("*.py"):
        sizes[part_of(path.relative_to(package))] += lines_of_code(path.read_text(encoding="utf-8"))
    cycle = cycle_of(graph)
    parts = sorted(graph) if cycle else list(graphlib.TopologicalSorter(graph).static_order())
    rows = [f"{part:<12} {sizes[part]:>6}  {', '.join(sorted(graph[part]))}".rstrip() for part in parts]
    arrows = sum(map(len, graph.values()))
    summary = f"{len(parts)} parts, {sum(sizes.values())} lines of code, {arrows} arrows"
    return "\n".join([f"{'part':<12} {'lines':>6}  imports", *rows, "", f"{summary}, {describe(cycle)}"])


def describe(cycle: list[str]) -> str:
    """Return a cycle in words."""
    return f"a cycle: {' -> '.join(cycle)}" if cycle else "no cycle"


if __name__ == "__main__":
    print(table())
