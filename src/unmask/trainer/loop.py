"""The run: steps, evaluations, checkpoints, signals. What a step does is in `experience` and `learn`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.core.errors import ConfigError, DataError, RunError, UnmaskError
from unmask.core.files import read_json_object
from unmask.core.records import Rollout, Row
from unmask.evaluation.evaluate import evaluate
from unmask.evaluation.model_card import push, training_card
from unmask.evaluation.usable import faults_for, usable_rows
from unmask.functional.noise import named_generator
from unmask.models import Policy
from unmask.models.from_run import locate
from unmask.recipes.load import completed
from unmask.recipes.schema import TrainRecipe
from unmask.recipes.scorer import scorer_of
from unmask.rewards.protocol import RewardFunc
from unmask.runs.folder import RunFolder, disk_faults_explained
from unmask.runs.metrics import EvaluationPoint, read_metrics
from unmask.runs.saved_rollouts import Guesses, SavedRollout, saved_path
from unmask.sampling.engine import BatchLimits, LocalEngine, RolloutEngine
from unmask.sampling.generation import decode
from unmask.trainer.best import Best, best_in, better, validation_accuracy
from unmask.trainer.collect import Collector, check_rewards, entropy_by_step, prompts_of_step
from unmask.trainer.distributed.accelerator import finish_trackers, make_accelerator, start_trackers
from unmask.trainer.distributed.backend import is_sharded
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import prepare
from unmask.trainer.distributed.state import RunState
from unmask.trainer.distributed.stopping import RunStoppedError, StopSignals
from unmask.trainer.distributed.watchdog import Watchdog, losses_explained
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally, TokenPasses
from unmask.trainer.policy import make_policy
from unmask.trainer.recorder import guesses_of, scored, selected_by_step, to_keep
from unmask.trainer.token_budget import TokenBudget, find_token_budget

Observer = Callable[[int, dict[str, Any]], None]
"""Called on the main process with the step (from 1; 0 is before the first) and its metrics."""

UNLOGGED = "unlogged.json"
"""In a checkpoint: metrics of its step, which wait for an evaluation that failed."""

NO_SIGNAL_STEPS = 5
"""Steps in a row without a group whose rewards differ, after which a warning is due."""

_NO_SIGNAL = (
    f"for {NO_SIGNAL_STEPS} steps all completions of every prompt have had the same reward, so nothing is learnt. Usual "
    "causes: the answer is not found in the completion (look at rollouts/), the task is too hard or already solved, "
    "num_generations or sampler.temperature is too small."
)

logger = logging.getLogger("unmask")


class Trainer:
    """Trains a denoiser as a recipe says.

    Args:
        recipe: the run's settings.
        reward_funcs: reward functions, or paths of some, to use instead of the recipe's or the task's.
        resume: go on from the newest checkpoint of the run folder.
        observe: called after every step.
        example: called in every step with a completion and its reward, on the main process.
        engine: samples the rollouts and evaluations; default a `LocalEngine`.

    Raises:
        UnmaskError: whatever of the recipe, the model, the rows or the run folder cannot be used.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        reward_funcs: Sequence[str | RewardFunc] = (),
        *,
        resume: bool = False,
        observe: Observer | None = None,
        example: Callable[[str, float], None] | None = None,
        engine: RolloutEngine | None = None,
    ) -> None:
        self.recipe = recipe
        self.observe, self.example, self.given_engine = observe, example, engine
        accelerator = self.accelerator = make_accelerator(recipe)
        place = Path(recipe.output_dir or "runs/train")
        rank, count = accelerator.process_index, accelerator.num_processes
        self.watchdog = Watchdog(rank, count, recipe.stuck_timeout, place)
        self.ranks = Ranks(accelerator, self.watchdog.meet)
        with self.ranks.agreed():
            # Recorded as what it stands for now, so that a resumed run does not start from another checkpoint or other rows.
            kept = {"model": locate(recipe.model), "task": recipe.task.kept_in(place)}
            self.recipe = recipe = recipe.model_copy(update=kept)
            self._set_up(recipe, reward_funcs, resume)
        # From here on every process does the same, and what it does is collective.
        self.model, [self.optimizer] = prepare(accelerator, self.denoiser, [self.policy.optimizer])
        self.state = RunState(
            accelerator,
            self.denoiser,
            self.model,
            [self.optimizer],
            recipe.optim,
            self.policy.kept(recipe),
            self.policy.describe,
            self.ranks,
        )
        # Where the reference is another module, what it spends counts too.
        self.meter = TokenPasses(self.denoiser, *(self.policy.reference.modules() if self.policy.reference else []))
        self.watchdog.count_forwards(self.denoiser)
        self.signals = StopSignals()
        self.best: Best | None = None
        self.room = TokenBudget()

    def _set_up(self, recipe: TrainRecipe, reward_funcs: Sequence[str | RewardFunc], resume: bool) -> None:
        """All that a user can get wrong, before processes wait for each other."""
        processes = self.ranks.count
        if processes > 1 and recipe.stuck_timeout <= recipe.reward_timeout:
            raise ConfigError(
                f"stuck_timeout = {recipe.stuck_timeout:g} s would end the run while a call of the rewards may still take "
                f"reward_timeout = {recipe.reward_timeout:g} s. Set stuck_timeout higher."
            )
        if recipe.num_prompts % processes:
            raise ConfigError(
                f"num_prompts = {recipe.num_prompts} cannot be shared by {processes} processes: each owns whole groups. "
                f"Use a multiple of {processes}."
            )
        self.scorer = scorer_of(recipe, reward_funcs, self.watchdog.live)
        check_rewards(self.scorer, recipe.method)
        candidates = {
            "train": recipe.task.candidates("train", recipe.num_rows, recipe.seed),
            "evaluation": recipe.task.candidates(recipe.evaluation.split, recipe.evaluation.num_rows, recipe.seed),
        }
        for pool in candidates.values():
            if not pool.rows:
                raise DataError("the task has no rows to train on or none to evaluate on.")
            self.scorer.check_columns(pool.rows[0])
        self.policy = make_policy(recipe, self.accelerator.device)
        self.denoiser, self.tokenizer = self.policy.denoiser, self.policy.tokenizer
        length, is_own = recipe.sampler.max_completion_length, not (reward_funcs or recipe.reward_funcs)
        faults_of = faults_for(recipe.task, self.denoiser, self.tokenizer, length, needs_answer=is_own)
        usable = usable_rows(candidates, faults_of)
        self.rows, self.eval_rows = usable.rows["train"], usable.rows["evaluation"]
        source = recipe.task.provenance()
        if recipe.sync_ref_model and is_sharded(self.accelerator):
            raise ConfigError(
                "sync_ref_model moves whole weights, and this preset keeps them in shards. Use ddp or zero2, or set it to false."
            )
        self.folder = RunFolder(
            Path(recipe.output_dir or "runs/train"),
            recipe.model_dump(mode="json"),
            resume=resume,
            is_main=self.accelerator.is_main_process,
            data=source | usable.record() if source else source,
            completed=completed(TrainRecipe),
            working=self.watchdog.live,
        )
        if self.folder.is_main:
            with disk_faults_explained(self.folder.path):
                recipe.task.write_rows(self.folder.path)

    def train(self) -> Path:
        """Run to the end and return the run folder.

        Raises:
            RunStoppedError: SIGINT, SIGTERM, SIGHUP or SIGUSR1; the step was finished and saved.
            UnmaskError: anything a user can mend; the state before the failing step was saved.
        """
        try:
            with self.signals, losses_explained(self.ranks.count), self.watchdog:
                self._run()
            # The other processes have ended, and nobody is held up.
            if self.recipe.push_to_hub and self.accelerator.is_main_process:
                push(self.folder.final, self.recipe.push_to_hub)
        finally:
            self.folder.close()
            self.scorer.close()
        return self.folder.path

    def _run(self) -> None:
        recipe, folder = self.recipe, self.folder
        done = self.state.resume(folder)
        # Only the main process need see the folder.
        unlogged = self.ranks.from_main(self._unlogged() if done and folder.is_main else {})
        with self.ranks.agreed():
            folder.open_metrics(done if unlogged is None else done - 1)
        self.best = self.ranks.from_main(best_in(folder.path) if folder.is_main else None)
        start_trackers(self.accelerator, recipe, folder, done if unlogged is None else done - 1)
        self.room = find_token_budget(recipe, self.policy, self.accelerator, self.rows, folder.path)
        self._make_halves()
        if unlogged is not None and (metrics := unlogged | self._evaluation(done, unlogged)):
            self._log(done, metrics)
        without_signal = 0
        for step in range(done, recipe.max_steps):
            metrics = self._step(step)
            # A method that compares nothing within a group learns from groups of one reward, too.
            is_silent = recipe.method.needs().group and metrics.get("frac_reward_zero_std") == 1
            without_signal = without_signal + 1 if is_silent else 0
            if without_signal == NO_SIGNAL_STEPS:
                logger.warning(_NO_SIGNAL)
            self._log(step + 1, metrics | self._evaluation(step + 1, metrics))
            if (step + 1) % recipe.save_steps == 0 or step + 1 == recipe.max_steps:
                self._save(step + 1)
            self._stop_if_asked(step + 1)
        self._save_model(folder.final)
        finish_trackers(self.accelerator)

    def _make_halves(self) -> None:
        """Make the two halves of a training step, and the engines of rollouts and evaluations, which may be the given one."""
        tokens, recipe = self.room.rollout, self.recipe
        lockstep = partial(self.ranks.lockstep, self.denoiser)
        policy = Policy(self.denoiser, self.tokenizer)
        self.engine, self.evaluation_engine = (
            self.given_engine or LocalEngine(policy, BatchLimits(size, tokens), lockstep)
            for size in (recipe.rollout_batch_size, recipe.evaluation.batch_size)
        )
        self.collector = Collector(self.engine, self.scorer, recipe)
        self.learner = Learner(
            self.accelerator,
            self.model,
            self.optimizer,
            self.policy.reference,
            recipe,
            self.room.update,
            self.ranks,
        )

    def _step(self, step: int) -> dict[str, Any]:
        """One training step: collect a rollout and learn from it."""
        recipe, tally = self.recipe, Tally()
        self.meter.take()
        self.scorer.take()
        started = time.perf_counter()
        rows = prompts_of_step(self.rows, step, recipe.num_prompts, recipe.seed)
        self.watchdog.begin(step + 1, "rollout and rewards")
        with self._saved_on_mistake(step):
            self.engine.update_weights(self.denoiser, step)
            own = self.collector.collect(rows, step, self.ranks.share(len(rows)), tally)
        self.watchdog.begin(step + 1, "exchange of rollouts")
        rollout = self.ranks.rollout(own)
        collected = time.perf_counter()
        if self.example is not None and self.accelerator.is_main_process:
            self.example(decode(self.tokenizer, rollout.trajectory.tokens[:1])[0], float(rollout.reward[0]))
        is_kept = bool(recipe.log_rollouts_steps) and (step + 1) % recipe.log_rollouts_steps == 0
        guesses = self._guesses(rollout, rows) if is_kept else None
        looked = time.perf_counter()
        try:
            self.watchdog.begin(step + 1, "update")
            generator = named_generator(recipe.seed, "update", step)
            views, advantage = self.learner.update(rollout, step, generator, tally)
        except FloatingPointError as error:
            last = self.folder.last_step()
            kept = f"the checkpoint of step {last} is good" if last else "there was no checkpoint yet"
            fault = RunError(
                f"step {step + 1}: {error}. Nothing was overwritten; {kept}. Resuming would come to the same: train anew, "
                "with a smaller optim.learning_rate or a larger method.beta, in another output_dir."
            )
            # All processes took part in the failing update.
            fault.is_agreed = True
            raise fault from error
        learnt = time.perf_counter()
        if is_kept:
            sample, rows = self._sample(rollout), rows[: recipe.log_rollouts_groups]
            with self.ranks.agreed():
                if self.folder.is_main:
                    self._keep(to_keep(sample, rows, self.tokenizer, guesses, views, advantage), step + 1)
        tally.add("compute/token_passes", float(self.meter.take() * self.ranks.count))
        tally.add("compute/reward_calls", float(self.scorer.take() * self.ranks.count))
        metrics: dict[str, Any] = tally.reduce(self.accelerator)
        metrics["diffusion/entropy_by_step"] = _rounded(entropy_by_step(rollout))
        if (selected := selected_by_step(rollout.trajectory, views)).any():
            metrics["diffusion/selected_by_step"] = _rounded(selected)
        times = {"time/rollout": collected - started, "time/update": learnt - looked}
        return metrics | times | ({"time/guesses": looked - collected} if is_kept else {})

    def _evaluation(self, step: int, unlogged: dict[str, Any]) -> dict[str, Any]:
        """Metrics of the evaluations that are due after `step`; if they fail, the `unlogged` ones of the step are kept."""
        setting = self.recipe.evaluation
        if step != self.recipe.max_steps and (not setting.eval_steps or step % setting.eval_steps):
            return {}
        self.watchdog.begin(step, "evaluation")
        with self._saved_on_mistake(step, unlogged):
            metrics = self._evaluate(step)
        return metrics | self._keep_best(step, metrics)

    def _evaluate(self, step: int) -> dict[str, Any]:
        setting, recipe = self.recipe.evaluation, self.recipe
        started = time.perf_counter()
        metrics: dict[str, Any] = {}
        self.evaluation_engine.update_weights(self.denoiser, step)
        for temperature in setting.temperatures:
            result = evaluate(
                self.evaluation_engine,
                recipe.task,
                self.scorer,
                self.eval_rows,
                recipe.sampler.model_copy(update={"temperature": temperature}),
                seed=recipe.seed,
                processes=self.ranks,
            )
            point = EvaluationPoint(
                setting.split, f"{temperature:g}", result.accuracy, result.low, result.high, result.reward
            )
            metrics |= point.metrics()
        return metrics | {"time/evaluation": time.perf_counter() - started}

    def _keep_best(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Keep the model in best/ if no validation accuracy so far was as high; say which step has the highest."""
        if (found := better(self.best, step, metrics)) is not None:
            self._save_model(self.folder.best)
            self.best = found
        return self.best.metrics() if self.best and validation_accuracy(metrics) is not None else {}

    def _save_model(self, target: Path) -> None:
        """A folder that `load_model` reads, complete or absent; its weights are gathered from wherever they are."""
        self.watchdog.begin(self.recipe.max_steps, f"writing {target.name}/")
        weights = self.state.whole_weights()
        with self.ranks.agreed():
            if self.folder.is_main:
                with self.folder.written_aside(target) as folder:
                    self.policy.save(folder, weights)
                    if target == self.folder.final:
                        lines, notes = read_metrics(self.folder.path), self.folder.facts.get("extended", ())
                        card = training_card(self.recipe, lines, self.folder.data, self.eval_rows, self.denoiser, notes)
                        (folder / "README.md").write_text(card, encoding="utf-8")

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        with self.ranks.agreed():
            self.folder.log({"step": step} | metrics)
        if not self.folder.is_main:
            return
        if self.recipe.report_to:
            self.accelerator.log({k: v for k, v in metrics.items() if isinstance(v, float)}, step=step)
        if self.observe is not None:
            self.observe(step, metrics)

    @contextmanager
    def _saved_on_mistake(self, step: int, unlogged: dict[str, Any] | None = None) -> Iterator[None]:
        """If a user's mistake shows on any process, save the state after `step`, which is what there is, and stop them all."""
        try:
            with self.ranks.agreed():
                yield
        except UnmaskError as mistake:
            self._save(step, unlogged)
            if step:
                mistake.add_note(f"The state after step {step} is saved: mend this, then add --resume.")
            raise

    def _save(self, step: int, unlogged: dict[str, Any] | None = None) -> None:
        """A checkpoint of the state after `step`; step 0 is the model that the run began with and needs none."""
        if not step:
            return
        self.watchdog.begin(step, "writing a checkpoint")
        notes = {} if unlogged is None else {UNLOGGED: json.dumps(unlogged)}
        self.state.save(self.folder, step, self.recipe.save_total_limit, notes)

    def _unlogged(self) -> dict[str, Any] | None:
        """Metrics of the newest checkpoint's step that are not in metrics.jsonl for want of an evaluation, if so."""
        path = self.folder.checkpoints()[-1] / UNLOGGED
        return read_json_object(path) if path.exists() else None

    def _sample(self, rollout: Rollout) -> Rollout:
        """The groups of a rollout that are kept."""
        return rollout.groups(slice(0, self.recipe.log_rollouts_groups))

    def _guesses(self, rollout: Rollout, rows: Sequence[Row]) -> Guesses | None:
        """The greedy one-step completions along the kept paths, by the policy before the update; scored where they are kept.

        Looking is not charged to the method: neither token passes nor reward calls count.
        """
        recipe, spent = self.recipe, self.meter.count
        path = self._sample(rollout).trajectory
        # Every process runs the same forwards: sharded weights are gathered by all.
        width = path.prompt_ids.shape[1] + path.tokens.shape[1]
        together = self.room.rollout // width if self.room.rollout else recipe.rollout_batch_size
        guesses = guesses_of(self.denoiser, path, recipe.log_rollouts_guesses, together)
        self.meter.count = spent
        if guesses is None or not self.accelerator.is_main_process:
            return guesses
        of_row = [row for row in rows[: recipe.log_rollouts_groups] for _ in range(rollout.group_size)]
        return scored(guesses, self.scorer, self.tokenizer, of_row)

    def _keep(self, sample: SavedRollout, step: int) -> None:
        """Save the rollout of a step, as far as it is kept."""
        with disk_faults_explained(self.folder.path, self.folder.last_step()):
            sample.save(saved_path(self.folder.path, step))

    def _stop_if_asked(self, step: int) -> None:
        asked = self.ranks.largest(self.signals.asked)
        if asked and step < self.recipe.max_steps:
            self._save(step)
            raise RunStoppedError(step, self.recipe.max_steps, self.folder.path, asked)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
