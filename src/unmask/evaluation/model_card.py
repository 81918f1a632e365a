"""The model card of a finished model, `final/README.md`. It is made from the template
`model_card.md` in this folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.by_path import is_path, source_of
from unmask.evaluation.results import data_facts
from unmask.methods.papers import bibtex
from unmask.recipes.load import dump
from unmask.recipes.schema import PretrainRecipe, RunRecipe, TrainRecipe
from unmask.runs.environment import environment
from unmask.runs.metrics import EvaluationPoint, evaluations

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from torch import nn

    from unmask.core.records import Row

logger = logging.getLogger("unmask")

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_EGSPO = "2603.12554"
_TEMPLATE = Path(__file__).with_suffix(".md")

Lines = Sequence[Mapping[str, Any]]


def training_card(
    recipe: TrainRecipe,
    lines: Lines,
    data: Mapping[str, Any],
    rows: Sequence[Row],
    model: nn.Module,
    notes: Sequence[str] = (),
) -> str:
    """Return the card of a model from `unmask train`: YAML that the hub reads, then Markdown.

    Args:
        recipe: the recipe of the run.
        lines: the lines of the run's metrics.jsonl.
        data: the content of the run's data.json; empty if the task generates its examples.
        rows: the held-out examples of the evaluations.
        model: the finished model.
        notes: differences between the run and a new run of its recipe; see `unmask.runs.extension`.
    """
    method = recipe.method
    evaluated = [line for line in lines if evaluations(line)]
    first, last = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
    before = {} if first is last else {(p.split, p.temperature): p for p in evaluations(first)}
    numbers = re.findall(r"\d{4}\.\d{5}", method.paper)
    is_own = method.paper.startswith("ours")
    return _card(
        recipe,
        _metadata(recipe, [method.type_name, "reinforcement-learning"], data, last),
        _facts(recipe, data, lines, rows, model, notes),
        method=method,
        paper=_links(method.paper),
        sampler=recipe.evaluation_sampler(0.0),
        results=[
            {
                "split": point.split,
                "sampling": point.sampling,
                "before": _with_interval(before.get((point.split, point.temperature))),
                "after": _with_interval(point),
                "reward": f"{point.reward:.3f}",
                "forwards": "" if isnan(point.forwards) else f"{point.forwards:.1f} ({point.tokens_per_forward:.2f})",
            }
            for point in evaluations(last)
        ],
        measured_before=bool(before),
        first_step=first.get("step"),
        last_step=last.get("step"),
        num_held_out=len(rows),
        is_own_method=is_own,
        citations=[bibtex(number) for number in [*numbers, *([_EGSPO] if is_own and numbers else [])]],
    )


def pretraining_card(
    recipe: PretrainRecipe, lines: Lines, data: Mapping[str, Any], model: nn.Module, notes: Sequence[str] = ()
) -> str:
    """Return the card of a model from `unmask pretrain`; see `training_card`."""
    metadata = _metadata(recipe, ["pretraining"], data, {})
    return _card(recipe, metadata, _facts(recipe, data, lines, (), model, notes))


def _card(recipe: RunRecipe, metadata: ModelCardData, facts: Mapping[str, str], **values: Any) -> str:
    from huggingface_hub import ModelCard

    card = ModelCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        recipe=recipe,
        name=_name(recipe),
        facts={key: _cell(value) for key, value in facts.items()},
        arguments=_arguments(recipe),
        recipe_yaml=dump(recipe),
        own_files=sorted({path.rpartition(":")[0] for path in _own_paths(recipe)}),
        **values,
    )
    return f"{card}\n"


def push(folder: Path, repository: str) -> None:
    """Upload a finished model to the hub. The run is complete, so a failure only logs a warning
    with a command to retry."""
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="The model and its card")
    except Exception as error:  # the network, the hub and a missing login make the client raise many kinds of errors
        reason = str(error).strip().splitlines() or [""]
        logger.warning(
            f"the model is complete in {folder}, but could not be pushed to {repository} "
            f"({type(error).__name__}: {reason[0]}). To push it later: hf auth login; hf upload {repository} {folder}"
        )
    else:
        logger.info(f"pushed {folder} to {repository}")


def _metadata(recipe: RunRecipe, tags: list[str], data: Mapping[str, Any], last: Mapping[str, Any]) -> ModelCardData:
    """Return the description of the model for the hub.

    Args:
        recipe: the recipe of the run.
        tags: tags in addition to the tags that every model gets.
        data: the content of data.json.
        last: the line of metrics with the last evaluation.
    """
    from huggingface_hub import EvalResult, ModelCardData

    sources = [str(facts.get("source", "")).partition(":")[0] for facts in data.values() if isinstance(facts, Mapping)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=recipe.task.type_name,
            dataset_name=recipe.task.type_name,
            dataset_split=point.split,
            metric_type="accuracy",
            metric_name=f"solved share, {point.sampling} (95 % interval {point.low:.3f} to {point.high:.3f})",
            metric_value=round(point.accuracy, 6),
        )
        for point in evaluations(last)
    ]
    base = recipe.model if isinstance(recipe, TrainRecipe | PretrainRecipe) else None
    return ModelCardData(
        library_name="transformers",
        tags=["unmask", "masked-diffusion", "diffusion-language-model", *tags],
        # A local folder is not a model on the hub.
        base_model=base if base and _is_hub_id(base) else None,
        datasets=sorted({source for source in sources if _is_hub_id(source)}) or None,
        model_name=_name(recipe) if results else None,
        eval_results=results or None,
    )


def _with_interval(point: EvaluationPoint | None) -> str:
    return f"{point.accuracy:.3f} ({point.low:.3f} to {point.high:.3f})" if point else ""


def _facts(
    recipe: RunRecipe,
    data: Mapping[str, Any],
    lines: Lines,
    rows: Sequence[Row],
    model: nn.Module,
    notes: Sequence[str],
) -> dict[str, str]:
    """Return the entries of the card's table about the run."""
    machine = environment(model)
    steps = [line for line in lines if line["step"]]
    facts = {"command": "`unmask train`" if isinstance(recipe, TrainRecipe) else "`unmask pretrain`"}
    if isinstance(recipe, TrainRecipe):
        method = recipe.method
        facts |= {
            "method": f"`{method.type}`: {method.summary or 'no summary'}; {_links(method.paper) or 'no paper stated'}",
            "rewards": ", ".join(f"`{name}`" for name in _rewards(lines)),
            "a step": f"{recipe.num_prompts} prompts x {recipe.num_generations} completions",
        }
    facts["steps"] = str(len(steps))
    if notes:
        facts["extended"] = " ".join(notes)
    for key, name in (("compute/token_passes", "token passes"), ("compute/reward_calls", "reward calls")):
        if total := sum(line.get(key, 0) for line in steps):
            facts[name] = f"{total:,.0f}"
    for path in _own_paths(recipe):
        if (source_file := source_of(path)) is not None:
            facts[f"code `{path}`"] = f"`{Path(source_file[0]).name}`, sha256 `{source_file[1]}`"
    if origin := machine["origin"]:
        facts["first weights"] = f"{origin['source']} at commit `{origin['revision']}`"
    facts["seed"] = str(recipe.seed)
    for name, source in data.items():
        if isinstance(source, Mapping) and "sha256" in source:
            revision = f" at {source['revision']}" if source.get("revision") else ""
            total, used = source.get("num_rows"), data.get("used", {}).get(name, {}).get("num_rows")
            share = "" if used in (None, total) else f" of which {used} were used,"
            facts[f"{name} rows"] = (
                f"{source.get('source')}{revision}, {total} rows,{share} sha256 `{source['sha256']}`"
            )
    if left_out := data.get("left_out"):
        facts["rows left out"] = f"{left_out['num_rows']} unusable rows"
    if not data:
        facts["rows"] = f"generated by the task `{recipe.task.type}` from the seed"
    if rows:
        facts["held-out rows"] = f"{len(rows)}, sha256 `{data_facts(recipe.task, rows)['sha256']}`"
    facts["hardware"] = (
        f"{machine['accelerator'] or machine['cpu']} ({machine['device']}), weights in {machine['dtype']}"
    )
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return facts


def _arguments(recipe: RunRecipe) -> str:
    """Return the arguments for `unmask sample` and `unmask eval` that use the model as the run
    did."""
    changed = recipe.task.model_dump(mode="json", exclude_defaults=True, exclude={"type"})
    options = [f"--option {key}={value}" for key, value in changed.items() if isinstance(value, str | int | float)]
    if isinstance(recipe, TrainRecipe):
        sampler = recipe.evaluation_sampler(0.0)
        options += [f"--length {sampler.max_completion_length}", f"--steps {sampler.steps}"]
        options += [f"--block-length {sampler.block_length}"] if sampler.block_length else []
        options += [f"--order {sampler.order}"] if sampler.order != "low_confidence" else []
        # Adaptive schedules of `unmask eval` have no limit below the length.
        options += [f"sampler.schedule={sampler.schedule}"] if sampler.is_adaptive else []
    return " ".join(["FOLDER", f"--task {recipe.task.type}", *options])


def _own_paths(recipe: RunRecipe) -> list[str]:
    """Return the paths of the recipe's classes and functions that come from outside unmask."""
    paths = [recipe.task.type, recipe.optim.type]
    if isinstance(recipe, TrainRecipe):
        paths += [recipe.method.type, recipe.sampler.order, *recipe.reward_funcs]
    return [path for path in paths if is_path(path) and not path.startswith("unmask.")]


def _links(paper: str) -> str:
    return re.sub(r"(?:arXiv:)?(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def _rewards(lines: Lines) -> list[str]:
    """Return the names of the reward functions, as the run logged them."""
    return sorted({match[1] for line in lines for key in line if (match := re.fullmatch(r"rewards/(.+)/mean", key))})


def _name(recipe: RunRecipe) -> str:
    """Return the name of the repository on the hub, or else of the run folder."""
    return (recipe.push_to_hub or recipe.output_dir or recipe.task.type).rstrip("/").rpartition("/")[2]


def _is_hub_id(source: str) -> bool:
    return bool(_HUB_ID.fullmatch(source)) and not Path(source).exists()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
