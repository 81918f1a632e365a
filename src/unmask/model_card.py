"""The card of a finished model, `final/README.md`: what it is, from what, how it was made, how good it is, and whom to cite."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.eval_results import data_facts
from unmask.methods.papers import PAPERS, bibtex
from unmask.recipe import PretrainRecipe, RunRecipe, TrainRecipe, dump
from unmask.runs.environment import environment
from unmask.runs.metrics import evaluations, temperature_name

if TYPE_CHECKING:
    from torch import nn

    from unmask.records import Row

logger = logging.getLogger("unmask")

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_MDLM = "2502.09992"

Lines = Sequence[Mapping[str, Any]]


def training_card(
    recipe: TrainRecipe,
    lines: Lines,
    data: Mapping[str, Any],
    rows: Sequence[Row],
    model: nn.Module,
    notes: Sequence[str] = (),
) -> str:
    """Write the card of a model from `unmask train`: YAML that the hub reads, then Markdown.

    Args:
        recipe: of the run.
        lines: of its metrics.jsonl.
        data: of its data.json; empty where the task makes its rows.
        rows: the held-out rows of its evaluations.
        model: the finished one.
        notes: in what the run differs from one that its recipe alone describes; see `unmask.runs.extension`.
    """
    method = recipe.method
    evaluated = [line for line in lines if _evaluations(line)]
    sections = [
        _front(recipe, [method.type, "reinforcement-learning"], data, evaluated[-1] if evaluated else {}),
        f"# {_name(recipe)}",
        f"A masked diffusion language model, trained from `{recipe.model}` with `{method.type}` on the task "
        f"`{recipe.task.type}` by [unmask](#how-it-was-made). {_summary(method)}",
        "## Results\n\n" + (_results(recipe, evaluated, len(rows)) if evaluated else "The run measured no accuracy."),
        f"## How it was made\n\n{_facts(recipe, data, lines, rows, model, notes)}",
        _use(recipe),
        _limits(recipe),
        _citation(method.paper),
        _whole_recipe(recipe),
    ]
    return "\n\n".join(sections) + "\n"


def pretraining_card(
    recipe: PretrainRecipe, lines: Lines, data: Mapping[str, Any], model: nn.Module, notes: Sequence[str] = ()
) -> str:
    """Write the card of a model from `unmask pretrain`; see `training_card`."""
    start = f"`{recipe.model}`" if recipe.model else "random weights"
    sloppy = f", {recipe.sloppy_share:.0%} of them plausible but mostly wrong," if recipe.sloppy_share else ""
    sections = [
        _front(recipe, ["pretraining"], data, {}),
        f"# {_name(recipe)}",
        f"A masked diffusion language model, trained from {start} on demonstrations of the task `{recipe.task.type}`{sloppy} "
        "with the negative ELBO. A base for reinforcement learning: its accuracy was not measured, and is not meant to be high.",
        f"## How it was made\n\n{_facts(recipe, data, lines, (), model, notes)}",
        _use(recipe),
        _limits(recipe),
        f"## Citation\n\nThe loss is that of MDLM ([arXiv:2406.07524](https://arxiv.org/abs/2406.07524)) and LLaDA "
        f"([arXiv:{_MDLM}](https://arxiv.org/abs/{_MDLM})).",
        _whole_recipe(recipe),
    ]
    return "\n\n".join(sections) + "\n"


def push(folder: Path, repository: str) -> None:
    """Upload a finished model to the hub. A failure is a warning that says how to do it later: the run has its result."""
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="The model and its card")
    except Exception as error:  # whatever the network, the hub or a missing login can make the client raise
        reason = str(error).strip().splitlines() or [""]
        logger.warning(
            f"the model is complete in {folder}, but could not be pushed to {repository} "
            f"({type(error).__name__}: {reason[0]}). To push it later: hf auth login; hf upload {repository} {folder}"
        )
    else:
        logger.info(f"pushed {folder} to {repository}")


def _front(recipe: RunRecipe, tags: list[str], data: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """The metadata between dashes."""
    from huggingface_hub import EvalResult, ModelCardData

    sources = [str(facts.get("source", "")).partition(":")[0] for facts in data.values() if isinstance(facts, Mapping)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=recipe.task.type,
            dataset_name=recipe.task.type,
            dataset_split=name.partition("@")[0],
            metric_type="accuracy",
            metric_name=f"solved share, {_sampling(name)} (95 % interval {low:.3f} to {high:.3f})",
            metric_value=round(accuracy, 6),
        )
        for name, accuracy, low, high, _ in _evaluations(last)
    ]
    base = recipe.model if isinstance(recipe, TrainRecipe | PretrainRecipe) else None
    card = ModelCardData(
        library_name="transformers",
        tags=["unmask", "masked-diffusion", "diffusion-language-model", *tags],
        # A folder of this machine is no model of the hub.
        base_model=base if base and _is_hub_id(base) else None,
        datasets=sorted({source for source in sources if _is_hub_id(source)}) or None,
        model_name=_name(recipe) if results else None,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def _results(recipe: TrainRecipe, evaluated: Lines, num_rows: int) -> str:
    """Accuracies of the first and the last evaluation, with their intervals; of the last alone where there is only one."""
    first, last = evaluated[0], evaluated[-1]
    before = {} if first is last else {name: rest for name, *rest in _evaluations(first)}
    columns = ["rows", "sampling", *(["solved before (95 %)"] if before else []), "solved after (95 %)", "mean reward"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, accuracy, low, high, reward in _evaluations(last):
        was = [f"{_with_interval(*before[name][:3])}" if name in before else ""] if before else []
        cells = [name.partition("@")[0], _sampling(name), *was, _with_interval(accuracy, low, high), f"{reward:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    sampler = recipe.sampler
    when = (
        f"Before is step {first['step']}, after is step {last['step']}."
        if before
        else f"Measured once, after step {last['step']}."
    )
    return "\n".join(lines) + (
        f"\n\nOn {num_rows} rows that training never saw. {when} One completion a row: "
        f"{sampler.max_completion_length} positions in {sampler.steps} steps, blocks of {sampler.block}, order "
        f"`{sampler.order}`. Intervals are Wilson's: they are about the choice of rows, and say nothing of other seeds of "
        "training, of which this is one."
    )


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _facts(
    recipe: RunRecipe,
    data: Mapping[str, Any],
    lines: Lines,
    rows: Sequence[Row],
    model: nn.Module,
    notes: Sequence[str],
) -> str:
    found = environment(model)
    steps = [line for line in lines if line["step"]]
    facts = {"command": "`unmask train`" if isinstance(recipe, TrainRecipe) else "`unmask pretrain`"}
    if isinstance(recipe, TrainRecipe):
        method = recipe.method
        facts |= {
            "method": f"`{method.type}`: {method.summary}; {_links(method.paper)}",
            "rewards": ", ".join(f"`{name}`" for name in _rewards(lines)),
            "a step": f"{recipe.num_prompts} prompts x {recipe.num_generations} completions",
        }
    facts["steps"] = str(len(steps))
    if notes:
        facts["extended"] = " ".join(notes)
    for key, name in (("compute/token_passes", "token passes"), ("compute/reward_calls", "reward calls")):
        if total := sum(line.get(key, 0) for line in steps):
            facts[name] = f"{total:,.0f}"
    facts["seed"] = str(recipe.seed)
    for name, source in data.items():
        if isinstance(source, Mapping) and "sha256" in source:
            revision = f" at {source['revision']}" if source.get("revision") else ""
            facts[f"{name} rows"] = (
                f"{source.get('source')}{revision}, {source.get('num_rows')} rows, sha256 `{source['sha256']}`"
            )
    if left_out := data.get("left_out"):
        facts["rows left out"] = f"{left_out['num_rows']} that could not be used"
    if not data:
        facts["rows"] = f"generated by the task `{recipe.task.type}` from the seed"
    if rows:
        facts["held-out rows"] = f"{len(rows)}, sha256 `{data_facts(recipe.task, rows)['sha256']}`"
    facts["hardware"] = f"{found['accelerator'] or found['cpu']} ({found['device']}), weights in {found['dtype']}"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())


def _use(recipe: RunRecipe) -> str:
    changed = recipe.task.model_dump(mode="json", exclude_defaults=True, exclude={"type"})
    options = "".join(
        f" --option {key}={value}" for key, value in changed.items() if isinstance(value, str | int | float)
    )
    sampling = ""
    if isinstance(recipe, TrainRecipe):
        sampler = recipe.sampler
        sampling = f" --length {sampler.max_completion_length} --steps {sampler.steps}"
        sampling += f" --block-length {sampler.block_length}" if sampler.block_length else ""
        sampling += f" --order {sampler.order}" if sampler.order != "low_confidence" else ""
    arguments = f"FOLDER --task {recipe.task.type}{options}{sampling}"
    return (
        "## How to use it\n\nIt denoises masked text in any order; transformers loads the weights, and `generate` of an "
        "autoregressive model is not for it.\n\n"
        f"```bash\nunmask sample {arguments}\nunmask eval {arguments}\n```\n\n"
        "```python\nfrom unmask.models import load_model\n\ndenoiser, tokenizer = load_model(FOLDER)\n```"
    )


def _limits(recipe: RunRecipe) -> str:
    return (
        "## Intended use and limits\n\nFor research on the task that it was trained on. "
        f"It was optimised for the reward of `{recipe.task.type}` and for nothing else: other abilities of its base may have "
        "suffered, and what the reward does not see may have been exploited. No measurement of safety, bias or factuality was "
        "made. It inherits the licence and the limits of its base model and of its data; look there before you use it."
    )


def _citation(paper: str) -> str:
    numbers = [number for number in re.findall(r"\d{4}\.\d{5}", paper) if number in PAPERS]
    entries = "\n\n".join(bibtex(number) for number in numbers)
    after = (
        "The method is unmask's own combination; the work that it builds on is:\n\n" if paper.startswith("ours") else ""
    )
    if paper.startswith("ours"):
        entries += "\n\n" + bibtex("2603.12554")
    return f"## Citation\n\n{after}```bibtex\n{entries}\n```" if numbers else f"## Citation\n\n{paper}"


def _whole_recipe(recipe: RunRecipe) -> str:
    return f"## Recipe\n\n```yaml\n{dump(recipe)}```"


def _summary(method: Any) -> str:
    return f"The method in a line: {method.summary} ({_links(method.paper)})."


def _links(paper: str) -> str:
    return re.sub(r"(?:arXiv:)?(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def _evaluations(line: Mapping[str, Any]) -> list[tuple[str, float, float, float, float]]:
    """Return the name (`test@0`), accuracy, low, high and reward of each evaluation in a line of metrics."""
    return [(f"{p.split}@{p.temperature}", p.accuracy, p.low, p.high, p.reward) for p in evaluations(line)]


def _rewards(lines: Lines) -> list[str]:
    """Names of the reward functions, as the run logged them."""
    return sorted({found[1] for line in lines for key in line if (found := re.fullmatch(r"rewards/(.+)/mean", key))})


def _sampling(name: str) -> str:
    return temperature_name(name.partition("@")[2])


def _name(recipe: RunRecipe) -> str:
    """Of the repository on the hub, or else of the run folder."""
    return (recipe.push_to_hub or recipe.output_dir or recipe.task.type).rstrip("/").rpartition("/")[2]


def _is_hub_id(source: str) -> bool:
    return bool(_HUB_ID.fullmatch(source)) and not Path(source).exists()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
