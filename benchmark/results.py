"""Tables and figures of docs/results.md, from the committed results.

    python -m benchmark.results            # write them; a minute
    python -m benchmark.results --check    # only check the tables of docs/results.md

A table in docs/results.md stands between the comments

    <!-- table: NAME; KIND; ARGUMENT; ... -->
    <!-- end of table -->

where NAME is a folder of benchmark/results with the cells.jsonl of a comparison, and KIND is one of

    methods        a table for each task, with the methods as lines
    differences    the differences of all other methods from those that the arguments name
    decoding       a table for each task: greedy accuracy by number of denoising steps
    diversity      a table for each task: pass@k of each method by k
    overview       one line for each method; the arguments are a number of denoising steps and the seeds
    frontier       a table for each task: accuracy and forward passes, from benchmark.trained_models
    samples        a table for each task: pass@k up to 64 samples, from benchmark.trained_models

`<!-- table: lift -->` is the table of benchmark.lift, and `<!-- table: long answers -->` that of
benchmark.long_answers. Figures are those that docs/results.md shows as
images/NAME-compute.png, images/NAME-reward_calls.png and images/NAME-decoding.png; their PDF and SVG
files are in build/results.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark import lift, long_answers, trained_models
from unmask.recipes.load import read_tree, validate
from unmask.report.comparison_files import FIGURES, report
from unmask.report.difference_tables import explanation, table_of_differences
from unmask.report.tables import Table, diversity, markdown, millions, table_of_methods, with_interval
from unmask.runs.atomic import write_atomically
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.results import Results
from unmask.trainer.comparison.statistics import Statistics

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, BUILD = ROOT / "benchmark" / "results", ROOT / "docs" / "results.md", ROOT / "build" / "results"
TABLES = ("table.md", "table.csv", "diversity.csv", "tuning.md", *(f"{name}.csv" for name in FIGURES))
"""Files of a comparison that are committed beside its cells.jsonl."""
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def recipe_of(folder: Path) -> CompareRecipe:
    """Return the settings of the comparison in a folder of results."""
    return validate(CompareRecipe, read_tree(folder / "recipe.yaml"))


def results_of(name: str, **changes: Any) -> Results:
    """Return the results of a comparison, with changes to its settings such as other baselines."""
    ledger = Ledger(RESULTS / name)
    recipe = validate(CompareRecipe, recipe_of(RESULTS / name).model_dump(mode="json") | changes)
    return Results(recipe, ledger.records, ledger.edited)


def methods(name: str) -> str:
    """Return a table for each task, with the methods as lines."""
    results = results_of(name)
    parts = []
    for task in shown_tasks(results):
        budget = millions(results.recipe.tasks[task].budget)
        parts += [f"**{task}**, {budget} token passes", markdown(table_of_methods(results, task))]
    return "\n\n".join(parts)


def differences(name: str, *baselines: str) -> str:
    """Return one table of the differences of all other methods from the baselines."""
    results = results_of(name, baselines=list(baselines))
    statistics = Statistics(results)
    tables = {task: table_of_differences(results, statistics, task) for task in shown_tasks(results)}
    rows = [[row[0], task, *row[1:]] for task, table in tables.items() if table for row in table.rows]
    columns = ["difference, paired by seed", "task", "seeds", *(temperature_name(t) for t in results.temperatures)]
    return f"{explanation(statistics)}\n\n{markdown(Table('', columns, rows))}"


def decoding(name: str) -> str:
    """Return a table for each task: greedy accuracy of each method by number of denoising steps."""
    results = results_of(name)
    parts = []
    for task in shown_tasks(results):
        points = {method: dict(results.decoding(task, method)) for method in results.methods(task)}
        steps = sorted({n for of_method in points.values() for n in of_method}, reverse=True)
        rows = [
            [method, *(with_interval(of_method[n]) if n in of_method else "" for n in steps)]
            for method, of_method in points.items()
        ]
        parts.append(markdown(Table("", [f"{task}, greedy", *(f"T = {n}" for n in steps)], rows)))
    return "\n\n".join(parts)


def pass_at(name: str) -> str:
    """Return a table of pass@k for each task and temperature at which it was measured."""
    results = results_of(name)
    tables = [(task, diversity(results, task, t)) for task in shown_tasks(results) for t in results.temperatures]
    return "\n\n".join(f"**{task}**\n\n{markdown(table)}" for task, table in tables if table is not None)


def overview(name: str, steps: str, *seeds: str) -> str:
    """Return one table with a line for each method, and for each task its accuracies, that with a
    number of denoising steps, and its reward calls, over some of the seeds."""
    results = results_of(name, seeds=[int(seed) for seed in seeds])
    tasks = shown_tasks(results)
    names = [*(temperature_name(t) for t in results.temperatures), f"greedy, T = {steps}", "reward calls"]
    rows = []
    for method in dict.fromkeys(m for task in tasks for m in results.methods(task)):
        cells = []
        for task in tasks:
            if method in results.methods(task):
                values = [results.mean(task, method, "accuracy", t) for t in results.temperatures]
                values.append(results.mean(task, method, "decoding_accuracy", steps))
                cells += [*map(with_interval, values), f"{results.spent(task, method)['reward_calls']:,}"]
            else:
                cells += [""] * len(names)
        rows.append([method, *cells])
    columns = [f"{task}, {names[0]}" if i == 0 else names[i] for task in tasks for i in range(len(names))]
    return markdown(Table("", ["method", *columns], rows))


KINDS: dict[str, Callable[..., str]] = {
    "methods": methods,
    "differences": differences,
    "decoding": decoding,
    "diversity": pass_at,
    "overview": overview,
    "frontier": trained_models.frontier_table,
    "samples": trained_models.diversity_table,
}


def shown_tasks(results: Results) -> list[str]:
    """Return the tasks that have results."""
    return [task for task in results.recipe.tasks if results.methods(task)]


def table(directive: str) -> str:
    """Return the Markdown of the table that a comment asks for."""
    name, *rest = [part.strip() for part in directive.split(";")]
    if name == "lift":
        return lift.table()
    if name == "long answers":
        return long_answers.table(long_answers.read())
    kind, *arguments = rest
    return KINDS[kind](name, *arguments)


def page(text: str) -> str:
    """Return a page with all of its tables made again."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{table(block[2])}\n\n{block[3]}", text)


def write_comparison(name: str, text: str) -> list[Path]:
    """Make the files of a comparison again, and the figures that a page shows; return what was
    written."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(RESULTS / name, folder)
    report(recipe_of(folder).model_copy(update={"output_dir": str(folder)}))
    copies = {folder / file: RESULTS / name / file for file in TABLES}
    images = {figure: f"images/{name}-{figure}.png" for figure in FIGURES}
    copies |= {folder / f"{figure}.png": PAGE.parent / image for figure, image in images.items() if image in text}
    written = []
    for source, target in copies.items():
        if source.exists():
            shutil.copyfile(source, target)
            written.append(target)
    return written


def comparisons() -> list[str]:
    """Return the names of the folders with a comparison."""
    return sorted(path.parent.name for path in RESULTS.glob("*/cells.jsonl"))


def main() -> None:
    """Write or check the tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only check the tables of docs/results.md")
    arguments = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    now = page(before)
    if arguments.check:
        if now != before:
            sys.exit(f"{PAGE.relative_to(ROOT)} has tables of other results. Run python -m benchmark.results.")
        return
    write_atomically(PAGE, now)
    print(PAGE.relative_to(ROOT))
    for name in comparisons():
        for path in write_comparison(name, now):
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
