"""The public `Trainer`: training from Python and from the command line, with progress on the way
and a report at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from unmask import trainer
from unmask.core.errors import ConfigError, UnmaskError
from unmask.models import Denoiser, Policy
from unmask.recipes.load import Source, load_recipe, recipe_tree
from unmask.recipes.schema import TrainRecipe
from unmask.report.api.arguments import check_names, recipe_of
from unmask.report.api.starting_model import ModelSource, model_of, write_starting_model
from unmask.report.progress import ProgressView
from unmask.rewards.given import RewardFuncs, reward_list
from unmask.rewards.protocol import RewardFunc, load_reward
from unmask.runs.atomic import disk_faults_explained
from unmask.sampling.engine import RolloutEngine
from unmask.trainer.session import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trainer(trainer.Trainer):
    """Train a masked diffusion model with reinforcement learning, with progress and a report.

    A run is described by a recipe, by arguments with TRL's names, or by both:

        Trainer(load_recipe("sudoku-tiny"), reward_funcs=my_reward).train()
        Trainer(model=policy, reward_funcs=[my_reward], train_dataset=rows, max_steps=3).train()

    Without a recipe, the method is EGSPO and every other setting has its default
    (`unmask.report.api.arguments.DEFAULTS`). Two defaults adapt: a completion has at most as many
    tokens as a model object has room for, and the method selects at most as many steps as the
    sampler takes. The resulting recipe is recorded in the run folder, so that the run can be
    resumed and its model card is complete.

    Args:
        recipe: a recipe, its name, its file, or a dict of its settings. A model may be given in
            place of the recipe, as in TRL.
        reward_funcs: a reward function, its path as `file.py:function`, or a list of them, instead
            of the reward functions of the recipe or the task.
        model: model to start from: a folder, a hub id, what `load_model` returns, or a `Denoiser`
            with its tokenizer as `processing_class`. An object is not changed. It is written to
            OUTPUT_DIR-start, from which the run reads it.
        train_dataset: rows to train on: a list of dicts, a `datasets.Dataset`, a data frame, a
            file, or a data set of the hub, each with a column `prompt`.
        eval_dataset: rows to evaluate on; default a held-out part of `train_dataset`.
        args: dict of settings. Settings that are given as keywords take precedence.
        processing_class: tokenizer of a model that is given as a `Denoiser`.
        resume: True to continue from the newest checkpoint of the run folder.
        observe: function of the training step and its metrics, which is called after each step and
            after each evaluation.
        example: function of a completion and its reward, which is called in each step.
        engine: rollout engine that samples completions; default one that samples in this process.
        progress: True to show progress in the terminal, the notebook or the pipe.
        settings: settings by key of the recipe, such as max_steps=3 or sampler={"num_steps": 8}, or
            by a name that other libraries use, such as learning_rate, temperature or beta.

    Raises:
        UnmaskError: an argument, a setting, the model, the rows or the run folder cannot be used.
    """

    def __init__(
        self,
        recipe: Source | ModelSource | None = None,
        reward_funcs: RewardFuncs = (),
        *,
        model: ModelSource | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        args: Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        resume: bool = False,
        observe: Observer | None = None,
        example: Callable[[str, float], None] | None = None,
        engine: RolloutEngine | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        if model is None and _is_model(recipe):
            recipe, model = None, recipe
        start = model_of(model, processing_class)
        settings = _merged(args, settings)
        check_names(settings)
        if isinstance(start, Policy):
            run = Path(settings.get("output_dir") or _output_dir(recipe))
            settings["output_dir"] = str(run)
            settings["model"] = str(run.with_name(f"{run.name}-start"))
        loaded = recipe_of(recipe, settings, model=start, train_dataset=train_dataset, eval_dataset=eval_dataset)  # type: ignore[arg-type]
        loaded, functions = _with_rewards(loaded, reward_funcs)
        if isinstance(start, Policy):
            with quiet_libraries():
                write_starting_model(start, Path(str(loaded.output_dir)))
        self._view = ProgressView("train", loaded.max_steps, Console(file=sys.stderr)) if progress else None
        view = self._view
        with quiet_libraries():
            super().__init__(
                loaded,
                functions,
                resume=resume,
                observe=_each(observe, view),
                example=_each(example, view and view.example),
                engine=engine,
            )
        self.pictures: dict[str, str] = {}
        """Paths of the curve and of the report of a finished run. If a file could not be written,
        its entry is the reason."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, which prints and writes for all ranks."""
        return bool(self.accelerator.is_main_process)

    def train(self) -> Path:
        """Run to the end, draw the curve and write the report, and return the run folder.

        Raises:
            RunStoppedError: SIGINT, SIGTERM or SIGUSR1 arrived; the step was finished and saved.
            UnmaskError: something that a user can correct; the state before the failing step was
                saved.
        """
        with quiet_libraries():
            with self._view if self._view and self.is_main else nullcontext():
                folder = super().train()
            if self.is_main:
                self.pictures = pictures(folder)
        return folder


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the progress bars of transformers, and its warning about padding without a mask."""
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
    """Draw the learning curve of a finished run, write its report, and return their paths.

    If the curve or the report could not be written, the reason is returned in place of its path.

    The run itself is complete, so an error in this function must not make the run look like a
    failure.
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


def _is_model(value: object) -> bool:
    """Check whether the first argument is a model rather than a recipe."""
    if isinstance(value, str | os.PathLike):
        return (Path(value).expanduser() / "config.json").is_file()
    return isinstance(value, Policy | Denoiser)


def _merged(args: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in `args` and in the keywords, which take precedence."""
    if args is not None and not isinstance(args, Mapping):
        raise ConfigError(
            f"args has the type {type(args).__name__}. Give a dict of the settings that you change, "
            'as in args={"learning_rate": 1e-5}.'
        )
    return {**(args or {}), **settings}


def _output_dir(recipe: Any) -> str:
    """Return the run folder of a recipe, or of a run without a recipe."""
    tree = {} if recipe is None else recipe_tree(TrainRecipe, recipe)
    return str(tree.get("output_dir") or "runs/train")


def _each(*functions: Callable[..., None] | None) -> Callable[..., None] | None:
    """Return a function that calls each of the given functions with its arguments; None if no
    function is given."""
    given = [function for function in functions if function is not None]

    def call(*arguments: Any) -> None:
        for function in given:
            function(*arguments)

    return call if given else None


def _with_rewards(recipe: TrainRecipe, given: RewardFuncs) -> tuple[TrainRecipe, list[RewardFunc]]:
    """Write reward functions that are given as paths into the recipe, so that worker processes can
    run them. Return the reward functions that are given as objects."""
    functions = reward_list(given)
    if functions and all(isinstance(function, str) for function in functions):
        return load_recipe(recipe, {"reward_funcs": functions}), []
    return recipe, [load_reward(function)[1] if isinstance(function, str) else function for function in functions]
