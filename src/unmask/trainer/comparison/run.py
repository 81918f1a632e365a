"""Doing a comparison: stage by stage, several jobs at a time, each result written as it comes; cut it off and repeat at will."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from unmask.core.config import flat
from unmask.core.errors import ConfigError, RunError, UnmaskError
from unmask.recipes.load import dump, read_tree, validate
from unmask.runs.atomic import take_lock, write_atomically
from unmask.runs.folder import disk_faults_explained
from unmask.runs.metrics import temperature_name
from unmask.trainer.comparison.jobs import Cell, ComparisonJob, Key, Probe, Record, key_of, steps_within
from unmask.trainer.comparison.ledger import Ledger
from unmask.trainer.comparison.plan import Plan, check_reward_functions
from unmask.trainer.comparison.recipe import BASE, CompareRecipe, named
from unmask.trainer.comparison.results import choose, tried
from unmask.trainer.distributed.stopping import RunStoppedError, StopSignals

JobT = TypeVar("JobT", bound=ComparisonJob)

POLL = 0.2
"""Seconds between looks at whether a signal has come."""
MOST_NAMED = 8
"""Edited files that a message names."""


class CompareStoppedError(RunError):
    """The comparison was asked to stop; what was under way was saved."""

    def __init__(self, folder: Path, signal_number: int) -> None:
        super().__init__(f"stopped; everything is in {folder}. To go on: the same command.")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def compare(
    recipe: CompareRecipe,
    *,
    jobs: int = 1,
    rerun_changed: bool = False,
    keep_changed: bool = False,
    retry_failed: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Do all that has no record yet and return the folder of the comparison.

    Args:
        recipe: what is compared.
        jobs: processes at a time, one thread each; 1 works in this process, with all the threads it has.
        rerun_changed: run again what changed settings or edited code touch, instead of refusing to go on.
        keep_changed: go on beside results of code that was edited since; tables mark them.
        retry_failed: run again what has failed before.
        tell: shown a line for each job that ends.

    Raises:
        CompareStoppedError: SIGINT or SIGTERM; the runs under way were saved.
        ConfigError: a reward function cannot be loaded, or does not go with a method that is to train on it.
        RunError: the folder belongs to another comparison, is in use, is damaged, or has results of code that was edited since.
    """
    if rerun_changed and keep_changed:
        raise ConfigError("--rerun-changed and --keep-changed exclude each other. Give one of them.")
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
        with StopSignals() as signals, _workers(jobs) as workers:
            _Comparison(recipe, ledger, workers, jobs, signals, rerun_changed, retry_failed, tell).run()
    return folder


@dataclass
class _Comparison:
    """The stages, and what they share."""

    recipe: CompareRecipe
    ledger: Ledger
    workers: Executor
    num_workers: int
    signals: StopSignals
    rerun_changed: bool
    retry_failed: bool
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.plan, self.clock = Plan(self.recipe), _Clock()

    def run(self) -> None:
        """Bases, then trials, then the runs that are compared."""
        plan, recipe = self.plan, self.recipe
        self._settle(plan.pretrainings())
        self._perform(self._undone(plan.pretrainings()), _as_it_is)
        self._settle(plan.bases())
        self._perform(self._undone(plan.bases()), self._on_its_base)
        chosen = {(task, method): recipe.points(method)[0] for task, method in recipe.pairs()}
        if trials := plan.trials():
            # Which settings will be chosen makes no difference to what the runs after them cost.
            self._train(trials, later=plan.finals(chosen))
            best = choose(recipe, tried(recipe, self.ledger.records))
            for task, method in chosen.keys() - best.keys():
                self.tell(f"{method} on {task}: no setting went well with every tuning seed, so it is left out.")
            chosen = {pair: trial.settings for pair, trial in best.items()}
        self._train(plan.finals(chosen))

    def _train(self, cells: Sequence[Cell], later: Sequence[Cell] = ()) -> None:
        """Find out what a step costs where that is not known, then run."""
        self._settle(cells)
        undone = self._undone(cells)
        self.clock.start(sum(cell.budget for cell in [*undone, *later]))
        unknown = [cell for cell in undone if "cost" not in self._probed(cell)]
        self._perform(self._undone(self.plan.probes(unknown)), self._probe_on_its_base)
        self._perform(undone, self._with_steps)

    def _settle(self, jobs: Sequence[ComparisonJob]) -> None:
        """See to it that the ledger holds no results of other settings under the jobs' labels."""
        if foreign := self.ledger.foreign(jobs):
            which = (
                f"{self.ledger.path} has results of stage {jobs[0].stage} from other settings, {len(foreign)} of them"
            )
            if not self.rerun_changed:
                raise RunError(
                    f"{which}: a recipe that a task names has changed, or the tuning now chooses otherwise. Set output_dir to "
                    "another folder, or add --rerun-changed to set them aside and run again."
                )
            self.tell(f"{which}: these go to superseded.jsonl.")
        self.ledger.settle(jobs)

    def _undone(self, jobs: Sequence[JobT]) -> list[JobT]:
        """Jobs without a record, or without a good one where what failed is tried again."""

        def is_done(job: ComparisonJob) -> bool:
            record = self.ledger.of(job)
            return record is not None and not (self.retry_failed and "failed" in record)

        return [job for job in jobs if not is_done(job)]

    def _on_its_base(self, cell: Cell) -> Cell:
        """The cell with the model that it starts from.

        Raises:
            RunError: there is none, because its pretraining failed.
        """
        base = self.plan.base_of(cell.task, cell.seed)
        if base is None:
            return cell
        if "failed" in (record := self.ledger.of(base) or {}):
            raise RunError(f"its base failed: {record['failed']}")
        model = str(self.ledger.folder_of(base) / "final")
        return replace(cell, recipe=cell.recipe.model_copy(update={"model": model}))

    def _probe_on_its_base(self, probe: Probe) -> Probe:
        return replace(probe, cell=self._on_its_base(probe.cell))

    def _with_steps(self, cell: Cell) -> Cell:
        """The cell with as many steps as its budget buys."""
        cell = self._on_its_base(cell)
        probe = self._probed(cell)
        if "failed" in probe:
            raise RunError(f"its probe failed: {probe['failed']}")
        return replace(cell, max_steps=steps_within(cell.budget, probe["cost"], cell.task))

    def _probed(self, cell: Cell) -> Record:
        """What is known of the cost of a step: the record of a probe that went well, or of one that failed, or nothing."""
        variant = cell.cost_variant
        probes = [r for r in self.ledger.records if r["stage"] == "probe" and r["variant"] == variant]
        return max(probes, key=lambda record: "cost" in record, default={})

    def _perform(self, jobs: Sequence[JobT], prepare: Callable[[JobT], ComparisonJob]) -> None:
        """Do the jobs, as many at a time as there are workers, and record each as it ends."""
        waiting, running = iter(jobs), dict[Future[Record], ComparisonJob]()
        ended, asked = 0, self.signals.received

        def finish(job: ComparisonJob, facts: Record) -> None:
            nonlocal ended
            ended += 1
            self.ledger.add(job.record(**facts), _unedited(job))
            job.clean_up()
            left = self.clock.tick(job.budget) if isinstance(job, Cell) else ""
            self.tell(f"{job.stage} {ended}/{len(jobs)}  {_said(job, facts)}{left}")

        while True:
            if asked := asked or self.signals.received:
                # A terminal sends Ctrl-C to all of them, `kill` only to this one; to be asked again does no harm.
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGINT)
            while not asked and len(running) < self.num_workers and (job := next(waiting, None)) is not None:
                job = replace(job, code=job.code_now)
                try:
                    ready = prepare(job)
                except UnmaskError as error:
                    finish(job, {"failed": str(error)})
                    continue
                running[self.workers.submit(_work, ready)] = ready
            if not running:
                break
            for future in wait(running, timeout=POLL, return_when=FIRST_COMPLETED).done:
                done, facts = running.pop(future), _result(future)
                if "stopped" in facts:
                    asked = facts["stopped"]
                else:
                    finish(done, facts)
        if asked:
            raise CompareStoppedError(self.recipe.folder, asked)


class _Clock:
    """How long it will take, from how long the runs so far took and what is left to spend."""

    def __init__(self) -> None:
        self._left = self._spent = 0
        self._started = time.perf_counter()

    def start(self, left: int) -> None:
        """Set the token passes that are left to spend."""
        self._left = left
        if not self._spent:
            self._started = time.perf_counter()

    def tick(self, budget: int) -> str:
        """Take a run off, and say how long the others will take."""
        self._left -= budget
        self._spent += budget
        if not self._spent:
            return ""
        seconds = (time.perf_counter() - self._started) * self._left / self._spent
        return f"  {seconds / 60:.0f} min left" if seconds >= 90 else f"  {seconds:.0f} s left"


class _Here(Executor):
    """Does the work in this process, at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _workers(jobs: int) -> Executor:
    if jobs == 1:
        return _Here()
    # Spawned: a forked child of a process that has used torch's threads hangs.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    for _ in range(jobs):
        # All begin now, with the code as it is now: a process that began later would run what was edited until then.
        pool.submit(_nothing)
    return pool


def _nothing() -> None:
    """The work that starts a worker."""


def _begin_worker() -> None:
    # Two processes of one thread do half as much again as one of two.
    torch.set_num_threads(1)
    # The trainer still finishes its step and saves; between runs a worker waits for its parent to say that it is over.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on, and keep its run folder from those who want to resume."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: ComparisonJob) -> Record:
    """What a worker does. A user's mistake is the job's result; anything else is a bug and stops the comparison."""
    try:
        return job.run()
    except RunStoppedError as stop:
        return {"stopped": stop.signal_number}
    except UnmaskError as error:
        return {"failed": str(error)}


def _result(future: Future[Record]) -> Record:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, perhaps for want of memory. Results so far are kept: give the same command again, "
            "with fewer --jobs if it was that."
        ) from error


def _as_it_is(job: ComparisonJob) -> ComparisonJob:
    return job


def _unedited(job: ComparisonJob) -> tuple[Mapping[str, str], ...]:
    """The files that a finished job depends on.

    Raises:
        RunError: some were edited while it ran, so nobody knows which code made the result.
    """
    if job.code_now != job.code:
        raise RunError(
            f"code or files of {job.method} on {job.task} were edited while it ran, so its result is not kept. All other results "
            "are. Give the same command again when the edits are done."
        )
    return job.files


def _settle_edited(ledger: Ledger, recipe: CompareRecipe, rerun: bool, keep: bool, tell: Callable[[str], None]) -> None:
    """See to it that no result of code that was edited since is taken for a current one.

    Raises:
        RunError: there are such results, and neither `rerun` nor `keep` says what to do with them.
    """
    stale = _edited(ledger, recipe)
    records = [record for record in ledger.records if key_of(record) in stale]
    # There is nothing to lose in a failure, and a probe costs two steps, so these are repeated without a word.
    results = [record for record in records if record["stage"] != "probe" and "failed" not in record]
    if slight := [record for record in records if record not in results]:
        ledger.set_aside(slight)
    if not results or keep:
        return
    if rerun:
        ledger.set_aside(results)
        tell(f"{len(results)} results of code that was edited since go to superseded.jsonl, and are run again.")
        return
    shown = Counter(f"{record['stage']}  {record['task']}  {record['method']}" for record in results)
    files = sorted({name for names in stale.values() for name in names})
    lines = [f"  {label}: {number} result{'s' if number > 1 else ''}" for label, number in shown.items()]
    raise RunError(
        f"{ledger.path} has results of code that was edited since:\n"
        + "\n".join(lines)
        + f"\nEdited: {', '.join(files[:MOST_NAMED])}"
        + (f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else "")
        + ".\nAdd --rerun-changed to run them again (the old results go to superseded.jsonl), or --keep-changed to go on beside "
        "them, if the edits change no result; tables then mark them. Or undo the edits."
    )


def _edited(ledger: Ledger, recipe: CompareRecipe) -> dict[Key, list[str]]:
    """For the records that the recipe asks for, and the probes, the files that were edited since."""
    asked = {*recipe.pairs(), *((task, BASE) for task in recipe.tasks)}
    asked |= {(job.task, job.method) for job in Plan(recipe).pretrainings()}
    seeds = {*recipe.seeds, *(recipe.tuning.seeds if recipe.tuning else ())}
    return {
        key_of(record): files
        for record in ledger.records
        if record["stage"] == "probe" or ((record["task"], record["method"]) in asked and record["seed"] in seeds)
        if (files := ledger.edited(record))
    }


def _said(job: ComparisonJob, facts: Record) -> str:
    """A job and its result in a line."""
    labels = [job.task, *([job.method] if job.method != BASE else []), f"seed {job.seed}"]
    if isinstance(job, Cell) and job.settings:
        labels.append(named(job.settings))
    if "failed" in facts:
        said = f"FAILED: {facts['failed']}"
    elif "accuracy" in facts:
        said = ", ".join(f"{temperature_name(t)} {value:.3f}" for t, value in facts["accuracy"].items())
    elif "cost" in facts:
        said = f"a step costs {facts['cost']:,.0f} token passes"
    else:
        said = f"loss {facts['loss']:.3f}"
    length = f" ({facts['steps']} steps, {facts['seconds']:.0f} s)" if facts.get("steps") else ""
    return f"{'  '.join(labels)}: {said}{length}"


def _refuse_changed(folder: Path, recipe: CompareRecipe) -> None:
    """Raise RunError if the folder's recipe differs from this one in more than in what is compared with what."""
    recorded = folder / "recipe.yaml"
    if not recorded.exists():
        return
    trees: list[dict[str, Any]] = [
        validate(CompareRecipe, read_tree(recorded)).model_dump(mode="json"),
        recipe.model_dump(mode="json"),
    ]
    # What a method changes on a task that only one of the two has touches no cell of the other.
    both = trees[0]["tasks"].keys() & trees[1]["tasks"]
    for tree in trees:
        for method in tree["methods"].values():
            method["by_task"] = {task: changes for task, changes in method["by_task"].items() if task in both}
    # Entries that only one of the two has, and the lists of what is run, add or leave out cells and change none.
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
        and (key.startswith(shared) or not key.startswith(("tasks.", "methods.")))
    )
    if changed:
        lines = [f"  {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed]
        raise RunError(
            f"{folder} was made with other settings:\n"
            + "\n".join(lines)
            + "\nSet them back, set output_dir to another folder, or add --rerun-changed to run again what they touch."
        )
