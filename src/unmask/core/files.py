"""Readers of text, YAML and JSON files that may be damaged or hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from unmask.core.errors import RunError, UnmaskError, reason

MOST_YAML_BYTES = 2**20
"""Largest YAML text that is read: PyYAML takes seconds for a megabyte, and no recipe comes near it."""
MOST_YAML_NODES = 100_000
"""Largest number of YAML values, each counted as often as aliases repeat it."""


class YamlError(ValueError):
    """YAML text that cannot be used; the message says why, without naming the file."""


def parse_yaml(text: str) -> Any:
    """Read YAML text with plain values only, and refuse what would take too long or too much memory.

    A few lines of aliases that repeat each other (`b: [*a, *a, ...]`) stand for billions of values, which the first
    function that walks or prints them would never finish. So the values are counted before they are built.

    Raises:
        YamlError: the text is too long, is not valid YAML, holds a value of an unknown kind, or repeats too much.

    Example:
        >>> parse_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    if len(text) > MOST_YAML_BYTES:
        raise YamlError(f"it has {len(text):,} characters, and at most {MOST_YAML_BYTES:,} are read")
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
    except Exception as error:  # PyYAML raises ValueError and others for values such as 2024-99-99 or 0x_
        raise YamlError(str(error) or reason(error)) from error


def _count_nodes(root: yaml.Node) -> int:
    """Number of values below a node, with every alias counted each time."""
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
        if total > MOST_YAML_NODES:
            raise YamlError(f"its aliases stand for more than {MOST_YAML_NODES:,} values")
        under_way.remove(id(node))
        counted[id(node)] = total
        return total

    return count(root)


def read_text(path: Path, error: type[UnmaskError] = RunError, most_bytes: int | None = None) -> str:
    """Read a UTF-8 text file.

    Args:
        path: the file.
        error: the kind of error to raise.
        most_bytes: refuse a file that is larger.

    Raises:
        UnmaskError: of the kind `error`; the file is missing, cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        if path.exists() and not path.is_file():
            # A named pipe would be waited for without end, and a folder is no text.
            raise error(f"{path} is not a file.")
        if most_bytes is not None and path.stat().st_size > most_bytes:
            raise error(f"{path} has {path.stat().st_size:,} bytes, and at most {most_bytes:,} are read.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        line = fault.object[: fault.start].count(b"\n") + 1
        raise error(f"{path} is not UTF-8 text: line {line} holds other bytes.") from fault
    except (OSError, ValueError) as fault:  # ValueError: a null byte in the path
        raise error(f"{path} cannot be read: {getattr(fault, 'strerror', None) or reason(fault)}.") from fault


def read_yaml(path: Path, error: type[UnmaskError] = RunError) -> dict[str, Any]:
    """Read a YAML file of `key: value` lines; see `parse_yaml`.

    Raises:
        UnmaskError: of the kind `error`; the file cannot be read, or holds something else.
    """
    text = read_text(path, error, MOST_YAML_BYTES)
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
    """A fault of one line ends as a sentence does; those of several lines, which quote the file, stay as they are."""
    return text if "\n" in text or text.endswith(".") else f"{text}."


def parse_json(text: str) -> Any:
    """Read JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def parse_object(text: str) -> dict[str, Any] | None:
    """Read the text of one JSON object; None if the text is something else."""
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
    """Read a file of JSON objects, one a line, to which a process may be writing.

    The text after the last newline counts if it is a whole object. Otherwise it is dropped: it is the beginning of a line that
    a process is writing, or was writing when it was killed.

    Args:
        path: the file.
        parse: reads a line, and returns None if it cannot be used.
        name: what a line has to be, for the message.
        advice: what to do about a damaged line, for the message.

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
        UnmaskError: of the kind `error`; the file cannot be read, or holds something else.
    """
    text = read_text(path, error)
    try:
        content = parse_json(text)
    except ValueError as fault:
        raise error(f"{path} cannot be read as JSON: {_sentence(str(fault))}") from fault
    if not isinstance(content, dict):
        raise error(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content
