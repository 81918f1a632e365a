"""Loaders of Python objects that live in a user's file or package and are named by path, as in
`my_method.py:RandomStep`.

Reward functions, methods, tasks, orders and optimizers are all loaded here, so a path means the
same everywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from unmask.core.errors import ConfigError, no_file, unknown_name

FILE_MODULE = "unmask_file_"
"""Prefix of the names of modules that were read from a file by its path."""

BaseT = TypeVar("BaseT")


def is_path(name: object) -> bool:
    """Return True if a name is the path of an object rather than an entry of one of the package's
    tables.

    Example:
        >>> is_path("my_method.py:RandomStep"), is_path("egspo")
        (True, False)
    """
    return isinstance(name, str) and ":" in name


def path_of(cls: type) -> str:
    """Return the path from which a class can be loaded again.

    It is `file.py:Class` if the class comes from a file loaded by path or from the running script,
    and `package.module:Class` otherwise.
    """
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None or not (cls.__module__ == "__main__" or cls.__module__.startswith(FILE_MODULE)):
        return f"{cls.__module__}:{cls.__qualname__}"
    near = os.path.relpath(file)
    return f"{file if near.startswith('..') else near}:{cls.__qualname__}"


def load_object(path: str, what: str, example: str = "Class") -> Any:
    """Load the object at `file.py:NAME` or `package.module:NAME`.

    The folder of the file (for a package, the current folder) is added to Python's path, so that
    the file can import its neighbours. A file is executed once, and again only after its text has
    changed.

    Args:
        path: file or module, and the name of the object in it.
        what: role of the object, such as "method", for messages.
        example: name that messages show as an example, such as "MyMethod".

    Raises:
        ConfigError: the path is malformed, the file is missing or cannot be executed, or the name
            is not defined in it.
    """
    where, _, attribute = path.rpartition(":")
    if not (where and attribute):
        raise ConfigError(f'{what} "{path}" must be given as package.module:{example} or file.py:{example}.')
    if "<locals>" in attribute:
        raise ConfigError(
            f'{what} "{path}" is defined inside a function, where a resumed run cannot find it. '
            "Define it at the top level of a file."
        )
    file = Path(where).expanduser() if where.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ConfigError(f'{what} "{path}" cannot be loaded: {no_file(file)}')
    folder = str(file.resolve().parent if file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = _module_of(file) if file else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # the file is the user's, and may raise anything
        raise ConfigError(
            f'{what} "{path}" cannot be loaded: {type(error).__name__}: {error}{_line_in(file, error)}'
        ) from error
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise ConfigError(f'{what} "{path}" cannot be loaded: {unknown_name("name", attribute, defined)}') from None


def load_callable(path: str, what: str, example: str = "function") -> Any:
    """Load an object that can be called; see `load_object`.

    Raises:
        ConfigError: the object cannot be loaded or cannot be called.
    """
    target = load_object(path, what, example)
    if not callable(target):
        raise ConfigError(f'{what} "{path}" is a {type(target).__name__}, not a {example}.')
    return target


def load_class(path: str, base: type[BaseT], what: str) -> type[BaseT]:
    """Load a class that derives from `base`; see `load_object`.

    Raises:
        ConfigError: the object cannot be loaded, does not derive from `base`, or leaves one of its
            abstract methods undefined.
    """
    target = load_object(path, what)
    home = f"{base.__module__.rpartition('.')[0]}.{base.__name__}"
    if not (isinstance(target, type) and issubclass(target, base)):
        kind = "a class" if isinstance(target, type) else f"a {type(target).__name__}"
        raise ConfigError(f'{what} "{path}" is {kind} that does not derive from {home}. Make it a subclass of {home}.')
    if undefined := getattr(target, "__abstractmethods__", None):
        missing = ", ".join(sorted(undefined))
        raise ConfigError(f'{what} "{path}" does not define {missing}, which every subclass of {home} must define.')
    return target


def source_of(path: str) -> tuple[str, str] | None:
    """Return the file that defines the object at a path, and the SHA-256 of the file's text; None
    if the object has no file."""
    try:
        target = load_object(path, "object")
        is_definition = inspect.isroutine(target) or isinstance(target, type)
        file = Path(inspect.getfile(target if is_definition else type(target)))
        return str(file), hashlib.sha256(file.read_bytes()).hexdigest()
    except (ConfigError, TypeError, OSError):
        return None


def _module_of(file: Path) -> ModuleType:
    """Return the module of a file. Execute the file unless the file's present text has been
    executed already."""
    location, source = file.resolve(), file.read_bytes()
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and Path(str(main.__file__)).resolve() == location:
        # Executing the script that is running would start its work a second time.
        return main
    digest = hashlib.sha256(source).hexdigest()
    # Files of the same name in different folders are different modules.
    name = f"{FILE_MODULE}{file.stem}_{hashlib.sha256(str(location).encode()).hexdigest()[:8]}"
    known = sys.modules.get(name)
    if known is not None and known.__dict__["__digest__"] == digest:
        return known
    spec = importlib.util.spec_from_file_location(name, location)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__digest__"] = digest
    sys.modules[name] = module
    try:
        # The import system's loader is not used: its bytecode cache misses a second edit within a
        # second.
        exec(compile(source, location, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line_in(file: Path | None, error: BaseException) -> str:
    """Return the line of a file in which an error arose, in brackets; an empty string if the line
    is unknown."""
    location = str(file.resolve()) if file else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == location]
    return f" ({Path(str(location)).name}, line {lines[-1]})" if lines else ""
