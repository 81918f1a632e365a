"""The run: steps, evaluations, checkpoints, signals. What a step does is in `experience` and `learn`."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from unmask.errors import ConfigError, DataError, RunError, UnmaskError
from unmask.evaluate import evaluate
from unmask.functional.noise import named_generator
from unmask.models import load_model, save_model
from unmask.recipe import TrainRecipe
from unmask.records import Rollout
from unmask.rollout import decode
from unmask.run_folder import RunFolder, full_disk_explained
from unmask.score import RewardFunc, Scorer, load_reward
from unmask.trainer.experience import collect, entropy_by_step, prompts_of_step
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally, TokenPasses

Observer = Callable[[int, dict[str, Any]], None]
"""Called on the main process with the step (from 1; 0 is before the first) and its metrics."""


class RunStoppedError(RunError):
    """The run was asked to stop; it finished its step and saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Trainer:
    """Trains a denoiser as a recipe says.

    Args:
        recipe: the run's settings.
        reward_funcs: reward functions to use instead of the recipe's or the task's.
        resume: go on from the newest checkpoint of the run folder.
        observe: called after every step.

    Raises:
        UnmaskError: whatever of the recipe, the model, the rows or the run folder cannot be used.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        reward_funcs: Sequence[RewardFunc] = (),
        *,
        resume: bool = False,
        observe: Observer | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.recipe = recipe
        self.observe = observe
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.report_to) or None,
            project_dir=recipe.output_dir,
        )
        processes = self.accelerator.num_processes
        if recipe.num_prompts % processes:
            raise ConfigError(
                f"num_prompts = {recipe.num_prompts} cannot be shared by {processes} processes: each owns whole groups. "
                f"Use a multiple of {processes}."
            )
        self.scorer = Scorer(_rewards(recipe, reward_funcs), recipe.reward_weights, recipe.reward_timeout)
        self.rows = recipe.task.rows("train", recipe.num_rows, recipe.seed)
        self.eval_rows = recipe.task.rows(recipe.evaluation.split, recipe.evaluation.num_rows, recipe.seed)
        if not self.rows or not self.eval_rows:
            raise DataError("the task has no rows to train on or none to evaluate on.")
        self.scorer.check_columns(self.rows[0])
        self.denoiser, self.tokenizer = load_model(recipe.model)
        reference = None
        if recipe.method.needs().reference != "none":
            reference = copy.deepcopy(self.denoiser).requires_grad_(False).to(self.accelerator.device)
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(),
            lr=recipe.optim.learning_rate,
            betas=recipe.optim.betas,
            weight_decay=recipe.optim.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.denoiser, optimizer)
        self.learner = Learner(self.accelerator, self.model, self.optimizer, reference, recipe)
        self.meter = TokenPasses(self.denoiser)
        self.folder = RunFolder(
            Path(recipe.output_dir or "runs/train"),
            recipe.model_dump(mode="json"),
            resume=resume,
            is_main=self.accelerator.is_main_process,
        )
        self._signal: int | None = None

    def train(self) -> Path:
        """Run to the end and return the run folder.

        Raises:
            RunStoppedError: SIGINT or SIGTERM; the step was finished and saved.
            UnmaskError: anything a user can mend; the state before the failing step was saved.
        """
        try:
            with self._signals(), self.accelerator.autocast():
                self._run()
        finally:
            self.folder.close()
        return self.folder.path

    def _run(self) -> None:
        recipe, folder = self.recipe, self.folder
        done = folder.last_step()
        if done:
            self.accelerator.load_state(str(folder.checkpoints()[-1]))
        folder.open_metrics(done if done else -1)
        if recipe.report_to:
            self.accelerator.init_trackers("unmask", config=_flat_for_trackers(recipe.model_dump(mode="json")))
        if not done:
            self._log(0, self._evaluation(0))
        for step in range(done, recipe.max_steps):
            metrics = self._step(step)
            metrics |= self._evaluation(step + 1)
            self._log(step + 1, metrics)
            if (step + 1) % recipe.save_steps == 0 or step + 1 == recipe.max_steps:
                self._save(step + 1)
            self._stop_if_asked(step + 1)
        if self.accelerator.is_main_process:
            with folder.written_aside(folder.final) as final:
                save_model(self.accelerator.unwrap_model(self.model), self.tokenizer, final)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _step(self, step: int) -> dict[str, Any]:
        """One step: collect and learn."""
        recipe, tally = self.recipe, Tally()
        self.meter.take()
        started = time.perf_counter()
        rows = prompts_of_step(self.rows, step, recipe.num_prompts, recipe.seed)
        per_process = recipe.num_prompts // self.accelerator.num_processes
        first = self.accelerator.process_index * per_process
        try:
            share = slice(first, first + per_process)
            rollout = collect(self.denoiser, self.tokenizer, self.scorer, recipe, rows, step, share, tally)
        except UnmaskError:
            # The policy is as the last step left it: nothing is lost.
            self._save(step)
            raise
        collected = time.perf_counter()
        self.learner.update(rollout, step, named_generator(recipe.seed, "update", step), tally)
        learnt = time.perf_counter()
        if recipe.log_rollouts_steps and (step + 1) % recipe.log_rollouts_steps == 0:
            self._keep(rollout, step + 1)
        tally.add("compute/token_passes", float(self.meter.take() * self.accelerator.num_processes))
        metrics: dict[str, Any] = tally.reduce(self.accelerator)
        metrics["diffusion/entropy_by_step"] = [round(value, 6) for value in entropy_by_step(rollout).tolist()]
        return metrics | {"time/rollout": collected - started, "time/update": learnt - collected}

    def _evaluation(self, step: int) -> dict[str, Any]:
        """Metrics of the evaluations that are due after `step`."""
        setting, recipe = self.recipe.evaluation, self.recipe
        is_due = step == recipe.max_steps or (setting.eval_steps and step % setting.eval_steps == 0)
        if not is_due or not self.accelerator.is_main_process:
            return {}
        started = time.perf_counter()
        metrics: dict[str, Any] = {}
        for temperature in setting.temperatures:
            result = evaluate(
                self.denoiser,
                self.tokenizer,
                recipe.task,
                self.scorer,
                self.eval_rows,
                recipe.sampler.model_copy(update={"temperature": temperature}),
                seed=recipe.seed,
                batch_size=setting.batch_size,
            )
            name = f"eval/{setting.split}@{temperature:g}"
            metrics |= {
                f"{name}/accuracy": result.accuracy,
                f"{name}/low": result.low,
                f"{name}/high": result.high,
                f"{name}/reward": result.reward,
            }
        return metrics | {"time/evaluation": time.perf_counter() - started}

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.log({"step": step} | metrics)
        if self.recipe.report_to:
            self.accelerator.log({k: v for k, v in metrics.items() if isinstance(v, float)}, step=step)
        if self.observe is not None:
            self.observe(step, metrics)

    def _save(self, step: int) -> None:
        """A checkpoint of the state after `step`; step 0 is the model that the run began with and needs none."""
        if not step:
            return

        def write(path: Path) -> None:
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(path))
            self.accelerator.wait_for_everyone()

        self.folder.save_checkpoint(step, write, self.recipe.save_total_limit)

    def _keep(self, rollout: Rollout, step: int) -> None:
        """Write a few groups of a rollout, with their texts, to rollouts/."""
        if not self.accelerator.is_main_process:
            return
        folder = self.folder.path / "rollouts"
        sample = rollout.groups(slice(0, self.recipe.log_rollouts_groups))
        texts = decode(self.tokenizer, sample.trajectory.tokens)
        with full_disk_explained(self.folder.path, self.folder.last_step()):
            folder.mkdir(exist_ok=True)
            sample.save(folder / f"step-{step:08d}.safetensors", {"completions": texts})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask the run to stop after its step; a second one ends it at once."""

        def ask(number: int, _frame: FrameType | None) -> None:
            self._signal = number
            signal.signal(number, previous[signal.Signals(number)])

        # Handlers can only be set by the main thread; elsewhere the caller owns the signals.
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        previous = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_if_asked(self, step: int) -> None:
        asked = self._signal or 0
        if self.accelerator.num_processes > 1:
            asked = int(self.accelerator.gather(torch.tensor([asked], device=self.accelerator.device)).max())
        if asked and step < self.recipe.max_steps:
            self._save(step)
            raise RunStoppedError(
                f"stopped after step {step} of {self.recipe.max_steps}; everything is in {self.folder.path}. "
                "Run the same command with --resume to go on.",
                asked,
            )


def _rewards(recipe: TrainRecipe, given: Sequence[RewardFunc]) -> Mapping[str, RewardFunc]:
    if given:
        return {getattr(function, "__name__", type(function).__name__): function for function in given}
    if recipe.reward_funcs:
        return dict(load_reward(path) for path in recipe.reward_funcs)
    return recipe.task.rewards()


def _flat_for_trackers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat_for_trackers(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
        )
    return flat
