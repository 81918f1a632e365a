"""Hints for unknown keys of a recipe. A hint names the key that the user probably meant, which may
be in any section of the recipe.

The hint comes from the first of these sources that gives one: a key of the same section with nearly
this name, a key of the same name elsewhere in the tree, the table of names that other libraries use
(`ANSWERS`), an option of the same name that another method or task has, a setting of another
command, and any key with nearly this name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel

from unmask.core.by_path import is_path, load_class
from unmask.core.errors import ConfigError, nearest, unknown_name
from unmask.core.settings import Config, Named, flat
from unmask.methods import METHODS, Method
from unmask.recipes.other_names import ANSWERS, OVERLOADED, Answer
from unmask.tasks import TASKS, Task

TABLES: dict[str, Mapping[str, type[BaseModel]]] = {"method": METHODS, "task": TASKS}
"""Sections of a training recipe whose keys depend on their `type`."""

MAX_ANSWERS = 5
"""Maximum number of keys of one unknown section for which a message gives a hint."""

NamedT = TypeVar("NamedT", bound=Named)


def find_class(base: type[NamedT], name: str) -> type[NamedT]:
    """Return the class of a method or task, given its name in the table or a path such as
    my_method.py:MyMethod.

    Args:
        base: `Method` or `Task`.
        name: the value of `type` in a recipe.

    Raises:
        ConfigError: if the table does not have the name, or the path has no such class.
    """
    table = TABLES[base.section]
    if name in table:
        return cast("type[NamedT]", table[name])
    if is_path(name) and name.partition(":")[0] not in table:
        return load_class(name, base, base.section)
    raise ConfigError(unknown_type(base.section, name))


def unknown_type(section: str, name: str) -> str:
    """Return the message for a `type` that is not the name of a method or task."""
    own = f"my_{section}.py:My{section.capitalize()}"
    return f"{unknown_name(section, name, TABLES[section])} Or give the path of your own class, as in {own}."


def class_named(section: str, name: object) -> type[BaseModel] | None:
    """Return the class whose fields are the keys of a section, given the value of the section's
    `type`. Return None if there is no such class."""
    bases: dict[str, type[Named]] = {"method": Method, "task": Task}
    base = bases.get(section)
    with suppress(ConfigError):
        return find_class(base, name) if base and isinstance(name, str) else None
    return None


def explain_unknown(kind: type[BaseModel], path: Sequence[str], value: object, tree: Mapping[str, Any]) -> str:
    """Return a message that says what to use instead of an unknown key. The message has one line,
    or one line for each key of an unknown section.

    Args:
        kind: the kind of recipe.
        path: the key, preceded by the sections above it.
        value: the value of the key.
        tree: the whole recipe; `method.type` and `task.type` decide which options are valid.

    Example:
        >>> from unmask.recipes.schema import TrainRecipe
        >>> explain_unknown(TrainRecipe, ["temperature"], 0.9, {})
        'unknown key "temperature". Did you mean "sampler.temperature"?'
        >>> explain_unknown(TrainRecipe, ["trainer"], {"total_epochs": 3, "logger": "wandb"}, {}).splitlines()[1]
        'unknown key "trainer.logger". Did you mean the top-level key "report_to"?'
    """
    known = Places(kind, tree)
    inner = [[*path, *key.split(".")] for key in flat(value)] if isinstance(value, Mapping) else []
    answered = [(keys, answer) for keys in inner if (answer := known.answer(keys)) is not None]
    if answered:
        return "\n".join(_unknown(known, keys, answer) for keys, answer in answered[:MAX_ANSWERS])
    answer = known.answer(path)
    if answer is None:
        near = f"{_meant(keys, path[:-1])} " if (keys := known.close(path)) else ""
        answer = f"{near}Available: {', '.join(sorted(known.beside(path[:-1])))}."
    return _unknown(known, path, answer)


def _unknown(known: Places, path: Sequence[str], answer: str) -> str:
    section = ".".join(path[:-1])
    if section and known.beside(path[:-1]):
        return f'{section} has no setting "{path[-1]}". {answer}'
    return f'unknown key "{".".join(path)}". {answer}'


def counterpart(kind: type[BaseModel], name: str, value: str = "VALUE") -> str | None:
    """Return a sentence with the KEY=VALUE to write instead of an unknown command-line option; None
    if there is no hint.

    Example:
        >>> from unmask.recipes.schema import TrainRecipe
        >>> counterpart(TrainRecipe, "lr", "1e-4")
        'Write settings as key=value, without dashes: optim.learning_rate=1e-4.'
    """
    path = _plain(name).split(".")
    known = Places(kind, {})
    keys = [key for key in known.owners if key == ".".join(path)] or known.instead(path)
    if not keys and (answer := known.answer(path)):
        return answer
    if keys := keys or known.close(path):
        return f"Write settings as key=value, without dashes: {' or '.join(f'{key}={value}' for key in keys[:3])}."
    return None


class Places:
    """All keys of a kind of recipe, with their sections and owners (the methods or tasks that have
    them as options).

    Args:
        kind: the kind of recipe.
        tree: the values of a recipe; only `method.type` and `task.type` are read.
    """

    def __init__(self, kind: type[BaseModel], tree: Mapping[str, Any]) -> None:
        self.kind = kind
        self.types = {name: _type_of(tree.get(name)) for name in TABLES}
        self.owners: dict[str, set[str]] = {}
        """For each dotted key, the methods or tasks that have this option; empty for a key that
        every recipe has."""
        for key, owner in _keys(kind):
            self.owners.setdefault(key, set()).update({owner} if owner else ())
        for section, name in self.types.items():
            if name and f"{section}.type" in self.owners and (cls := class_named(section, name)):
                for option in cls.model_fields.keys() - {"type"}:
                    self.owners.setdefault(f"{section}.{option}", set()).add(name)

    def beside(self, parents: Sequence[str]) -> list[str]:
        """Return the names of the keys directly in a section."""
        prefix = "".join(f"{name}." for name in self._generic(parents))
        return [
            key.removeprefix(prefix)
            for key in self.owners
            if key.startswith(prefix) and "." not in key.removeprefix(prefix) and self._is_open(key)
        ]

    def answer(self, path: Sequence[str]) -> str | None:
        """Return a hint for an unknown key: the name of the setting that replaces it, or the reason
        that there is no such setting. Return None if there is no hint for this key."""
        if len(path) > 1 and (command := self._other_command(path)):
            return command
        if keys := self.instead(path):
            return _meant(keys, path[:-1])
        if self._is_misspelt(path):
            return None
        sentences = (self._filled(text, path) for text in _answers_for(path))
        return next(filter(None, sentences), None) or self._of_others(path) or self._other_command(path)

    def instead(self, path: Sequence[str]) -> list[str]:
        """Return the keys of the setting that an unknown key stands for: the keys of the same name
        elsewhere in the tree, or the key with this project's name for the setting."""
        path = self._renamed(path)
        alike = self._alike(path)
        if alike and _is_here(alike, path):
            return alike
        if self._is_misspelt(path):
            return []
        # In a section of another library, a name may have another meaning. The table then lists the
        # name together with its section.
        if alike and _plain(path[-1]) not in OVERLOADED and not _with_section(path):
            return alike
        if joined := self._joined(path):
            return joined
        for text in _answers_for(path):
            if self._filled(text, path):
                return self._alike([*path[:-1], text.strip("`")]) if re.fullmatch(r"`[^`]+`", text) else []
        return []

    def _is_misspelt(self, path: Sequence[str]) -> bool:
        """Return whether the section has a key of nearly this name. Such a key takes precedence
        over keys in other sections."""
        return len(path) > 1 and bool(nearest(_plain(path[-1]), self.beside(path[:-1])))

    def _renamed(self, path: Sequence[str]) -> list[str]:
        """Return the path with this project's name for its first section, such as
        evaluation.num_rows for eval.num_rows."""
        first = _answers_for(path[:1])[:1] if len(path) > 1 and path[0] not in self.owners else []
        name = first[0].strip("`") if first else ""
        is_section = any(key.startswith(f"{name}.") for key in self.owners)
        return [name, *path[1:]] if first and is_section and first[0] == f"`{name}`" else list(path)

    def _joined(self, path: Sequence[str]) -> list[str]:
        """Return the key for a name in which an underscore joins section and key, such as task_type
        or eval_num_rows."""
        if len(path) > 1:
            return []
        names = {_plain(path[0]), re.sub("^eval_", "evaluation_", _plain(path[0]))}
        return [key for key in self.owners if key.replace(".", "_") in names and self._is_open(key)]

    def _other_command(self, path: Sequence[str]) -> str | None:
        """Return a sentence that names the command that has this key, if this command does not."""
        key = ".".join(map(_plain, path))
        if any(own == key or own.endswith(f".{key}") for own in self.owners):
            return None
        for other in _kinds(Config):
            if other.command and other is not self.kind and any(own == key for own, _ in _keys(other)):
                return f"It is a setting of unmask {other.command}."
        return None

    def _filled(self, text: str, path: Sequence[str]) -> str:
        """Return a sentence of the table with each key in backquotes replaced by its full name in
        this recipe. Return an empty text if the recipe lacks one of the keys."""
        keys = {key: self._alike([*path[:-1], key]) for key in re.findall(r"`(.+?)`", text)}
        return re.sub(r"`(.+?)`", lambda key: keys[key[1]][0], text) if all(keys.values()) else ""

    def _alike(self, path: Sequence[str]) -> list[str]:
        """Return the keys that end in this name. The same section is searched first, then the top
        level, then all sections."""
        name = _plain(path[-1])
        if own := self._beside([*path[:-1], *name.split(".")]):
            return [own]
        if name in self.owners and self._is_open(name):
            return [name]
        return [key for key in self.owners if key.endswith(f".{name}") and self._is_open(key)]

    def _beside(self, path: Sequence[str]) -> str:
        """Return the key with its dashes replaced by underscores if the recipe can have it;
        otherwise an empty string."""
        key = ".".join([*self._generic(path[:-1]), _plain(path[-1])])
        return key if key in self.owners and self._is_open(key) else ""

    def close(self, path: Sequence[str]) -> list[str]:
        """Return keys with nearly this name. The same section is searched first, then all
        sections."""
        name, beside = _plain(path[-1]), self.beside(path[:-1])
        prefix = "".join(f"{part}." for part in path[:-1])
        if near := nearest(name, beside):
            return [prefix + near[0]]
        if len(path) > 1:
            return []
        leaves = {key.rpartition(".")[2] for key in self.owners if self._is_open(key)}
        near = nearest(name, leaves)
        return self._alike(near) if near else []

    def _of_others(self, path: Sequence[str]) -> str | None:
        """Return a sentence that names the other methods or tasks with an option of this name."""
        name = _plain(path[-1])
        for section in TABLES:
            if owners := self.owners.get(f"{section}.{name}"):
                own = f", and this recipe's {section} is {self.types[section]}" if self.types[section] else ""
                return f"{section}.{name} is an option of {', '.join(sorted(owners))}{own}."
        return None

    def _is_open(self, key: str) -> bool:
        """Return whether the recipe, with its method and task, can have a key."""
        chosen = self.types.get(key.partition(".")[0])
        owners = self.owners[key]
        return not owners or not chosen or chosen in owners

    def _generic(self, parents: Sequence[str]) -> list[str]:
        """Return the sections with each name that the user chose replaced by NAME, the form that
        `owners` uses."""
        generic: list[str] = []
        for name in parents:
            prefix = ".".join([*generic, "NAME"])
            generic.append("NAME" if any(key.startswith(f"{prefix}.") for key in self.owners) else name)
        return generic


def _keys(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Yield all dotted keys of a kind of recipe, each with the method or task that has the
    option."""
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        yield key, None
        inner = [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        if name in TABLES and len(inner) > 1:
            yield f"{key}.type", None
            for owner, model in TABLES[name].items():
                yield from ((f"{key}.{option}", owner) for option in model.model_fields if option != "type")
        elif inner:
            named = ".NAME" if get_origin(field.annotation) is dict else ""
            yield from _keys(inner[0], f"{key}{named}.")
        elif issubclass(kind, Config) and name in kind.leads_to:
            yield from _keys(kind.leads_to[name], f"{key}.")


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and, recursively, its arguments."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _kinds(kind: type[Config]) -> Iterator[type[Config]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _kinds(inner)


def _is_here(keys: Sequence[str], path: Sequence[str]) -> bool:
    """Return whether `keys` is a single key in the section of `path`."""
    return len(keys) == 1 and len(path) > 1 and keys[0].rpartition(".")[0] == ".".join(path[:-1])


def _answers_for(path: Sequence[str]) -> list[str]:
    """Return the answers in the table of other libraries' names to a name. The answers for its
    section come first."""
    plain = _plain(path[-1])
    answer = _with_section(path) or ANSWERS.get(plain)
    if answer is None:
        answer = next((answer for name, answer in ANSWERS.items() if fnmatchcase(plain, name)), ())
    return [answer] if isinstance(answer, str) else list(answer)


def _with_section(path: Sequence[str]) -> Answer | None:
    """Return the answer that the table of other libraries' names has for a name in this particular
    section."""
    whole = ".".join(map(_plain, path))
    names = (name for name in ANSWERS if "." in name)
    return next((ANSWERS[name] for name in names if fnmatchcase(whole, name)), None)


def _plain(name: str) -> str:
    return name.strip().strip("-").replace("-", "_").lower()


def _type_of(section: object) -> str | None:
    name = section.get("type") if isinstance(section, Mapping) else getattr(section, "type", None)
    return name if isinstance(name, str) else None


def _meant(keys: Sequence[str], section: Sequence[str]) -> str:
    """Return the question "Did you mean ...?" for some keys. A key of `section` is quoted without
    the section, and a key outside all sections is called a top-level key."""
    prefix = "".join(f"{name}." for name in section)
    top = "the top-level key " if prefix else ""
    quoted = [f'{top if "." not in key else ""}"{key.removeprefix(prefix)}"' for key in keys[:3]]
    return f"Did you mean {' or '.join(quoted)}?"
