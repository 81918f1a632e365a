"""Messages for invalid recipes: one line of plain English for each fault that pydantic finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from unmask.core.errors import nearest
from unmask.recipes.keys import TABLES, class_named, explain_unknown, unknown_type

LONGEST_VALUE = 200
"""Maximum number of characters of a value that a message quotes."""


def explain(kind: type[BaseModel], fault: Any, tree: Mapping[str, Any]) -> str:
    """Return one line of plain English for one fault.

    Args:
        kind: the kind of recipe.
        fault: an entry of `ValidationError.errors()`.
        tree: the keys and values that were validated.
    """
    path, model = _located(kind, fault, tree)
    key, given = ".".join(path), repr(fault["input"])
    if len(given) > LONGEST_VALUE:
        given = f"{given[:LONGEST_VALUE]}..."
    match fault["type"]:
        case "extra_forbidden":
            return explain_unknown(kind, path, fault["input"], tree)
        case "missing":
            return f"{key} is missing. {_advice(path, tree)} in the recipe or on the command line."
        case "union_tag_invalid":
            return unknown_type(key, str(fault["ctx"]["tag"]))
        case "union_tag_not_found":
            return f"{key}.type is missing. Set it to the name of the {key}."
        case "value_error":
            message = fault["msg"].removeprefix("Value error, ")
            return f"{key}: {message}" if key else message
        case "model_type" | "model_attributes_type" | "dict_type":
            example = (
                f"{key}.type={fault['input']}" if key in ("method", "task") else f"{key}.{_first_key(model)}=VALUE"
            )
            return f"{key} = {given}: {key} is a section, not a single value. Set one of its keys, as in {example}."
        case "tuple_type" | "list_type":
            return f"{key} = {given}: write a list in square brackets."
        case "int_parsing" | "float_parsing" if "," in str(fault["input"]):
            return f"{key} = {given}: write several values as a list in square brackets: [{fault['input']}]."
        case _:
            return f"{key} = {given}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


def _advice(path: Sequence[str], tree: Mapping[str, Any]) -> str:
    """Return the advice to set a missing key, preceded by "Did you mean ...?" if the section of the
    key, such as tasks in tasks.sudoko, is a misspelling of another section."""
    near: list[str] = []
    if len(path) == 3 and isinstance(beside := tree.get(path[0]), Mapping):
        near = nearest(path[1], [name for name in beside if name != path[1]], cutoff=0.6)
    key = ".".join(path)
    return f"Did you mean {path[0]}.{near[0]}? If not, set {key}" if near else f"Set {key}"


def _located(kind: type[BaseModel], fault: Any, tree: Mapping[str, Any]) -> tuple[list[str], type[BaseModel] | None]:
    """Return the path of the invalid key, and the pydantic model at its end."""
    path: list[str] = []
    model: type[BaseModel] | None = kind
    entry_is_next = False
    for part in fault["loc"]:
        if entry_is_next:
            # The user chose the name of this entry of a mapping; the keys of the entry follow it.
            path.append(str(part))
            entry_is_next = False
            continue
        # For a union, pydantic's location contains the discriminator's tag, which is not a key of
        # the recipe.
        if path and path[-1] in TABLES and part in TABLES[path[-1]]:
            model = TABLES[path[-1]][part]
            continue
        path.append(str(part))
        if fault["type"] == "extra_forbidden" and len(path) and part == fault["loc"][-1]:
            break
        field = model.model_fields.get(str(part)) if model else None
        entry_is_next = field is not None and get_origin(field.annotation) is dict
        model = _field_model(model, str(part))
        section = tree.get(str(part)) if len(path) == 1 else None
        if isinstance(section, Mapping):
            model = class_named(str(part), section.get("type")) or model
    return path, model


def _first_key(model: type[BaseModel] | None) -> str:
    return next(iter(model.model_fields)) if model else "KEY"


def _field_model(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    if model is None or name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
