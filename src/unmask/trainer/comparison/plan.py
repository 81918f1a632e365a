"""The jobs of a comparison in their order. They run seed by seed, so that an interrupted comparison
has about the same seeds for every method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.recipes.scorer import scorer_of
from unmask.trainer.collect import check_rewards
from unmask.trainer.comparison.jobs import Cell, Measure, Pretraining, Stage
from unmask.trainer.comparison.recipe import BASE, CompareRecipe
from unmask.trainer.comparison.resolve import base_recipe, run_recipe


def check_reward_functions(recipe: CompareRecipe) -> None:
    """Load the reward functions of all runs once, before the first job.

    Raises:
        ConfigError: if a function cannot be loaded, or a method cannot train on it.
    """
    seen: set[str] = set()
    for task, label in recipe.pairs():
        for point in recipe.points(label):
            run = run_recipe(recipe, task, label, point, recipe.seeds[0])
            key = repr((run.task, run.method.type, run.reward_funcs, run.reward_weights))
            if key in seen:
                continue
            seen.add(key)
            try:
                scorer = scorer_of(run)
                try:
                    check_rewards(scorer, run.method)
                finally:
                    scorer.close()
            except ConfigError as error:
                raise ConfigError(f'method "{label}" on task "{task}": {error}') from error


class Plan:
    """The jobs of a comparison.

    Args:
        recipe: settings of the comparison.
    """

    def __init__(self, recipe: CompareRecipe) -> None:
        self.recipe, self.folder = recipe, recipe.folder

    @property
    def is_tuned(self) -> bool:
        """True if some method has more than one grid point."""
        return any(len(self.recipe.points(label)) > 1 for label in self.recipe.methods)

    def pretrainings(self) -> list[Pretraining]:
        """Return the pretrainings; those for the tuning trials come first. Tasks whose base models
        have equal recipes share a pretraining."""
        tuning = self.recipe.tuning
        seeds = dict.fromkeys([*(tuning.seeds if tuning and self.is_tuned else ()), *self.recipe.seeds])
        jobs = [self._pretraining(task, seed) for seed in seeds for task in self.recipe.tasks if self._has_base(task)]
        return list({job.key: job for job in jobs}.values())

    def bases(self) -> list[Cell]:
        """Return the evaluations of the untrained models, one for each seed and task."""
        return [self._cell("base", task, BASE, seed, {}) for seed in self.recipe.seeds for task in self.recipe.tasks]

    def trials(self) -> list[Cell]:
        """Return the tuning runs, whose results decide which settings are chosen."""
        tuning = self.recipe.tuning
        if tuning is None or not self.is_tuned:
            return []
        return [
            self._cell("tuning", task, method, seed, point)
            for seed in tuning.seeds
            for task, method in self.recipe.pairs()
            for point in self.recipe.points(method)
        ]

    def finals(self, chosen: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Cell]:
        """Return the runs to compare, for each task and method with chosen settings."""
        return [
            self._cell("final", task, method, seed, chosen[task, method])
            for seed in self.recipe.seeds
            for task, method in self.recipe.pairs()
            if (task, method) in chosen
        ]

    def base_of(self, task: str, seed: int) -> Pretraining | None:
        """Return the pretraining that runs of a task and seed start from; None if they start from
        an existing model."""
        return self._pretraining(task, seed) if self._has_base(task) else None

    def _has_base(self, task: str) -> bool:
        return self.recipe.tasks[task].base is not None

    def _pretraining(self, task: str, seed: int) -> Pretraining:
        name = Path(str(self.recipe.tasks[task].base)).stem
        return Pretraining(self.folder, "pretraining", name, BASE, seed, base_recipe(self.recipe, task, seed))

    def _cell(self, stage: Stage, task: str, method: str, seed: int, point: Mapping[str, Any]) -> Cell:
        setting, evaluation, tuning = self.recipe.tasks[task], self.recipe.evaluation, self.recipe.tuning
        base = self.base_of(task, seed)
        start, model = (base.variant, str(base.folder / "final")) if base else (str(setting.model),) * 2
        measure = Measure(
            split="test",
            num_rows=evaluation.num_rows,
            temperatures=evaluation.temperatures,
            decoding_steps=setting.decoding_steps,
            samples=evaluation.samples,
        )
        budget = setting.budget
        if stage == "tuning":
            assert tuning is not None
            budget = int(budget * tuning.budget_share)
            # Never the test split: the reported numbers must not influence a choice.
            measure = Measure(split="validation", num_rows=tuning.num_rows, temperatures=evaluation.temperatures)
        elif stage == "final":
            curve = {"curve_points": evaluation.curve_points, "curve_rows": evaluation.curve_rows}
            measure = measure.model_copy(update=curve)
        return Cell(
            root=self.folder,
            stage=stage,
            task=task,
            method=method,
            seed=seed,
            recipe=run_recipe(self.recipe, task, method, dict(point), seed).model_copy(update={"model": model}),
            start=start,
            measure=measure,
            base=base.recipe if base else None,
            settings=point,
            budget=0 if stage == "base" else budget,
        )
