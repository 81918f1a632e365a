"""Readers of text, YAML and JSON files that may be damaged or hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from unmask.core.errors import RunError, UnmaskError, reason

MAX_YAML_BYTES = 2**20
"""Maximum size of a YAML text, in bytes. PyYAML takes seconds for a megabyte, and recipes are far
smaller."""
MAX_YAML_NODES = 100_000
"""Maximum number of YAML values. A value that aliases repeat counts each time."""


class YamlError(ValueError):
    """Error for YAML text that cannot be used. The message does not contain the file name."""


def parse_yaml(text: str) -> Any:
    """Parse YAML text with plain values only, and refuse text that would take too much time or
    memory.

    A few lines of aliases that repeat each other (`b: [*a, *a, ...]`) can stand for billions of
    values. The values are therefore counted before they are built.

    Raises:
        YamlError: the text is too long, is not valid YAML, holds a value of an unknown kind, or
            repeats too much.

    Example:
        >>> parse_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    if len(text) > MAX_YAML_BYTES:
        raise YamlError(f"it has {len(text):,} characters, and at most {MAX_YAML_BYTES:,} are read")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node)
        return loader.construct_document(node)
    except YamlError:
        raise
    except RecursionError as error:
        raise YamlError("its values are nested too deeply") from error
    except Exception as error:  # PyYAML raises ValueError and others, such as for 2024-99-99
        raise YamlError(str(error) or reason(error)) from error


def _count_nodes(root: yaml.Node) -> int:
    """Return the number of values below a node, with every alias counted each time."""
    counted: dict[int, int] = {}
    under_way: set[int] = set()

    def count(node: yaml.Node) -> int:
        if id(node) in counted:
            return counted[id(node)]
        if id(node) in under_way:
            raise YamlError("a value contains itself by an alias")
        under_way.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        total = 1 + sum(count(child) for child in children)
        if total > MAX_YAML_NODES:
            raise YamlError(f"its aliases stand for more than {MAX_YAML_NODES:,} values")
        under_way.remove(id(node))
        counted[id(node)] = total
        return total

    return count(root)


def read_text(path: Path, error: type[UnmaskError] = RunError, max_bytes: int | None = None) -> str:
    """Read a UTF-8 text file.

    Args:
        path: path of the file.
        error: class of the error to raise.
        max_bytes: maximum size; a larger file is refused.

    Raises:
        UnmaskError: an `error`, if the file is missing, cannot be read, is too large, or is not
            UTF-8 text.
    """
    try:
        if path.exists() and not path.is_file():
            # Reading a named pipe would block forever, and a folder has no text.
            raise error(f"{path} is not a file.")
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise error(f"{path} has {path.stat().st_size:,} bytes, and at most {max_bytes:,} are read.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        line = fault.object[: fault.start].count(b"\n") + 1
        raise error(f"{path} is not UTF-8 text: line {line} holds other bytes.") from fault
    except (OSError, ValueError) as fault:  # ValueError: a null byte in the path
        raise error(f"{path} cannot be read: {getattr(fault, 'strerror', None) or reason(fault)}.") from fault


def read_yaml(path: Path, error: type[UnmaskError] = RunError) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines; see `parse_yaml`.

    Raises:
        UnmaskError: an `error`, if the file cannot be read or holds anything else.
    """
    text = read_text(path, error, MAX_YAML_BYTES)
    try:
        tree = parse_yaml(text)
    except YamlError as fault:
        raise error(f"{path} cannot be read as YAML: {_sentence(str(fault))}") from fault
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        held = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise error(
            f"{path} must hold `key: value` lines, and holds {held if not isinstance(tree, dict) else 'other keys'}."
        )
    return tree


def _sentence(text: str) -> str:
    """Return a one-line fault as a sentence with a full stop; a fault of several lines, which
    quotes the file, stays as it is."""
    return text if "\n" in text or text.endswith(".") else f"{text}."


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def parse_object(text: str) -> dict[str, Any] | None:
    """Parse text that is one JSON object; return None for any other text."""
    try:
        content = parse_json(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def read_json_lines(
    path: Path,
    parse: Callable[[str], dict[str, Any] | None] = parse_object,
    name: str = "a JSON object",
    advice: str = "Restore the file, or remove the line.",
) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line, to which a process may be writing.

    Text after the last newline counts if it is a whole object. Otherwise that text is the beginning
    of an unfinished line, and is dropped.

    Args:
        path: path of the file.
        parse: function that reads a line, and returns None if the line cannot be used.
        name: description of a valid line, for the message.
        advice: remedy for a damaged line, for the message.

    Raises:
        RunError: the file cannot be read, or a line before the last newline cannot be used.
    """
    *ended, last = read_text(path).split("\n")
    lines = []
    for number, text in enumerate(ended, 1):
        if (line := parse(text)) is None:
            raise RunError(f"{path}, line {number} is not {name}: {text[:60]!r}. {advice}")
        lines.append(line)
    return lines if (line := parse(last)) is None else [*lines, line]


def read_json_object(path: Path, error: type[UnmaskError] = RunError) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        UnmaskError: an `error`, if the file cannot be read or holds anything else.
    """
    text = read_text(path, error)
    try:
        content = parse_json(text)
    except ValueError as fault:
        raise error(f"{path} cannot be read as JSON: {_sentence(str(fault))}") from fault
    if not isinstance(content, dict):
        raise error(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content
