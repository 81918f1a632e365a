"""Finding the program in what a model wrote. Any text is fine: nothing here raises, and the time is linear in the text.

A right program is not lost to its wrapping. The rules, in the order in which they apply:

1. The program is looked for in the last answer tag, then behind the end of a <think> or <reasoning> block, then in all of the
   text. The first of the three that defines a name which the tests call is taken. A tag with other code in it is the answer.
2. In each of them, the blocks between fences come first. A fence may share its line with code, may be indented, may never be
   closed, and may hold other fences within a docstring. Without a block that defines the name, the text around the fences counts.
3. Of several blocks that define the name, the last one counts: a corrected version follows a draft. What it uses and does not
   define (a helper, a class, an import) is taken from the other blocks.
4. A block that is not Python as it stands is repaired: a language word in front of it, a common indent, the prompts of an
   interpreter session, typographic quotes, prose around statements, and a last statement that is cut off are removed.
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
"""Blocks of a text that are looked at, the last ones; bounds the time, as the next two do."""
_MOST_CLOSES = 8
"""Closing fences that are tried for a block, in case the first ones stand in a docstring."""
_MOST_JOINS = 200
"""How often pieces of a text are tried together, as lines of a string that is not indented are."""

_FENCE = re.compile(r"(?:^([ \t]*))?(```|~~~)[`~]*", re.MULTILINE)
_CLOSE = {mark: re.compile(rf"^[ \t]*{mark}[^\n]*$|{mark}[ \t\r]*$", re.MULTILINE) for mark in ("```", "~~~")}
_FENCE_MARK = re.compile(r"(?:```|~~~)[`~]*(?:[ \t]*(?:[pP]ython3?|py3?)\b)?")
_LANGUAGE = re.compile(r"\s*(?:'''|\"\"\"|``?)?(?:python ?3?|py3?)[ \t]*:?[ \t]*\r?(?:\n|$)", re.IGNORECASE)
"""A first line that only says which language follows."""
_INLINE_LANGUAGE = re.compile(
    r"\s*(?:python3?|py3?)[ \t]+(?=(?:import|from|async|def|class|return|lambda)\b|@)", re.IGNORECASE
)
_LANGUAGE_WORD = re.compile(r"\A\s*(?:python3?|py3?)\s+", re.IGNORECASE)
_WRAPPER = re.compile(
    r"\A\s*(?:<(?:pre|code|python)\b[^<>\n]{0,40}>\s*)+|(?:</(?:pre|code|python)>\s*)+\Z|\A\s*``?(?!`)|(?:'''|\"\"\"|``?)\s*\Z"
)
"""Marks around code other than a fence."""
_BEGINS = re.compile(r"(?:import|from|async|def|class|return|lambda)\b|@\w")
"""The start of code on a fence's own line, which may hold a language and a title too."""
_STATEMENT = re.compile(
    r"(?:import|from|async|def|class|for|while|if|try|with)\b|@\w|[A-Za-z_][\w.\[\]'\", ]{0,80}(?::[^=\n]{0,80})?[-+*/]?=(?!=)"
)
"""The start of a piece of text that may be a statement, and is more than an expression."""
_CLAUSE = re.compile(r"(?:else|elif|except|finally)\b")
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)
_UNINDENTED = re.compile(r"\n(?=[^\s)\]}])")
_INDENT = re.compile(r"(?<=\n)[ \t]*(?=\S)")
_INDENTED_LINES = re.compile(r"(?:^[ \t]+\S[^\n]*\n?(?:[ \t]*\n)*)+", re.MULTILINE)
_QUOTED_FENCE, _QUOTE = re.compile(r"^> ?(?:```|~~~)", re.MULTILINE), re.compile(r"^>(?!>) ?", re.MULTILINE)
"""A block that Markdown sets as a quotation."""
_TYPESET = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u200b": "", "\ufeff": ""})


def code_in(text: str, names: Sequence[str] = ()) -> str:
    """The program in a completion, by the rules at the top of this file.

    Args:
        text: a completion, or what stands in its answer tag; any length.
        names: what the tests will call.

    Returns:
        The text of the program. Where nothing defines any of `names`: the first block of the answer tag or of the text, or all of
        it.

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
            if (program := _joined([_repaired(block) for block in blocks], names)) is not None:
                return program
        if region is tagged and _is_code(region):
            break
    first = next((region for region in regions if fenced_blocks(region) or _is_code(region)), regions[0])
    return next(map(_repaired, fenced_blocks(first)), _repaired(first))


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
    return first[:1].isspace() and not first.lstrip().startswith(("```", "~~~"))


def fenced_blocks(text: str) -> list[str]:
    """What stands between fences: the last blocks of the text."""
    blocks: list[str] = []
    place = 0
    while (fence := _FENCE.search(text, place)) is not None:
        indent, mark = fence[1], fence[2]
        line_end = text.find("\n", fence.end())
        line_end = len(text) if line_end < 0 else line_end
        if (close := text.find(mark, fence.end(), line_end)) >= 0:
            blocks.append(_LANGUAGE_WORD.sub("", text[fence.end() : close], count=1))
            place = close + len(mark)
            continue
        begin = fence.end() + _code_on_line(text[fence.end() : line_end])
        block, place = _until_close(text, begin, mark)
        # A fence in a list is indented with its block.
        blocks.append(textwrap.dedent(block) if indent else block)
    return blocks[-_MOST_BLOCKS:]


def _code_on_line(line: str) -> int:
    """Where code begins behind a fence: on the fence's line, after a language at most, or with the next line."""
    language = re.match(r"[ \t]*[\w+-]*[ \t]+", line)
    for start in (0, language.end() if language else 0):
        if _BEGINS.match(line.lstrip() if start == 0 else line[start:]):
            return start
    return len(line) + 1


def _until_close(text: str, begin: int, mark: str) -> tuple[str, int]:
    """A block from its beginning to the first closing fence that makes it Python, else to the first; and where the fence ends."""
    closes = []
    for close in _CLOSE[mark].finditer(text, begin):
        closes.append(close)
        if parse(textwrap.dedent(text[begin : close.start()])) is not None:
            return text[begin : close.start()], close.end()
        if len(closes) == _MOST_CLOSES:
            break
    # A completion may run out of room.
    return (text[begin : closes[0].start()], closes[0].end()) if closes else (text[begin:], len(text))


def _is_code(text: str) -> bool:
    """Whether a text is Python that does something; a word of prose is Python too."""
    tree = parse(text)
    return tree is not None and not all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Name | ast.Constant | ast.Tuple) for node in tree.body
    )


def _repaired(block: str) -> str:
    """The first reading of a block that is Python, or the block as it stands."""
    return next((reading for reading in _readings(block) if (tree := parse(reading)) and tree.body), block)


def _readings(block: str) -> Iterator[str]:
    """A block as it stands, and without what may be wrong with it."""
    language = _LANGUAGE.match(block) or _INLINE_LANGUAGE.match(block)
    code = block[language.end() :] if language else block
    yield code
    yield (plain := textwrap.dedent(code.strip("\n")))
    # The tag around a body has stripped the indent of its first line.
    if indents := _INDENT.findall(plain):
        yield textwrap.dedent(min(indents, key=len) + plain)
    yield (plain := html.unescape(_WRAPPER.sub("", plain)).translate(_TYPESET))
    if len(plain) <= MAX_CODE:
        yield _statements(plain)
        yield _statements("\n".join(textwrap.dedent(lines) for lines in _INDENTED_LINES.findall(plain)))
    # Last, because docstrings hold examples with prompts.
    if _PROMPT.search(code):
        yield "\n".join(line[prompt.end() :] for line in code.splitlines() if (prompt := _PROMPT.match(line)))


def _statements(text: str) -> str:
    """The statements of a text, without prose and bare expressions, and without one that is cut off.

    Whatever would run when the program is loaded stays only if all names that it reads are known by then: `Time = O(n)` is prose.
    """
    pieces = _UNINDENTED.split(text)
    kept: list[str] = []
    known = set(BUILTINS)
    joins = place = 0
    while place < len(pieces):
        first, place = place, place + 1
        if not _STATEMENT.match(pieces[first]):
            continue
        while (tree := parse("\n".join(pieces[first:place]))) is None and place < len(pieces) and joins < _MOST_JOINS:
            if place - first == _MOST_CLOSES:
                break
            place, joins = place + 1, joins + 1
        if tree is None:
            place = first + 1
            continue
        while place < len(pieces) and _CLAUSE.match(pieces[place]) and parse("\n".join(pieces[first : place + 1])):
            place += 1
        code = "\n".join(pieces[first:place])
        if _is_loadable(parse(code), known):
            kept.append(code)
            known |= defined_names(parse(code) or tree)
    return "\n".join(kept)


def _is_loadable(tree: ast.Module | None, known: set[str]) -> bool:
    """Whether statements define something for later, or read known names only."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    return tree is not None and all(
        not isinstance(node, ast.Expr) and (isinstance(node, definitions) or free_names(node) <= known)
        for node in tree.body
    )


def _joined(programs: Sequence[str], names: Sequence[str]) -> str | None:
    """The last program that defines one of some names, with what it needs of the others; None if none defines any."""
    trees = [parse(program) or ast.Module([], []) for program in programs]
    defining = [i for i, tree in enumerate(trees) if _defines(tree, names)]
    if not defining:
        return None
    main = defining[-1]
    others = [node for i, tree in enumerate(trees) if i != main for node in tree.body]
    holders = {name: place for place, node in enumerate(others) for name in names_of(node)}
    missing = list((set(names) | free_names(trees[main])) - defined_names(trees[main]) - BUILTINS)
    needed: set[int] = set()
    while missing:
        place = holders.get(missing.pop(), -1)
        if place >= 0 and place not in needed:
            needed.add(place)
            missing += free_names(others[place])
    return "\n".join([*(ast.unparse(others[place]) for place in sorted(needed)), programs[main]])


def _defines(tree: ast.Module, names: Sequence[str]) -> bool:
    """Whether a program defines one of some names, or anything to be called where no name is given; a stub defines nothing."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not _is_stub(node):
            if not names or node.name in names:
                return True
        elif isinstance(node, ast.Assign | ast.AnnAssign) and names_of(node) & set(names):
            return True
    return False


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a function does nothing: it has a docstring, `pass` or `...` for a body."""
    return not isinstance(node, ast.ClassDef) and all(
        isinstance(inner, ast.Pass) or (isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant))
        for inner in node.body
    )


def _first_part(code: str) -> str:
    """The lines before the first that is not indented; a bracket that closes does not begin anything."""
    end = _UNINDENTED.search(code)
    return code[: end.start()] if end else code
