"""Models that a comparison has trained: accuracy against forward passes, and pass@k up to 64 samples.

    unmask compare controls-tiny --jobs 2              # trains them, in runs/compare/controls-tiny
    python -m benchmark.trained_models controls-tiny   # five to ten seconds a model on an idle core
    python -m benchmark.trained_models controls-tiny --table

Each model, and the base of each seed, decodes test examples greedily, by fixed numbers of steps and by
adaptive schedules (docs/adaptive-decoding.md). It also samples 64 completions of each of 64 examples at
temperature .9. Results go to benchmark/results/trained-models.jsonl, one line for each model; a model
that has a line is not measured again. `--folder` names another folder of the comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark.adaptive import named
from unmask.core.config import SamplerConfig
from unmask.core.errors import RunError
from unmask.core.files import read_json_lines
from unmask.core.schedules import Schedule
from unmask.evaluation.on_task import evaluate
from unmask.models import Policy, load_model
from unmask.recipes.load import make_sampler, read_tree, validate
from unmask.report.tables import Table, markdown, with_interval
from unmask.tasks import Task
from unmask.trainer.comparison.jobs import Record, folder_of
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.plan import Plan
from unmask.trainer.comparison.recipe import BASE, CompareRecipe
from unmask.trainer.comparison.resolve import run_recipe
from unmask.trainer.comparison.results import Mean

RESULTS = Path(__file__).parent / "results" / "trained-models.jsonl"
FIXED_STEPS = (1, 2, 4, 8, 16)
SCHEDULES = tuple(
    str(schedule) for schedule in Schedule.parse_all("threshold=0.9,0.98,factor=0.1,0.3,1,entropy_bound=0.1,0.3")
)
NUM_ROWS = 256
"""Number of test examples that every schedule decodes."""
SAMPLED_ROWS, SAMPLES, TEMPERATURE = 64, 64, 0.9
"""Number of test examples of pass@k, of completions of each, and their temperature."""
SHOWN = ("fixed, 2 steps", "fixed, 4 steps", "fixed, 8 steps", "`factor=1`", "`factor=0.3`", "`factor=0.1`")
"""Schedules of the table."""


def models(recipe: CompareRecipe) -> Iterator[tuple[Record, Path]]:
    """Yield the record of every finished run of a comparison and of every base, with the folder of its
    model."""
    plan, ledger = Plan(recipe), Ledger(recipe.folder)
    for record in ledger.records:
        if record["task"] not in recipe.tasks or record["method"] not in (*recipe.methods, BASE):
            # The folder was last run with a selection, so its recipe does not know this record's settings.
            continue
        if record["stage"] == "final" and "accuracy" in record:
            yield record, folder_of(recipe.folder, record) / "final"
        elif record["stage"] == "base" and (base := plan.base_of(record["task"], record["seed"])) is not None:
            yield record, ledger.folder_of(base) / "final"


def frontier(policy: Policy, task: Task, own: SamplerConfig, seed: int) -> list[dict[str, Any]]:
    """Decode greedily with every schedule, and return accuracy and forward passes of each."""
    length = own.max_completion_length
    blocks = length // (own.block_length or length)
    settings = [("fixed", steps) for steps in FIXED_STEPS if steps <= length and steps % blocks == 0]
    settings += [(schedule, length) for schedule in SCHEDULES]
    points = []
    for schedule, steps in settings:
        changes = {"schedule": schedule, "num_steps": steps, "temperature": 0.0}
        found = evaluate(policy, task, NUM_ROWS, sampler=make_sampler(**own.model_dump() | changes), seed=seed)
        points.append(
            {"schedule": named(schedule, steps), "accuracy": found.accuracy, "forwards": round(found.forwards, 3)}
        )
    return points


def pass_at(policy: Policy, task: Task, own: SamplerConfig, seed: int) -> dict[str, float]:
    """Return pass@k by k."""
    sampler = own.model_copy(update={"temperature": TEMPERATURE})
    found = evaluate(policy, task, SAMPLED_ROWS, sampler=sampler, samples=SAMPLES, seed=seed)
    return {str(k): round(estimate.value, 6) for k, estimate in found.pass_at.items()}


def measured(comparison: str, recipe: CompareRecipe, record: Record, model: Path) -> dict[str, Any]:
    """Return the line of a model."""
    run = run_recipe(recipe, record["task"], record["method"], record.get("settings", {}), record["seed"])
    policy = load_model(str(model))
    labels = {name: record[name] for name in ("task", "method", "seed", "variant")}
    return {
        "comparison": comparison,
        **labels,
        "frontier": frontier(policy, run.task, run.sampler, record["seed"]),
        "pass_at": pass_at(policy, run.task, run.sampler, record["seed"]),
    }


def read(comparison: str) -> list[dict[str, Any]]:
    """Return the lines of a comparison."""
    lines = read_json_lines(RESULTS) if RESULTS.exists() else []
    return [line for line in lines if line["comparison"] == comparison]


def measure(comparison: str, folder: Path, tasks: Sequence[str], methods: Sequence[str]) -> None:
    """Measure the models that have no line yet. An empty list selects everything.

    Raises:
        RunError: if a model is not in the folder, for example because only the results were copied.
    """
    recipe = validate(CompareRecipe, read_tree(folder / "recipe.yaml")).model_copy(update={"output_dir": str(folder)})
    done = {(line["task"], line["method"], line["seed"], line["variant"]) for line in read(comparison)}
    for record, model in models(recipe):
        task, method = record["task"], record["method"]
        is_selected = (not tasks or task in tasks) and (not methods or method in (*methods, BASE))
        if is_selected and (task, method, record["seed"], record["variant"]) not in done:
            if not model.exists():
                raise RunError(
                    f"{model} does not exist: {folder} has the results of {method} on {task}, but not its model. "
                    "Run the comparison there."
                )
            line = measured(comparison, recipe, record, model)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{task}, {method}, seed {record['seed']}: pass@{SAMPLES} {line['pass_at'][str(SAMPLES)]:.3f}",
                flush=True,
            )


def grouped(comparison: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the lines by task and method, the base first, sorted by seed. If a method has run again with
    other settings, only the newest line of each seed counts."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    newest = {(line["task"], line["method"], line["seed"]): line for line in read(comparison)}
    for line in sorted(newest.values(), key=lambda line: (line["method"] != BASE, line["seed"])):
        found.setdefault(line["task"], {}).setdefault(line["method"], []).append(line)
    return found


def frontier_table(comparison: str) -> str:
    """Return a table for each task: accuracy and forward passes of those schedules in `SHOWN` that its
    completions allow."""
    tables = []
    for task, methods in grouped(comparison).items():
        measured_here = {point["schedule"] for lines in methods.values() for point in lines[0]["frontier"]}
        shown = [name for name in SHOWN if name in measured_here]
        rows = []
        for method, lines in methods.items():
            points = [{point["schedule"]: point for point in line["frontier"]} for line in lines]
            cells = []
            for name in shown:
                forwards = statistics.fmean(of_seed[name]["forwards"] for of_seed in points)
                cost = "" if name.startswith("fixed") else f" ({forwards:.1f})"
                cells.append(_share([of_seed[name]["accuracy"] for of_seed in points]) + cost)
            rows.append([method, str(len(lines)), *cells])
        tables.append(markdown(Table("", [f"{task}, greedy", "seeds", *shown], rows)))
    return "\n\n".join(tables)


def diversity_table(comparison: str) -> str:
    """Return a table for each task: pass@k by k, and the difference from the base at the largest k,
    paired by seed."""
    tables = []
    for task, methods in grouped(comparison).items():
        base = {line["seed"]: line["pass_at"] for line in methods.get(BASE, [])}
        rows = []
        for method, lines in methods.items():
            ks = list(lines[0]["pass_at"])
            cells = [_share([line["pass_at"][k] for line in lines]) for k in ks]
            rise = [line["pass_at"][ks[-1]] - base[line["seed"]][ks[-1]] for line in lines if line["seed"] in base]
            rows.append(
                [
                    method,
                    str(len(lines)),
                    *cells,
                    "" if method == BASE or not rise else with_interval(Mean.of(rise, -1.0, 1.0), signed=True),
                ]
            )
        columns = [f"{task}, pass@k", "seeds", *(f"k = {k}" for k in ks), f"k = {ks[-1]} minus base"]
        tables.append(markdown(Table("", columns, rows)))
    return "\n\n".join(tables)


def _share(values: Sequence[float]) -> str:
    return with_interval(Mean.of(values, 0.0, 1.0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the models, or print the tables of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="name of the comparison in the results, such as controls-tiny")
    parser.add_argument("--folder", type=Path, help="folder of the comparison; default runs/compare/COMPARISON")
    parser.add_argument("--tasks", nargs="+", default=(), help="tasks to measure; default all")
    parser.add_argument("--methods", nargs="+", default=(), help="methods to measure besides the base; default all")
    parser.add_argument("--table", action="store_true", help="print the tables of the results")
    options = parser.parse_args(arguments)
    if options.table:
        print(frontier_table(options.comparison), diversity_table(options.comparison), sep="\n\n")
    else:
        folder = options.folder or Path("runs/compare") / options.comparison
        measure(options.comparison, folder, options.tasks, options.methods)


if __name__ == "__main__":
    main()
