"""Base classes of settings: frozen pydantic models that refuse unknown keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from unmask.core.by_path import is_path, load_object, path_of
from unmask.core.errors import ConfigError


class Config(BaseModel):
    """Base class of all parts of a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    section: ClassVar[str] = ""
    """Key in a recipe that holds the settings of this class; used in messages."""
    command: ClassVar[str] = ""
    """Command that takes a whole recipe of this class; used in messages."""
    leads_to: ClassVar[Mapping[str, type[Config]]] = {}
    """Fields whose values are changes to another recipe, written as dotted keys, each with the
    class of that recipe."""

    @model_validator(mode="before")
    @classmethod
    def _read_values(cls, settings: object) -> object:
        """Turn a single value into a list where the field is a list, expand ~ at the start of a
        path, and restore the word `off`, which YAML reads as False."""
        if not isinstance(settings, Mapping):
            return settings

        def read(value: Any, field: FieldInfo | None) -> Any:
            return "off" if value is False and _has_off(field) else _expanded(_listed(value, field))

        return {key: read(value, cls.model_fields.get(key)) for key, value in settings.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            key = f"{self.section}.{name}" if self.section else name
            raise ConfigError(
                f"{key} cannot be set on a recipe that is already loaded. "
                f'Load it again with the other value: load_recipe(recipe, {{"{key}": {value!r}}}).'
            )
        super().__setattr__(name, value)


class Named(Config):
    """Base class of methods and tasks, which a recipe selects by `type`: a name in the package's
    table, or the path of a class.

    A class outside the package does not declare `type`. The type of such a class is its path,
    whichever class it derives from.
    """

    type: str

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        super().__pydantic_init_subclass__(**settings)
        if cls.is_outside():
            cls.model_fields["type"] = FieldInfo(annotation=str, default=path_of(cls))
            cls.model_rebuild(force=True)

    @classmethod
    def is_outside(cls) -> bool:
        """Return True if the class is defined outside the package."""
        return cls.__module__.partition(".")[0] != __name__.partition(".")[0]

    @property
    def type_name(self) -> str:
        """Type without the path; for a class outside the package, the name of the class."""
        return self.type.rpartition(":")[2]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_path(self.type):
            # Another process must load the file before it knows the class.
            return _restored, (self.type, self.section, self.__getstate__())
        return super().__reduce_ex__(protocol)


def _restored(path: str, what: str, state: dict[Any, Any]) -> Named:
    """Unpickle settings whose class lives outside the package."""
    cls = load_object(path, what)
    settings: Named = cls.__new__(cls)
    settings.__setstate__(state)
    return settings


def _listed(value: Any, field: FieldInfo | None) -> Any:
    """Wrap a single value in a list if the field is a list of any length; None becomes an empty
    list."""
    if field is None or not _holds_list(field.annotation):
        return value
    if value is None:
        return () if field.default == () else None
    return [value] if isinstance(value, str | int | float | os.PathLike) else value


def _has_off(field: FieldInfo | None) -> bool:
    """Return True if the value of a field is one of several words, among them `off`."""
    return field is not None and get_origin(field.annotation) is Literal and "off" in get_args(field.annotation)


def _holds_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_holds_list(option) for option in get_args(annotation) if option is not type(None))
    return get_origin(annotation) is tuple and get_args(annotation)[-1] is Ellipsis


def _expanded(value: Any) -> Any:
    # A named tuple, such as a policy, is not a list.
    if type(value) in (list, tuple):
        return type(value)(_expanded(item) for item in value)
    if isinstance(value, str | os.PathLike) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))  # type: ignore[call-arg]
    return value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of settings to values by dotted key. Keys may be dotted already; later entries
    win.

    Example:
        >>> flat({"method": {"type": "egspo", "beta": 0.0}, "optim.learning_rate": 1e-3})
        {'method.type': 'egspo', 'method.beta': 0.0, 'optim.learning_rate': 0.001}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
