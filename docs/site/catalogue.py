"""Pages and tables made from the code, so that they cannot go stale: tasks, model families, recipe keys, commands, API."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from unmask.cli import app
from unmask.methods import METHODS, SCORED, methods_by_kind
from unmask.models import families
from unmask.recipes import load as recipe
from unmask.tasks import TASKS, Task
from unmask.tasks.sourced import SourcedTask

API = {
    "Runs": ["trainer.loop", "trainer.pretrain", "trainer.comparison", "evaluation.evaluate", "runs.*"],
    "Recipes": ["recipes.load", "recipes.schema", "core.config"],
    "Records": ["core.records"],
    "Methods": ["methods.base", "methods.ratio", "methods.views"],
    "Tasks": ["tasks.base", "tasks.sourced"],
    "Rewards": ["rewards", "rewards.maths", "rewards.format", "rewards.protocol", "rewards.scorer", "rewards.loading"],
    "Models": ["models.denoiser", "models.loading", "models.families", "models.tiny"],
    "Sampling": [
        "sampling.engine",
        "sampling.encoding",
        "sampling.denoise",
        "sampling.branches",
        "sampling.logprobs",
        "sampling.replay",
        "sampling.remote.engine",
        "sampling.remote.format",
        "sampling.remote.importing",
    ],
    "The sandbox": ["rewards.sandbox", "rewards.sandbox.base"],
    "Mathematics": ["functional.*"],
    "Reports and plots": ["report.*"],
}
"""Pages of the API reference: modules of `unmask`; `*` is every module of a folder."""


@cache
def pages() -> dict[str, str]:
    """Place on the site: Markdown. A page of the same place in docs/ goes before one that is made here."""
    return (
        {f"tasks/{name}.md": task_page(name) for name in TASKS}
        | {f"models/{name}.md": family_page(name) for name in families.FAMILIES}
        | {"reference/commands.md": commands_page(), "reference/recipe-keys.md": recipe_keys_page()}
        | {f"reference/api-{_slug(title)}.md": api_page(title) for title in API}
    )


def filled(markdown: str) -> str:
    """A page with its `<!-- made: NAME -->` lines replaced by what they stand for."""
    made: dict[str, Callable[[], str]] = {"methods": methods_table, "tasks": tasks_table, "recipes": recipes_table}
    return re.sub(r"^<!-- made: (\w+) -->$", lambda match: made[match[1]](), markdown, flags=re.MULTILINE)


def methods_table() -> str:
    """All methods, grouped by what they score: what each does, costs and needs."""
    columns = ["method", "paper", "what it does", "unbiased", "cost of a completion", "needs"]
    parts = []
    for kind, methods in methods_by_kind().items():
        rows = [
            [f"[`{k}`]({_page_of(k)}.md)", m.paper, m.summary, m.unbiased, m.cost, m.needed()]
            for k, m in methods.items()
        ]
        parts += [f"## {kind.capitalize()}", f"Scored are {SCORED[kind]}.", _table(columns, rows)]
    return "\n\n".join(parts)


def tasks_table() -> str:
    """All tasks, in their first words."""
    return _table(["task", "what it is"], [[f"[`{k}`]({k}.md)", _doc(t)[0]] for k, t in TASKS.items()])


def recipes_table() -> str:
    """The recipes that come with the package, with their first comment."""
    rows = []
    for kind in ("", "compare", *recipe.COLLECTIONS):
        for name, path in recipe.shipped_recipes(kind).items():
            name = f"{kind}/{name}" if kind in recipe.COLLECTIONS else name
            lines = path.read_text(encoding="utf-8").splitlines()
            said = " ".join(line.lstrip("# ") for line in _leading(lines, lambda line: line.startswith("#")))
            said = re.split(r"(?<=\.)\s+(?=[A-Z])", said)[0]
            rows.append([f"`{name}`", "compare" if kind == "compare" else _command_of(path), said])
    return _table(["recipe", "for `unmask`", "what it is"], rows)


def task_page(name: str) -> str:
    """What a task is, rows to look at, its options, and the recipes that use it."""
    task = TASKS[name]
    summary, *rest = _doc(task)
    parts = [f"# {name}", summary, *rest]
    parts += _examples(task)
    options = _options(task)
    parts += ["## Options", f"Below `task:` in a recipe, or `--option KEY=VALUE` on the command line.\n\n{options}"]
    if task.reward_columns:
        columns = ", ".join(f"`{column}`" for column in task.reward_columns)
        parts.append(f"Its own reward reads the columns {columns} of a row.")
    used = [
        (_command_of(path), n)
        for n, path in recipe.shipped_recipes().items()
        if f"type: {name}" in path.read_text(encoding="utf-8")
    ]
    if used:
        commands = "\n".join(f"unmask {command} {name}" for command, name in sorted(used))
        parts += ["## Recipes", f"```bash\n{commands}\n```"]
    return "\n\n".join(parts) + "\n"


def family_page(name: str) -> str:
    """What the table of families says of one."""
    family = families.FAMILIES[name]
    tokens = ", ".join(f"`{token}`" for token in family.tokens.values()) or "its own"
    ids = ", ".join(f"{role} {number}" for role, number in family.token_ids.items())
    facts = {
        "paper": family.paper,
        "native class": f"`{family.native_class}`",
        "its own class": f"`{family.architecture}`, model_type `{family.model_type}`"
        if family.architecture
        else "native",
        "tensors": "renamed" if family.keys else "under the same names",
        "special tokens": tokens + (f" ({ids})" if ids else ""),
        "chat template": family.chat_template,
        "head": "shifted: speaks of the next position" if family.logit_shift else "speaks of its own position",
        "attention": "block-causal" if family.block_causal else "every position sees every other",
        "LoRA targets": ", ".join(f"`{target}`" for target in family.lora_targets),
        "checked here by": family.checked,
    }
    parts = [
        f"# {family.title}",
        f"Family `{name}`: `unmask models {name}` prints this page.",
        _table(["", ""], list(facts.items())),
    ]
    if family.checkpoints:
        rows = [[f"`{c.hub_id}`", c.parameters, str(c.block_length or ""), c.licence] for c in family.checkpoints]
        parts += ["## Checkpoints", _table(["on the hub", "parameters", "blocks of", "licence"], rows)]
        parts.append(f"```bash\nunmask convert {family.checkpoints[0].hub_id} models/{name}\n```")
    if family.notes:
        parts += ["## Worth knowing", "\n".join(f"- {note}" for note in family.notes)]
    return "\n\n".join(parts) + "\n"


def recipe_keys_page() -> str:
    """Every key that a recipe may hold."""
    parts = [
        "# Keys of a recipe",
        "Any of them can be set on the command line, as `KEY=VALUE`. What is below `method:` is on the page of each "
        "[method](../methods/index.md) and in `unmask methods NAME`; what is below `task:` is on the page of each "
        "[task](../tasks/index.md).",
        f"## Training\n\n{_options(recipe.TrainRecipe, skip=('task', 'method'))}",
        f"## Pretraining\n\n{_options(recipe.PretrainRecipe, skip=('task',))}",
    ]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = ["# Commands", "What `unmask COMMAND --help` says. A user's mistake ends with exit code 2 and a sentence."]
    for name, command in _commands(typer.main.get_command(app)):
        rows = []
        for parameter in command.params:
            if getattr(parameter, "hidden", False) or parameter.name == "help":
                continue
            is_option = parameter.param_type_name == "option"
            label = (
                f"`{', '.join(parameter.opts)}`" if is_option else f"`{parameter.metavar or parameter.name.upper()}`"
            )
            default = parameter.default if is_option and parameter.default not in (None, "", False) else ""
            rows.append([label, _shown(default) if default != "" else "", getattr(parameter, "help", "") or ""])
        said = inspect.cleandoc(command.help or "")
        parts += [
            f"## unmask {name}",
            said,
            _table(["argument or option", "default", "what it is"], rows) if rows else "",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def api_page(title: str) -> str:
    """Docstrings of a few modules, which mkdocstrings reads without importing them."""
    from links import ROOT

    parts = [f"# {title}"]
    for module in API[title]:
        names = [module]
        if module.endswith(".*"):
            folder = module.removesuffix(".*")
            files = (ROOT / "src" / "unmask" / folder).glob("*.py")
            names = [f"{folder}.{file.stem}" for file in sorted(files) if not file.stem.startswith("_")]
        parts += [
            f"## unmask.{name}\n\n::: unmask.{name}\n    options:\n      show_root_heading: false" for name in names
        ]
    return "\n\n".join(parts) + "\n"


def _page_of(method: str) -> str:
    """The page of a method: its own, or that of the method of which it is a setting."""
    from links import ROOT

    own = ROOT / "docs" / "methods" / f"{method}.md"
    return method if own.exists() else inspect.getmodule(METHODS[method]).__name__.rpartition(".")[2]  # type: ignore[union-attr]


def _examples(task: type[Task]) -> list[str]:
    """Two rows of a task that needs nothing to make them."""
    if issubclass(task, SourcedTask) or any(field.is_required() for field in task.model_fields.values()):
        return []
    rows = task().rows("train", 2, seed=0)
    cells = [[f"`{_one_line(row['prompt'])}`", f"`{_one_line(row['answer'])}`"] for row in rows]
    return ["## Rows", f"Format `bare`, the first two for training at seed 0:\n\n{_table(['prompt', 'answer'], cells)}"]


def _options(model: type[BaseModel], skip: Sequence[str] = ()) -> str:
    return _table(["key", "type", "default", "what it is"], list(_option_rows(model, "", ("type", *skip))))


def _option_rows(model: type[BaseModel], prefix: str, skip: Sequence[str]) -> Iterable[list[str]]:
    for key, field in model.model_fields.items():
        if key in skip:
            continue
        inner = next((t for t in _members(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if inner is not None:
            yield from _option_rows(inner, f"{prefix}{key}.", ())
            continue
        default = field.get_default(call_default_factory=True)
        shown = "must be set" if default is PydanticUndefined else _shown(default)
        yield [f"`{prefix}{key}`", _type_name(field.annotation), shown, field.description or ""]


def _members(annotation: Any) -> list[Any]:
    is_union = typing.get_origin(annotation) in (typing.Union, UnionType)
    return list(typing.get_args(annotation)) if is_union else [annotation]


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, UnionType):
        return " or ".join(_type_name(a) for a in arguments if a is not NoneType)
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return names.get(origin or annotation, getattr(origin or annotation, "__name__", str(annotation)))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if callable(value):
        return f"`{value.__name__.strip('_')}`"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _commands(group: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command_of(path: Path) -> str:
    """Which command takes a shipped recipe."""
    return "train" if "method" in recipe.read_tree(path) else "pretrain"


def _doc(kind: type) -> list[str]:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")


def _leading(lines: Iterable[str], is_wanted: Callable[[str], bool]) -> Iterable[str]:
    for line in lines:
        if not is_wanted(line):
            return
        yield line


def _one_line(value: object) -> str:
    return str(value).replace("\n", "⏎").replace("`", "'")


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
