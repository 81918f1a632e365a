"""Finding the program in what a model wrote. Any text is fine: nothing here raises, and all of it is quick.

A right program is not lost to its wrapping: fences of two kinds, closed or not; prose around it without a fence; the indent of a
function's body that a tag or a tokenizer has stripped; what a completion of fixed length goes on to write after the function.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence

MAX_CODE = 2**16
"""Characters of a program that are looked at; a longer one is not run."""
_FENCE = re.compile(r"^([ \t]*)(```|~~~)[`~]*[ \t]*[\w+-]*[^\n]*$", re.MULTILINE)
_CLOSE = {mark: re.compile(rf"^[ \t]*{mark}[^\n]*$|{mark}[ \t\r]*$", re.MULTILINE) for mark in ("```", "~~~")}
_STATEMENT = re.compile(r"^(?:import \w|from [\w.]+ import |@\w|(?:async )?def \w|class \w)", re.MULTILINE)
_UNINDENTED = re.compile(r"\n(?=[^\s)\]}])")


def code_in(text: str, names: Sequence[str] = ()) -> str:
    """The program in a text: the first fenced block that defines one of `names`, else the first block; without a fence all of the
    text, or what begins with a statement and defines a name of them where the rest is prose.

    A fence that is never closed reaches to the end of the text: a completion may run out of room.

    Args:
        text: a completion, or what stands in its answer tag; any length.
        names: what the tests will call.

    Returns:
        The text of the program, without its fences.

    Example:
        >>> code_in("Here it is:\\n```python\\ndef f(x):\\n    return x\\n```\\nDone.", ["f"])
        'def f(x):\\n    return x\\n'
        >>> code_in("def f(x): return x")
        'def f(x): return x'
        >>> code_in("Here it is:\\ndef f(x):\\n    return x\\nIt isn't hard.", ["f"])
        'def f(x):\\n    return x'
    """
    blocks = _blocks(text)
    if not blocks:
        return text if parse(text) else _without_prose(text, names)
    return next((block for block in blocks if _definition(block, names)), blocks[0])


def continued(start: str, code: str, is_exact: bool) -> str:
    """The beginning of a function with its continuation, up to where something else begins if the whole is no Python.

    Args:
        start: a function's signature and docstring, with the newline after it.
        code: its body, and what a completion went on to write.
        is_exact: whether an indent that is missing is the model's fault, as where its text continues the prompt itself.

    Example:
        >>> continued("def f(x):\\n", "    return x\\n\\nThis isn't hard.", True)
        'def f(x):\\n    return x\\n'
        >>> continued("def f(x):\\n", "if x:\\n        return 1\\n    return 2", False)
        'def f(x):\\n    if x:\\n        return 1\\n    return 2'
    """
    bodies = [code, _first_part(code)]
    if not (is_exact or is_indented(code)):
        stripped = [textwrap.indent(code, "    "), "    " + code.lstrip()]
        bodies = [*stripped, *map(_first_part, stripped), *bodies]
    return next((start + body for body in bodies if parse(start + body)), start + code)


def is_indented(text: str) -> bool:
    """Whether the first line with something in it begins with white space, and is no fence."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return first[:1].isspace() and not _FENCE.match(first)


def parse(code: str) -> ast.Module | None:
    """The syntax tree of a text, or None if it is no Python or too long to look at."""
    if len(code) > MAX_CODE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    # CPython reports nesting beyond its parser's stack as any of these, depending on version and depth.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _blocks(text: str) -> list[str]:
    """What stands between fences."""
    blocks, place = [], 0
    while (fence := _FENCE.search(text, place)) is not None:
        begin = min(fence.end() + 1, len(text))
        close = _CLOSE[fence[2]].search(text, begin)
        block = text[begin : close.start() if close else len(text)]
        # A fence in a list is indented with its block.
        blocks.append(textwrap.dedent(block) if fence[1] else block)
        if close is None:
            break
        place = close.end()
    return blocks


def _definition(code: str, names: Sequence[str]) -> re.Match[str] | None:
    """Where a text defines one of some names."""
    any_name = "|".join(map(re.escape, names))
    pattern = rf"^[ \t]*(?:async )?(?:def|class) +(?:{any_name})\b|^(?:{any_name})\b[^=\n(]*=(?!=)"
    return re.search(pattern, code, re.MULTILINE) if names else None


def _without_prose(text: str, names: Sequence[str]) -> str:
    """From the first line that begins a statement to the end of a definition of one of the names, if that is Python."""
    first, definition = _STATEMENT.search(text), _definition(text, names)
    if first is None or definition is None or definition.start() < first.start():
        return text
    end = _UNINDENTED.search(text, definition.end())
    program = text[first.start() : end.start() if end else len(text)]
    return program if parse(program) else text


def _first_part(code: str) -> str:
    """The lines before the first that is not indented; a bracket that closes does not begin anything."""
    end = _UNINDENTED.search(code)
    return code[: end.start()] if end else code
