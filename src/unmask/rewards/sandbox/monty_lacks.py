"""Detection of failures that come from monty rather than from the program.

Monty implements part of the language and of the standard library. Most missing parts raise an error
that names them; a few silently give another value. The functions here use the error and the
program's source to distinguish both from the program's own faults.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from functools import cached_property

_BUILTIN_TYPES = (str, bytes, int, float, complex, list, tuple, dict, set, frozenset, range, bytearray)
_NO_ATTRIBUTE = re.compile(r"^(?:type object )?'([\w.]+)'(?: object)? has no attribute '(\w+)'")
_SPECIAL_METHODS = re.compile(
    "__(init|eq|hash|str|repr|iter|next|contains|getitem|setitem|delitem|call|enter|exit|post_init|i?add|radd|[ir]?sub|[ir]?mul"
    "|r?truediv|r?floordiv|r?mod|r?pow|and|or|xor|lshift|rshift|matmul|divmod|neg|pos|abs|invert|int|float|index|round)__"
)
"""Special methods that monty calls as CPython does. It ignores the others."""
_LAZY = frozenset(("map", "filter", "zip", "enumerate", "reversed"))
"""Functions that return lists in monty, so their results can be read twice and have a length."""
_DIFFERENT = frozenset(("hasattr", "getattr", "set", "frozenset", "Counter", "sys", "re"))
"""Names whose values may differ from CPython: methods are not attributes, sets have another order,
`Counter` has another text, and patterns match empty texts in other places."""
_MAX_CODE = 2**18


class Source:
    """Source of a program, analysed for what monty lacks. Each property is computed on first
    use."""

    def __init__(self, code: str, context: str = "") -> None:
        self.code = code
        self.names = code + context
        """Text that contains every name that the program, or the code judged with it, may have
        misspelled."""

    @cached_property
    def tree(self) -> ast.Module | None:
        """Return the syntax tree of the source; None if it is not a program."""
        if len(self.code) > _MAX_CODE:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # Compiling finds more errors than parsing, such as `return` outside of a function.
                compile(self.code, "<program>", "exec", dont_inherit=True)
                return ast.parse(self.code)
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            return None

    @cached_property
    def classes(self) -> set[str]:
        """Return the names of the classes that the program defines."""
        return {node.name for node in self._nodes if isinstance(node, ast.ClassDef)}

    @cached_property
    def has_ignored_methods(self) -> bool:
        """Return True if a class defines a special method that monty ignores, such as `__lt__`."""
        return any(
            isinstance(node, ast.FunctionDef) and _is_special(node.name) and not _SPECIAL_METHODS.fullmatch(node.name)
            for kind in self._nodes
            if isinstance(kind, ast.ClassDef)
            for node in kind.body
        )

    def is_at_fault(self, error: BaseException) -> bool:
        """Return True if the program also fails in CPython: a syntax error or undefined name."""
        if isinstance(error, NameError):
            return is_own_name(error, self)
        return isinstance(error, SyntaxError) and self.tree is None

    @cached_property
    def may_differ(self) -> bool:
        """Return True if the program uses something whose value may silently differ in monty."""
        return self.has_ignored_methods or any(_gives_other_values(node) for node in self._nodes)

    @cached_property
    def _nodes(self) -> list[ast.AST]:
        return [] if self.tree is None else list(ast.walk(self.tree))


def is_unsupported(error: BaseException, source: Source) -> bool:
    """Return True if an error may come from something that monty lacks.

    The result is also True in doubtful cases.

    Args:
        error: exception from the program's session, as a Python exception.
        source: source of the program.
    """
    text = str(error)
    match error:
        case SyntaxError():
            return source.tree is not None
        case ImportError() | PermissionError():
            return True
        case NotImplementedError():
            return not _raises_itself(source, text)
        case RuntimeError():
            return any(sign in text for sign in ("monty", "not supported in this environment", "cannot suspend in"))
        case NameError():
            return not is_own_name(error, source)
        case AttributeError():
            return _lacks_attribute(text, source)
        case LookupError():
            return text.startswith("unknown encoding")
        case TypeError():
            return any(f"'{name}'" in text for name in source.classes) or _lacks_call(text)
        case ValueError():
            return any(sign in text for sign in ("does not match format", "nknown format code", "pow() 2nd argument"))
    return False


def is_own_name(error: NameError, source: Source) -> bool:
    """Return True if CPython would raise this error, too, because the program misspells a name."""
    name = str(error).partition("'")[2].partition("'")[0]
    is_read = re.search(rf"(?<![.\w]){re.escape(name)}\b", source.names)
    return bool(is_read) and not hasattr(builtins, name) and not _is_special(name)


def _raises_itself(source: Source, text: str) -> bool:
    """Return True if the program, rather than monty, raises the NotImplementedError."""
    is_monty = "not supported" in text or "not yet support" in text or "monty" in text
    return "NotImplementedError" in source.names and not is_monty


def _lacks_attribute(text: str, source: Source) -> bool:
    match = _NO_ATTRIBUTE.match(text)
    if text.startswith("module ") or match is None:
        return True
    kind, name = match[1], match[2]
    if kind in source.classes:
        return source.has_ignored_methods or _is_special(name)
    own = getattr(builtins, kind, None) if kind != "NoneType" else type(None)
    # Monty may implement only part of a type that is neither the program's nor a builtin:
    # functions, iterators.
    return _is_special(name) or not isinstance(own, type) or hasattr(own, name)


def _lacks_call(text: str) -> bool:
    if any(sign in text for sign in ("not yet support", "is not an iterator", "cannot create '", "to bytes")):
        return True
    function = text.partition("(")[0].rpartition(".")[2]
    is_builtin = hasattr(builtins, function) or any(hasattr(kind, function) for kind in _BUILTIN_TYPES)
    signs = ("keyword argument", "not supported", "not yet", "takes ", "expected ")
    return is_builtin and "(" in text and any(sign in text for sign in signs)


def _gives_other_values(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name) | ast.alias(name=name):
            return name in _DIFFERENT
        case ast.Attribute(attr="Counter" | "cbrt" | "gamma" | "strptime") | ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="round"), args=args, keywords=keywords):
            return len(args) + len(keywords) > 1
        case ast.Compare(ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant()]):
            return False
        case ast.Compare(ops=[ast.Is() | ast.IsNot()]):
            return True
        case ast.Assign(value=value) | ast.AnnAssign(value=value) | ast.NamedExpr(value=value):
            return _is_lazy(value)
        case ast.Return(value=value):
            return _is_lazy(value)
    return False


def _is_lazy(value: ast.expr | None) -> bool:
    """Return True if an expression is an iterator in CPython and a list in monty."""
    match value:
        case ast.GeneratorExp():
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in _LAZY
    return False


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
