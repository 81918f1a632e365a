"""Extraction of the program from a completion. Any text is allowed, and the time is linear in it.

A correct program must not fail because of the text around it. The rules apply in this order:

1. Three parts of the completion are searched in this order: the last answer tag, the text after the
   last <think> or <reasoning> block, and the whole text. The program is in the first part that
   defines a name that the tests call. If the answer tag holds other code, the search ends there.
2. In each part, the fenced blocks are searched first. A fence may share its line with code, may be
   indented, may never be closed, and may hold other fences in a docstring. If no block defines the
   name, the text around the fences is searched, too.
3. If several blocks define the name, the last one counts, because a corrected version follows a
   draft. Helpers, classes and imports that it uses but does not define come from the other blocks.
4. A block that is not valid Python is repaired. The repair removes a language name at the start, a
   common indent, prompts of an interpreter session, typographic quotes, prose around statements,
   and an incomplete last statement.
"""

from __future__ import annotations

import ast
import html
import re
import textwrap
from collections.abc import Iterator, Sequence

from unmask.rewards.grading.answers import after_thoughts, before_end, tagged_answer
from unmask.rewards.grading.syntax import BUILTINS, MAX_CODE, defined_names, free_names, names_of, parse

_MOST_BLOCKS = 64
"""Maximum number of blocks that are read, counted from the end. This limit and the next two bound
the time."""
_MOST_CLOSES = 8
"""Maximum number of closing fences to try for a block, because the first ones may be in a
docstring."""
_MOST_JOINS = 200
"""Maximum number of attempts to join pieces, such as the lines of a string without indentation."""

_FENCE = re.compile(r"(?:^([ \t]*))?(```|~~~)[`~]*", re.MULTILINE)
_CLOSE = {mark: re.compile(rf"^[ \t]*{mark}[^\n]*$|{mark}[ \t\r]*$", re.MULTILINE) for mark in ("```", "~~~")}
_FENCE_MARK = re.compile(r"(?:```|~~~)[`~]*(?:[ \t]*(?:[pP]ython3?|py3?)\b)?")
_LANGUAGE = re.compile(r"\s*(?:'''|\"\"\"|``?)?(?:python ?3?|py3?)[ \t]*:?[ \t]*\r?(?:\n|$)", re.IGNORECASE)
"""First line of a code block that only names the language, such as `python`."""
_INLINE_LANGUAGE = re.compile(
    r"\s*(?:python3?|py3?)[ \t]+(?=(?:import|from|async|def|class|return|lambda)\b|@)", re.IGNORECASE
)
_LANGUAGE_WORD = re.compile(r"\A\s*(?:python3?|py3?)\s+", re.IGNORECASE)
_WRAPPER = re.compile(
    r"\A\s*(?:<(?:pre|code|python)\b[^<>\n]{0,40}>\s*)+|(?:</(?:pre|code|python)>\s*)+\Z|\A\s*``?(?!`)|(?:'''|\"\"\"|``?)\s*\Z"
)
"""Marks that enclose code, other than fences."""
_BEGINS = re.compile(r"(?:import|from|async|def|class|return|lambda)\b|@\w")
"""The start of code on the line of a fence, which may also hold a language and a title."""
_STATEMENT = re.compile(
    r"(?:import|from|async|def|class|for|while|if|try|with)\b|@\w|[A-Za-z_][\w.\[\]'\", ]{0,80}(?::[^=\n]{0,80})?[-+*/]?=(?!=)"
)
"""The start of a piece of text that may be a statement rather than an expression."""
_CLAUSE = re.compile(r"(?:else|elif|except|finally)\b")
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)
_UNINDENTED = re.compile(r"\n(?=[^\s)\]}])")
_INDENT = re.compile(r"(?<=\n)[ \t]*(?=\S)")
_INDENTED_LINES = re.compile(r"(?:^[ \t]+\S[^\n]*\n?(?:[ \t]*\n)*)+", re.MULTILINE)
_QUOTED_FENCE, _QUOTE = re.compile(r"^> ?(?:```|~~~)", re.MULTILINE), re.compile(r"^>(?!>) ?", re.MULTILINE)
"""A fenced block inside a Markdown quotation."""
_TYPESET = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u200b": "", "\ufeff": ""})


def code_in(text: str, names: Sequence[str] = ()) -> str:
    """Return the program in a completion, by the rules at the top of this file.

    Args:
        text: completion, or the content of its answer tag, of any length.
        names: names that the tests call.

    Returns:
        The source of the program. If nothing defines any of `names`: the first block of the answer
        tag or of the text, or the whole text.

    Example:
        >>> code_in("Here it is:\\n```python\\ndef f(x):\\n    return x\\n```\\nDone.", ["f"])
        'def f(x):\\n    return x\\n'
        >>> code_in("def f(x): return x")
        'def f(x): return x'
        >>> code_in("Here it is:\\ndef f(x):\\n    return x\\nIt isn't hard.", ["f"])
        'def f(x):\\n    return x'
    """
    if _QUOTED_FENCE.search(text):
        text = _QUOTE.sub("", text)
    whole, tagged = before_end(text), tagged_answer(text)
    regions = [region for region in (tagged, after_thoughts(whole), whole) if region is not None]
    for region in regions:
        for blocks in (fenced_blocks(region), _FENCE_MARK.split(region)[-_MOST_BLOCKS:]):
            if (program := _merged([_repaired(block) for block in blocks], names)) is not None:
                return program
        if region is tagged and _is_code(region):
            break
    first = next((region for region in regions if fenced_blocks(region) or _is_code(region)), regions[0])
    return next(map(_repaired, fenced_blocks(first)), _repaired(first))


def continued(start: str, code: str, is_exact: bool) -> str:
    """Join the start of a function with its continuation.

    If the result is not valid Python, the continuation is cut at the first line that is not part of
    the function.

    Args:
        start: signature and docstring of a function, with the newline after it.
        code: body of the function, and whatever the completion continues with.
        is_exact: True if a missing indent is an error, because the completion continues the prompt
            directly.

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
    """Return True if the first line that is not blank is indented and is not a fence."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return first[:1].isspace() and not first.lstrip().startswith(("```", "~~~"))


def fenced_blocks(text: str) -> list[str]:
    """Return the last blocks of a text that stand between fences."""
    blocks: list[str] = []
    position = 0
    while (fence := _FENCE.search(text, position)) is not None:
        indent, mark = fence[1], fence[2]
        line_end = text.find("\n", fence.end())
        line_end = len(text) if line_end < 0 else line_end
        if (close := text.find(mark, fence.end(), line_end)) >= 0:
            blocks.append(_LANGUAGE_WORD.sub("", text[fence.end() : close], count=1))
            position = close + len(mark)
            continue
        begin = fence.end() + _code_on_line(text[fence.end() : line_end])
        block, position = _until_close(text, begin, mark)
        # A fence in a list is indented with its block.
        blocks.append(textwrap.dedent(block) if indent else block)
    return blocks[-_MOST_BLOCKS:]


def _code_on_line(line: str) -> int:
    """Return the offset of the code after a fence: on its line or on the next one."""
    language = re.match(r"[ \t]*[\w+-]*[ \t]+", line)
    for start in (0, language.end() if language else 0):
        if _BEGINS.match(line.lstrip() if start == 0 else line[start:]):
            return start
    return len(line) + 1


def _until_close(text: str, begin: int, mark: str) -> tuple[str, int]:
    """Return a block up to the closing fence that makes it valid Python, and the end of that fence.

    If no closing fence makes the block valid, the block ends at the first one.
    """
    closes = []
    for close in _CLOSE[mark].finditer(text, begin):
        closes.append(close)
        if parse(textwrap.dedent(text[begin : close.start()])) is not None:
            return text[begin : close.start()], close.end()
        if len(closes) == _MOST_CLOSES:
            break
    # The completion may end before the fence is closed.
    return (text[begin : closes[0].start()], closes[0].end()) if closes else (text[begin:], len(text))


def _is_code(text: str) -> bool:
    """Return True if a text is Python with an effect, unlike one word of prose."""
    tree = parse(text)
    return tree is not None and not all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Name | ast.Constant | ast.Tuple) for node in tree.body
    )


def _repaired(block: str) -> str:
    """Return the first reading of a block that is valid Python, or else the block itself."""
    return next((reading for reading in _readings(block) if (tree := parse(reading)) and tree.body), block)


def _readings(block: str) -> Iterator[str]:
    """Yield a block as written, and then versions of it with possible errors removed."""
    language = _LANGUAGE.match(block) or _INLINE_LANGUAGE.match(block)
    code = block[language.end() :] if language else block
    yield code
    yield (plain := textwrap.dedent(code.strip("\n")))
    # Stripping the content of a tag also strips the indent of its first line.
    if indents := _INDENT.findall(plain):
        yield textwrap.dedent(min(indents, key=len) + plain)
    yield (plain := html.unescape(_WRAPPER.sub("", plain)).translate(_TYPESET))
    if len(plain) <= MAX_CODE:
        yield _statements(plain)
        yield _statements("\n".join(textwrap.dedent(lines) for lines in _INDENTED_LINES.findall(plain)))
    # Prompts are removed last, because docstrings hold examples with prompts.
    if _PROMPT.search(code):
        yield "\n".join(line[prompt.end() :] for line in code.splitlines() if (prompt := _PROMPT.match(line)))


def _statements(text: str) -> str:
    """Return the statements of a text, without prose, bare expressions and an incomplete statement.

    Code that runs when the program is loaded stays only if every name that it reads is defined
    before it. For example, `Time = O(n)` is prose if nothing defines `O` and `n`.
    """
    pieces = _UNINDENTED.split(text)
    statements: list[str] = []
    known = set(BUILTINS)
    joins = index = 0
    while index < len(pieces):
        first, index = index, index + 1
        if not _STATEMENT.match(pieces[first]):
            continue
        while (tree := parse("\n".join(pieces[first:index]))) is None and index < len(pieces) and joins < _MOST_JOINS:
            if index - first == _MOST_CLOSES:
                break
            index, joins = index + 1, joins + 1
        if tree is None:
            index = first + 1
            continue
        while index < len(pieces) and _CLAUSE.match(pieces[index]) and parse("\n".join(pieces[first : index + 1])):
            index += 1
        code = "\n".join(pieces[first:index])
        if _is_loadable(parse(code), known):
            statements.append(code)
            known |= defined_names(parse(code) or tree)
    return "\n".join(statements)


def _is_loadable(tree: ast.Module | None, known: set[str]) -> bool:
    """Return True if statements only define names, or read only known names."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    return tree is not None and all(
        not isinstance(node, ast.Expr) and (isinstance(node, definitions) or free_names(node) <= known)
        for node in tree.body
    )


def _merged(programs: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the last program that defines one of the names, with the definitions that it needs
    from the other programs.

    The result is None if no program defines any of the names.
    """
    trees = [parse(program) or ast.Module([], []) for program in programs]
    defining = [i for i, tree in enumerate(trees) if _defines(tree, names)]
    if not defining:
        return None
    main = defining[-1]
    others = [node for i, tree in enumerate(trees) if i != main for node in tree.body]
    definitions = {name: index for index, node in enumerate(others) for name in names_of(node)}
    missing = list((set(names) | free_names(trees[main])) - defined_names(trees[main]) - BUILTINS)
    needed: set[int] = set()
    while missing:
        index = definitions.get(missing.pop(), -1)
        if index >= 0 and index not in needed:
            needed.add(index)
            missing += free_names(others[index])
    return "\n".join([*(ast.unparse(others[index]) for index in sorted(needed)), programs[main]])


def _defines(tree: ast.Module, names: Sequence[str]) -> bool:
    """Return True if a program defines one of the names, or anything callable if no name is given.

    A stub does not count as a definition.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not _is_stub(node):
            if not names or node.name in names:
                return True
        elif isinstance(node, ast.Assign | ast.AnnAssign) and names_of(node) & set(names):
            return True
    return False


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Return True if a function does nothing: its body is a docstring, `pass` or `...`."""
    return not isinstance(node, ast.ClassDef) and all(
        isinstance(inner, ast.Pass) or (isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant))
        for inner in node.body
    )


def _first_part(code: str) -> str:
    """Return the lines before the first one that is neither indented nor a closing bracket."""
    end = _UNINDENTED.search(code)
    return code[: end.start()] if end else code
