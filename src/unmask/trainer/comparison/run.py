"""Run a comparison stage by stage with several jobs at a time, and record each result when its job
ends.

An interrupted comparison continues when the command is repeated.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from unmask.core.errors import ConfigError, RunError, UnmaskError
from unmask.core.settings import flat
from unmask.recipes.load import dump, read_tree, validate
from unmask.runs.atomic import disk_faults_explained, take_lock, write_atomically
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.jobs import Cell, ComparisonJob, Key, Record, Stage, key_of
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.plan import Plan, check_reward_functions
from unmask.trainer.comparison.recipe import BASE, CompareRecipe, named
from unmask.trainer.comparison.results import choose, tried
from unmask.trainer.comparison.scheduled import ScheduledWorkers
from unmask.trainer.comparison.workers import InThisProcess, Processes, Workers, result_of
from unmask.trainer.distributed.stopping import StopSignals

JobT = TypeVar("JobT", bound=ComparisonJob)

POLL = 0.2
"""Seconds between two checks for a signal."""
MOST_SCHEDULED = 100
"""Default for the number of jobs that wait or run at a scheduler."""
MOST_NAMED = 8
"""Maximum number of changed files that a message names."""


class CompareStoppedError(RunError):
    """Error that is raised after a signal has stopped the comparison. Unfinished runs are saved."""

    def __init__(self, folder: Path, signal_number: int) -> None:
        super().__init__(f"the comparison was stopped; its results are in {folder}. To continue, repeat the command.")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def compare(
    recipe: CompareRecipe,
    *,
    jobs: int | None = None,
    rerun_changed: bool = False,
    keep_changed: bool = False,
    retry_failed: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Run all jobs that have no record yet, and return the folder of the comparison.

    Args:
        recipe: settings of the comparison.
        jobs: number of jobs at a time. Without a scheduler, each has a process with one thread; the
            default 1 runs all jobs in this process, with one thread too. With a scheduler, it is the
            number of jobs that wait or run there; default `MOST_SCHEDULED`.
        rerun_changed: True to repeat jobs whose settings or code have changed; else such jobs are
            an error.
        keep_changed: True to keep results whose code has changed since; the tables mark these
            results.
        retry_failed: True to repeat jobs that failed.
        tell: callback for a line of text about each job that ends.

    Raises:
        CompareStoppedError: after SIGINT or SIGTERM; unfinished runs are saved.
        ConfigError: if a reward function cannot be loaded, or a method cannot train on it.
        RunError: if the folder belongs to another comparison, is in use or damaged, or has results
            of code that has changed.
    """
    if rerun_changed and keep_changed:
        raise ConfigError("--rerun-changed and --keep-changed exclude each other. Use one of them.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a comparison starts its own processes. Run it without accelerate launch, and set --jobs.")
    check_reward_functions(recipe)
    folder = recipe.folder
    with disk_faults_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with take_lock(folder / "compare.lock"):
        if not rerun_changed:
            _refuse_changed(folder, recipe)
        ledger = Ledger(folder)
        _settle_edited(ledger, recipe, rerun_changed, keep_changed, tell)
        write_atomically(folder / "recipe.yaml", dump(recipe))
        with StopSignals() as signals, _make_workers(recipe, jobs) as workers:
            _Comparison(recipe, ledger, workers, signals, rerun_changed, retry_failed, tell).run()
    return folder


def _make_workers(recipe: CompareRecipe, jobs: int | None) -> Workers:
    if recipe.scheduler is not None:
        return ScheduledWorkers(recipe.folder, recipe.scheduler, jobs or MOST_SCHEDULED)
    return Processes(jobs) if jobs is not None and jobs > 1 else InThisProcess()


@dataclass
class _Comparison:
    """The stages of a comparison, and the state that they share."""

    recipe: CompareRecipe
    ledger: Ledger
    workers: Workers
    signals: StopSignals
    rerun_changed: bool
    retry_failed: bool
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.plan, self.clock = Plan(self.recipe), _Clock()

    def run(self) -> None:
        """Pretrain and evaluate the base models, then run the trials for tuning, and then the runs
        to compare."""
        plan, recipe = self.plan, self.recipe
        self._settle(plan.pretrainings())
        self._perform(self._undone(plan.pretrainings()), _as_it_is)
        self._settle(plan.bases())
        self._perform(self._undone(plan.bases()), self._on_its_base)
        chosen = {(task, method): recipe.points(method)[0] for task, method in recipe.pairs()}
        if trials := plan.trials():
            # For the remaining time only the budgets of the later runs matter, not the settings to
            # be chosen.
            self._train(trials, later=plan.finals(chosen))
            best = choose(recipe, tried(recipe, self.ledger.records))
            for task, method in chosen.keys() - best.keys():
                self.tell(f"{method} on {task}: every setting failed with some tuning seed, so this pair is left out.")
            chosen = {pair: trial.settings for pair, trial in best.items()}
        self._train(plan.finals(chosen))

    def _train(self, cells: Sequence[Cell], later: Sequence[Cell] = ()) -> None:
        """Run the cells. The estimate of the remaining time includes those that come later."""
        self._settle(cells)
        undone = self._undone(cells)
        self.clock.start(sum(cell.budget for cell in [*undone, *later]))
        self._perform(undone, self._on_its_base)

    def _settle(self, jobs: Sequence[ComparisonJob]) -> None:
        """Make sure that the ledger has no results of other settings under the jobs' labels."""
        if foreign := self.ledger.foreign(jobs):
            count = f"{self.ledger.path} has {len(foreign)} results of stage {jobs[0].stage} from other settings"
            if not self.rerun_changed:
                raise RunError(
                    f"{count}: a recipe that a task names has changed, or the tuning makes another choice. Set output_dir to "
                    "another folder, or add --rerun-changed to move these results aside and run the jobs again."
                )
            self.tell(f"{count}, which move to superseded.jsonl.")
        self.ledger.settle(jobs)

    def _undone(self, jobs: Sequence[JobT]) -> list[JobT]:
        """Return the jobs without a record, and with `retry_failed` those that failed."""

        def is_done(job: ComparisonJob) -> bool:
            record = self.ledger.of(job)
            return record is not None and not (self.retry_failed and "failed" in record)

        return [job for job in jobs if not is_done(job)]

    def _on_its_base(self, cell: Cell) -> Cell:
        """Return the cell with its initial model.

        Raises:
            RunError: if there is no such model, because its pretraining failed.
        """
        base = self.plan.base_of(cell.task, cell.seed)
        if base is None:
            return cell
        if "failed" in (record := self.ledger.of(base) or {}):
            raise RunError(f"the pretraining of its base failed: {record['failed']}")
        model = str(self.ledger.folder_of(base) / "final")
        return replace(cell, recipe=cell.recipe.model_copy(update={"model": model}))

    def _perform(self, jobs: Sequence[JobT], prepare: Callable[[JobT], ComparisonJob]) -> None:
        """Run the jobs, as many at a time as there are workers, and record each when it ends."""
        waiting, running = iter(jobs), dict[Future[Record], ComparisonJob]()
        ended, signal_number = 0, self.signals.received

        def finish(job: ComparisonJob, facts: Record) -> None:
            nonlocal ended
            ended += 1
            self.ledger.add(job.record(**facts), _unedited(job))
            job.clean_up()
            self.workers.recorded(job)
            left = self.clock.tick(job.budget) if isinstance(job, Cell) else ""
            self.tell(f"{job.stage} {ended}/{len(jobs)}  {_summary(job, facts)}{left}")

        while True:
            if signal_number := signal_number or self.signals.received:
                self.workers.stop()
            while not signal_number and len(running) < self.workers.most and (job := next(waiting, None)) is not None:
                job = replace(job, code=job.code_now)
                try:
                    ready = prepare(job)
                except UnmaskError as error:
                    finish(job, {"failed": str(error)})
                    continue
                running[self.workers.start(ready)] = ready
            if not running:
                break
            for future in wait(running, timeout=POLL, return_when=FIRST_COMPLETED).done:
                done, facts = running.pop(future), result_of(future)
                if "stopped" in facts:
                    signal_number = facts["stopped"]
                else:
                    finish(done, facts)
        if signal_number:
            raise CompareStoppedError(self.recipe.folder, signal_number)


class _Clock:
    """Estimate of the remaining time, from the token passes that are spent and left."""

    def __init__(self) -> None:
        self._left = self._spent = 0
        self._started = time.perf_counter()

    def start(self, left: int) -> None:
        """Set the number of token passes that are left."""
        self._left = left
        if not self._spent:
            self._started = time.perf_counter()

    def tick(self, budget: int) -> str:
        """Count a finished run, and return a text that states the remaining time."""
        self._left -= budget
        self._spent += budget
        if not self._spent:
            return ""
        seconds = (time.perf_counter() - self._started) * self._left / self._spent
        return f"  {seconds / 60:.0f} min left" if seconds >= 90 else f"  {seconds:.0f} s left"


def _as_it_is(job: ComparisonJob) -> ComparisonJob:
    return job


def _unedited(job: ComparisonJob) -> tuple[Mapping[str, str], ...]:
    """Return the hashes of the files that a finished job depends on, after a check that they have
    not changed.

    Raises:
        RunError: if a file has changed during the job, because it is then unknown which code made
            the result.
    """
    if job.code_now != job.code:
        raise RunError(
            f"code or files of {job.method} on {job.task} have changed during the run, so its result is discarded. All other "
            "results are kept. Repeat the command when your edits are done."
        )
    return job.files


def _settle_edited(ledger: Ledger, recipe: CompareRecipe, rerun: bool, keep: bool, tell: Callable[[str], None]) -> None:
    """Make sure that results from an older version of the code are not used as results of the
    current code.

    Raises:
        RunError: if there are results from an older version and neither `rerun` nor `keep` is set.
    """
    stale = _edited(ledger, recipe)
    records = [record for record in ledger.records if key_of(record) in stale]
    # Failures have no result, so they are repeated without a message.
    results = [record for record in records if "failed" not in record]
    if others := [record for record in records if record not in results]:
        ledger.set_aside(others)
    if not results or keep:
        return
    if rerun:
        ledger.set_aside(results)
        tell(f"{len(results)} results of code that has changed move to superseded.jsonl, and their jobs run again.")
        return
    counts = Counter(f"{record['stage']}  {record['task']}  {record['method']}" for record in results)
    files = sorted({name for names in stale.values() for name in names})
    lines = [f"  {label}: {number} result{'s' if number > 1 else ''}" for label, number in counts.items()]
    raise RunError(
        f"{ledger.path} has results of code that has changed since:\n"
        + "\n".join(lines)
        + f"\nChanged: {', '.join(files[:MOST_NAMED])}"
        + (f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else "")
        + ".\nAdd --rerun-changed to run these jobs again (the old results move to superseded.jsonl), or --keep-changed to keep "
        "the results if the changes do not matter; the tables mark them. Or undo the changes."
    )


def _edited(ledger: Ledger, recipe: CompareRecipe) -> dict[Key, list[str]]:
    """Return the files that have changed since each record was made, for the records of the
    recipe's jobs. Records of stages that only earlier versions had are left out."""
    pairs = {*recipe.pairs(), *((task, BASE) for task in recipe.tasks)}
    pairs |= {(job.task, job.method) for job in Plan(recipe).pretrainings()}
    seeds = {*recipe.seeds, *(recipe.tuning.seeds if recipe.tuning else ())}
    return {
        key_of(record): files
        for record in ledger.records
        if record["stage"] in get_args(Stage)
        and (record["task"], record["method"]) in pairs
        and record["seed"] in seeds
        if (files := ledger.edited(record))
    }


def _summary(job: ComparisonJob, facts: Record) -> str:
    """Return a line about a job and its result."""
    labels = [job.task, *([job.method] if job.method != BASE else []), f"seed {job.seed}"]
    if isinstance(job, Cell) and job.settings:
        labels.append(named(job.settings))
    if "failed" in facts:
        result = f"FAILED: {facts['failed']}"
    elif "accuracy" in facts:
        result = ", ".join(f"{temperature_name(t)} {value:.3f}" for t, value in facts["accuracy"].items())
    else:
        result = f"loss {facts['loss']:.3f}"
    length = f" ({facts['steps']} steps, {facts['seconds']:.0f} s)" if facts.get("steps") else ""
    return f"{'  '.join(labels)}: {result}{length}"


def _refuse_changed(folder: Path, recipe: CompareRecipe) -> None:
    """Raise RunError if the folder's recipe and this one differ in more than the selection of
    tasks, methods and seeds."""
    recorded = folder / "recipe.yaml"
    if not recorded.exists():
        return
    trees: list[dict[str, Any]] = [
        validate(CompareRecipe, read_tree(recorded)).model_dump(mode="json"),
        recipe.model_dump(mode="json"),
    ]
    # A method's changes for a task that only one recipe has do not affect the cells of the other.
    both = trees[0]["tasks"].keys() & trees[1]["tasks"]
    for tree in trees:
        for method in tree["methods"].values():
            method["by_task"] = {task: changes for task, changes in method["by_task"].items() if task in both}
    # Entries of only one recipe, and the lists of tasks, methods and seeds, add or remove cells but
    # do not change any.
    shared = tuple(
        f"{group}.{name}." for group in ("tasks", "methods") for name in trees[0][group].keys() & trees[1][group]
    )
    lists = {"seeds", "baselines", "output_dir", *(f"methods.{name}.tasks" for name in recipe.methods)}
    before, now = map(flat, trees)
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
        and key not in lists
        # The place where jobs run does not matter to their results.
        and not key.startswith("scheduler")
        and (key.startswith(shared) or not key.startswith(("tasks.", "methods.")))
    )
    if changed:
        lines = [f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed]
        raise RunError(
            f"{folder} has results of other settings:\n"
            + "\n".join(lines)
            + "\nUse the old settings, set output_dir to another folder, or add --rerun-changed to repeat the affected jobs."
        )
