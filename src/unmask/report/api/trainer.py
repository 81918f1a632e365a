"""Training as a user sees it, in Python and on the command line: progress while it runs, the curve and the report at its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from unmask import trainer
from unmask.core.errors import ConfigError, UnmaskError
from unmask.recipes.schema import Source, TrainRecipe, load_recipe
from unmask.report.progress import progress as shown_progress
from unmask.rewards.protocol import RewardFunc, load_reward
from unmask.runs.folder import disk_faults_explained
from unmask.trainer.loop import Observer

Rewards = RewardFunc | str | Sequence[RewardFunc | str]
"""A reward function, its path as `file.py:function`, or several of them."""

_ADVICE = (
    "Everything about a run is in its recipe: "
    'Trainer(load_recipe("sudoku-tiny", {"model": "FOLDER", "max_steps": 3}), reward_funcs=my_reward).train(). '
    "unmask recipes lists those that are shipped, and a YAML file or a dict is one too."
)


class Trainer(trainer.Trainer):
    """Trains a denoiser as a recipe says, and shows how it goes.

    Args:
        recipe: the run's settings: what `load_recipe` returns or takes.
        reward_funcs: reward functions instead of the recipe's or the task's: a function, a path as `file.py:function`, or a
            list of them.
        train_dataset: rows instead of the recipe's task: a file, a data set of the hub, or rows in Python, as the task
            `dataset` takes them for `path`.
        eval_dataset: rows to evaluate on; without it a part of `train_dataset` is held out.
        resume: continue from the newest checkpoint of the run folder.
        observe: called after every step with its number and its metrics.
        example: called in every step with a completion and its reward.
        progress: whether progress is shown, in a terminal, a notebook or a pipe.

    Raises:
        UnmaskError: something in the recipe, the model, the rows or the run folder cannot be used.
        TypeError: an argument that other trainers have.
    """

    def __init__(
        self,
        recipe: Source | None = None,
        reward_funcs: Rewards = (),
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        resume: bool = False,
        observe: Observer | None = None,
        example: Callable[[str, float], None] | None = None,
        progress: bool = True,
        **others: Any,
    ) -> None:
        if others:
            raise TypeError(f"Trainer has no argument {', '.join(others)}. {_ADVICE}")
        if recipe is None:
            raise TypeError(f"Trainer needs a recipe. {_ADVICE}")
        loaded = recipe if isinstance(recipe, TrainRecipe) else load_recipe(recipe)
        loaded = _on_rows(loaded, train_dataset, eval_dataset)
        loaded, functions = _with_rewards(loaded, reward_funcs)
        self._progress = progress
        self._observers = [observe] if observe else []
        self._examples = [example] if example else []
        with quiet_libraries():
            super().__init__(loaded, functions, resume=resume, observe=self._observe, example=self._example)
        self.pictures: dict[str, str] = {}
        """Where the curve and the report of a finished run are, or why there is none."""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all of a distributed run."""
        return bool(self.accelerator.is_main_process)

    def train(self) -> Path:
        """Run to the end, draw the curve and write the report, and return the run folder.

        Raises:
            RunStoppedError: SIGINT, SIGTERM or SIGUSR1; the step was finished and saved.
            UnmaskError: anything that a user can correct; the state before the failing step was saved.
        """
        is_shown = self._progress and self.is_main
        with quiet_libraries():
            with shown_progress("train", self.recipe.max_steps) if is_shown else nullcontext() as view:
                if view is not None:
                    self._observers.append(view)
                    self._examples.append(view.example)
                folder = super().train()
            if self.is_main:
                self.pictures = pictures(folder)
        return folder

    def _observe(self, step: int, metrics: dict[str, Any]) -> None:
        for observe in self._observers:
            observe(step, metrics)

    def _example(self, completion: str, reward: float) -> None:
        for example in self._examples:
            example(completion, reward)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own into ours, and from warning of padding without a mask."""
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def pictures(folder: Path) -> dict[str, str]:
    """Draw the learning curve of a finished run and write its report; return the path of each, or why it was not written.

    The run itself is complete, so an error here must not make it look like a failure.
    """
    from unmask.report.build import write_report
    from unmask.report.plot import plot_metrics

    made: dict[str, str] = {}
    steps: dict[str, Callable[[], Path]] = {
        "curve": lambda: plot_metrics([folder], [], folder / "curve.png", suffixes=[".png"]),
        "report": lambda: write_report([folder]).path,
    }
    for name, make in steps.items():
        try:
            with disk_faults_explained(folder):
                made[name] = str(make())
        except UnmaskError as error:
            made[name] = f"not written ({error})"
    return made


def _on_rows(recipe: TrainRecipe, train: Any, held_out: Any) -> TrainRecipe:
    """The recipe with these rows for its task; a task of type dataset keeps its other options."""
    if train is None and held_out is None:
        return recipe
    if train is None:
        raise ConfigError("eval_dataset without train_dataset: give both, or set task.test_path in the recipe.")
    before = recipe.task.model_dump() if recipe.task.type == "dataset" else {"type": "dataset"}
    before.pop("test_path", None)
    test = {} if held_out is None else {"test_path": held_out}
    tree = {**recipe.model_dump(), "task": {**before, "path": train, **test}}
    return load_recipe(tree)


def _with_rewards(recipe: TrainRecipe, given: Rewards) -> tuple[TrainRecipe, list[RewardFunc]]:
    """Paths become a part of the recipe, which worker processes can then run; functions go to the trainer as they are."""
    if isinstance(given, Mapping):
        raise ConfigError(
            "reward_funcs is a function, its path or a list of them, not a dict; weights are reward_weights."
        )
    several: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for one in several:
        if not isinstance(one, str | os.PathLike) and not callable(one):
            raise ConfigError(
                f"reward_funcs holds {one!r}, which is neither a function nor the path of one, such as rewards.py:mine."
            )
    if several and all(isinstance(one, str | os.PathLike) for one in several):
        return load_recipe(recipe, {"reward_funcs": [str(one) for one in several]}), []
    return recipe, [one if callable(one) else load_reward(os.path.expanduser(one))[1] for one in several]
