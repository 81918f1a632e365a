"""The training steps of reinforcement learning, and the evaluations between them. A step collects a
rollout, updates the policy, records both for the report, and computes the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.core.records import Rollout, Row, Views
from unmask.evaluation.evaluate import evaluate
from unmask.functional.noise import named_generator
from unmask.models import Denoiser, Policy
from unmask.recipes.schema import TrainRecipe
from unmask.rewards.scorer import Scorer
from unmask.runs.metrics import EVALUATION_NUMBERS, EvaluationPoint
from unmask.sampling.encoding import decode
from unmask.sampling.engine import BatchLimits, LocalEngine, RolloutEngine
from unmask.sampling.remote.client import Patience, Server
from unmask.sampling.remote.engine import HttpEngine
from unmask.sampling.remote.servers import Servers
from unmask.trainer.ahead import Rollouts
from unmask.trainer.best import best_in, better, validation_accuracy
from unmask.trainer.collect import (
    Collector,
    describe_groups,
    entropy_by_step,
    prompts_of_step,
    with_speed_reward,
)
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally, TokenPasses
from unmask.trainer.published_weights import PublishedWeights
from unmask.trainer.recorder import RolloutRecorder, selected_by_step
from unmask.trainer.refill import SignalWatch, further_prompts, refilled
from unmask.trainer.rollout_weights import RolloutWeights
from unmask.trainer.session import Session
from unmask.trainer.token_budget import find_token_budget


class TrainingSteps:
    """The steps of a training run.

    Args:
        session: the run; its checkpoint is loaded.
        recipe: settings of the run.
        scorer: reward functions.
        rows: examples to train on.
        eval_rows: examples to evaluate on.
        meter: counter of token passes.
        rollout_weights: weights that a `LocalEngine` samples from.
        engine: samples rollouts and evaluations; None for a `LocalEngine` for each.
        example: called on the main rank in every step, with a completion and its reward.
    """

    def __init__(
        self,
        session: Session,
        recipe: TrainRecipe,
        scorer: Scorer,
        rows: Sequence[Row],
        eval_rows: Sequence[Row],
        meter: TokenPasses,
        rollout_weights: RolloutWeights,
        engine: RolloutEngine | None,
        example: Callable[[str, float], None] | None,
    ) -> None:
        self.session, self.recipe, self.scorer, self.meter, self.example = session, recipe, scorer, meter, example
        self.rows, self.eval_rows = rows, eval_rows
        self.servers: Servers | None = None
        trained, folder, ranks = session.policy, session.folder, session.ranks
        self.progress, self.ranks, self.denoiser = session.progress, ranks, trained.denoiser
        self.expert_use = trained.expert_use
        self.best = ranks.from_main(best_in(folder.path) if folder.is_main else None)
        policy = Policy(trained.denoiser, trained.tokenizer)
        weights = partial(rollout_weights.opened, session.state.holder, ranks)
        budget = find_token_budget(recipe, trained, session.accelerator, list(rows), folder.path, ranks, weights)
        limits = (recipe.rollout_batch_size, recipe.evaluation.batch_size)
        if engine is None and recipe.rollout_engine.type == "http":
            self.servers = servers_of(session, recipe)
        self.engine, self.evaluation_engine = (
            engine or self._engine(policy, BatchLimits(size, budget.rollout), weights) for size in limits
        )
        self.collector = Collector(self.engine, scorer, recipe)
        self.rollouts = Rollouts(
            self.collector,
            trained.denoiser,
            lambda step: prompts_of_step(rows, step, recipe.num_prompts, recipe.seed),
            self._share,
            meter,
            recipe.max_steps,
            is_ahead=self.servers is not None and recipe.rollout_engine.max_staleness > 0,
            alive=session.progress.alive,
            agreed=ranks.agreed,
        )
        self.recorder = RolloutRecorder(
            recipe, trained.tokenizer, scorer, meter, folder, ranks, budget.rollout, weights
        )
        (optimizer,) = session.optimizers
        self.learner = Learner(
            session.accelerator,
            session.model,
            optimizer,
            trained.reference,
            recipe,
            budget.update,
            ranks,
            session.spending,
            trained.critic,
        )
        self._signal = SignalWatch()

    def step(self, index: int) -> dict[str, Any]:
        """Do the training step `index`, counted from 0, and return its metrics; see `Steps.step`."""
        tally = Tally()
        self.meter.take()
        self.scorer.take()
        if self.expert_use is not None:
            self.expert_use.take()
        started = time.perf_counter()
        rollout, rows = self._collect(index, tally)
        collected = time.perf_counter()
        times = self.recorder.before_update(rollout, rows, index + 1)
        updating = time.perf_counter()
        self.progress.begin(index + 1, "update")
        generator = named_generator(self.recipe.seed, "update", index)
        views, advantage = self.learner.update(rollout, index, generator, tally)
        times |= {"time/rollout": collected - started, "time/update": time.perf_counter() - updating}
        self.recorder.after_update(views, advantage)
        metrics = self._metrics(rollout, views, tally)
        self._signal.see(metrics["advantage/frac_flat_groups"], metrics.get("completions/frac_identical_groups", 0.0))
        return metrics | times

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return the metrics of the evaluation that is due after `step` training steps; empty if
        none is due."""
        setting = self.recipe.evaluation
        is_due = step % setting.eval_steps == 0 if setting.eval_steps else False
        if not (is_due or self.session.spending.is_evaluation_due or self.session.is_over(step)):
            return {}
        self.progress.begin(step, "evaluation")
        with self.session.saved_on_error(step):
            metrics = self._evaluation(step)
        return metrics | self._save_best(step, metrics)

    def close(self) -> None:
        """Close the connections to servers, if there are any, and remove the weights written for
        them."""
        if self.servers is not None:
            self.servers.close()

    def _engine(
        self, policy: Policy, limits: BatchLimits, weights: Callable[[], AbstractContextManager[Denoiser]]
    ) -> RolloutEngine:
        """Return the engine of the recipe."""
        if self.servers is not None:
            return HttpEngine(policy, self.servers, limits, weights)
        return LocalEngine(policy, limits, weights)

    def _collect(self, index: int, tally: Tally) -> tuple[Rollout, list[Row]]:
        """Return the rollout of all ranks, and the example of each of its groups."""
        recipe, rows = self.recipe, self.rollouts.rows(index)
        rollout = self._sampled(rows, index, tally)
        if recipe.rollout_engine.max_staleness:
            tally.add("rollout/staleness", float(index - rollout.trajectory.policy_version))
        describe_groups(rollout, tally)
        if self.example is not None and self.session.folder.is_main:
            first = decode(self.engine.tokenizer, rollout.trajectory.tokens[:1])[0]
            self.example(first, float(rollout.reward[0]))
        # The metrics of rewards describe those of the task.
        rollout = with_speed_reward(rollout, recipe.speed, tally)
        further = further_prompts(self.rows, index, recipe.num_prompts, recipe.seed)

        def sample(others: list[Row], refill: int) -> Rollout:
            # The metrics describe the first rollout, whose prompts nothing has selected.
            return with_speed_reward(self._sampled(others, index, Tally(), refill), recipe.speed, Tally())

        return refilled(rollout, rows, recipe.method, further, recipe.refill_rounds, sample, tally)

    def _sampled(self, rows: Sequence[Row], index: int, tally: Tally, refill: int = 0) -> Rollout:
        """Return one scored group for each example, of all ranks."""
        self.progress.begin(index + 1, "rollout and rewards")
        own = None
        with self.session.saved_on_error(index):
            sampled = self.rollouts.further(rows, index, refill) if refill else self.rollouts.take(index)
            if sampled is not None:
                own = self.collector.score(sampled, tally)
        self.progress.begin(index + 1, "exchange of rollouts")
        return self.ranks.rollout(own)

    def _share(self, num_groups: int) -> slice:
        """Return the slice of the completions of some groups that this rank samples and scores. It
        holds whole groups, unless every completion is judged independently."""
        size = self.recipe.num_generations
        if self.scorer.judges_each:
            return self.ranks.share(num_groups * size)
        groups = self.ranks.share(num_groups)
        return slice(groups.start * size, groups.stop * size)

    def _metrics(self, rollout: Rollout, views: Views, tally: Tally) -> dict[str, Any]:
        tally.add("compute/token_passes", float(self.meter.take() * self.ranks.count))
        tally.add("compute/reward_calls", float(self.scorer.take() * self.ranks.count))
        if self.expert_use is not None:
            self.expert_use.take(tally)
        metrics: dict[str, Any] = tally.reduce(self.session.accelerator)
        metrics["diffusion/entropy_by_step"] = _rounded(entropy_by_step(rollout))
        if (selected := selected_by_step(rollout.trajectory, views)).any():
            metrics["diffusion/selected_by_step"] = _rounded(selected)
        return metrics

    def _evaluation(self, step: int) -> dict[str, Any]:
        setting = self.recipe.evaluation
        started = time.perf_counter()
        metrics: dict[str, Any] = {}
        self.rollouts.wait()
        self.evaluation_engine.update_weights(self.denoiser, step)
        for temperature in setting.temperatures:
            result = evaluate(
                self.evaluation_engine,
                self.recipe.task,
                self.scorer,
                self.eval_rows,
                self.recipe.evaluation_sampler(temperature),
                seed=self.recipe.seed,
                processes=self.ranks,
            )
            numbers = {name: getattr(result, name) for name in EVALUATION_NUMBERS}
            metrics |= EvaluationPoint(setting.split, f"{temperature:g}", **numbers).metrics()
        return metrics | {"time/evaluation": time.perf_counter() - started}

    def _save_best(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Save the model in best/ if no earlier validation accuracy is as high, and return metrics
        of the best evaluation."""
        if (best := better(self.best, step, metrics)) is not None:
            self.session.save_best(step)
            self.best = best
        return self.best.metrics() if self.best and validation_accuracy(metrics) is not None else {}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def servers_of(session: Session, recipe: TrainRecipe) -> Servers:
    """Return the servers of a recipe. All ranks call this.

    Raises:
        ConfigError: the folder of the weights is missing, or a package is.
    """
    engine = recipe.rollout_engine
    if find_spec("httpx2") is None:
        raise ConfigError(
            'rollout_engine.type = http needs httpx2, which is not installed: pip install "unmask[serve]"'
        )
    assert engine.weights_dir is not None
    weights = PublishedWeights(session, Path(engine.weights_dir), is_whole=engine.server == "sglang")
    patience = Patience(engine.timeout, engine.max_wait, engine.retries)
    return Servers(
        [Server(url, patience) for url in engine.urls],
        weights,
        session.policy.denoiser,
        is_ours=engine.server == "unmask",
        alive=session.progress.alive,
    )
