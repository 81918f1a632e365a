"""The parts of a run that training and pretraining share: its ranks, run folder, progress, signals,
checkpoints and final model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from unmask.core.errors import RolloutError, RunError, UnmaskError
from unmask.evaluation.model_card import push
from unmask.evaluation.usable import Usable
from unmask.models.device import precision_on, weights_dtype
from unmask.models.from_run import adapter_in, locate
from unmask.recipes.load import completed
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.runs.atomic import disk_faults_explained
from unmask.runs.environment import origin_of
from unmask.runs.folder import RunFolder
from unmask.runs.metrics import evaluations, read_metrics
from unmask.trainer.distributed.accelerator import finish_trackers, make_accelerator, start_trackers
from unmask.trainer.distributed.progress import Progress, lost_ranks_explained
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import prepare
from unmask.trainer.distributed.state import RunState
from unmask.trainer.distributed.stopping import RunStoppedError, StopSignals
from unmask.trainer.out_of_memory import memory_explained
from unmask.trainer.policy import TrainedPolicy
from unmask.trainer.spending import Spending

Observer = Callable[[int, dict[str, Any]], None]
"""Function that the main rank calls for each line of metrics, with the training step and the
metrics. Steps count from 1; 0 stands for the state before the first step."""

logger = logging.getLogger("unmask")

RecipeType = TypeVar("RecipeType", TrainRecipe, PretrainRecipe)


class Steps(Protocol):
    """The work of a run between two checkpoints."""

    def step(self, index: int) -> dict[str, Any]:
        """Do the training step `index`, counted from 0, and return its metrics.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; all ranks raise it, and the
                weights have not changed since the last complete update.
            RolloutError: a rollout differs too much from the policy; all ranks raise it, and the
                weights have not changed in this step.
        """
        ...

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return the metrics of the evaluation that is due after `step` training steps; empty if
        none is due."""
        ...


class Member:
    """One rank of a run before its set-up: its accelerator, its progress, and its exchange with the
    other ranks.

    Args:
        recipe: settings of the run.
        default: path of the run folder if the recipe names none.
    """

    def __init__(self, recipe: TrainRecipe | PretrainRecipe, default: str) -> None:
        self.path = Path(recipe.output_dir or default)
        self.accelerator = make_accelerator(recipe)
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        self.progress = Progress(index, count, recipe.stuck_timeout, self.path)
        self.ranks = Ranks(self.accelerator, self.progress.collective)
        self._recipe = recipe

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Open the block that sets up the run, with the same watch over the ranks, and the same
        advice for errors, as the run itself has."""
        lost = lost_ranks_explained(self.ranks.count)
        full = memory_explained(self.progress, self._recipe, self.accelerator, lambda: "what was saved is complete")
        with self.progress.set_up(), lost, full:
            yield

    def tell(self, sentence: str) -> None:
        """Log a sentence once for all ranks; nothing if it is empty."""
        if sentence and self.accelerator.is_main_process:
            logger.warning(sentence)

    def fixed(self, recipe: RecipeType) -> RecipeType:
        """Return the recipe with the path to which the model's name resolves now, with the
        precision that suits the device, and with a task whose rows a resumed run can read again.

        The run folder records this recipe, so that a resumed run does not start from another
        checkpoint or other examples, and does not change its precision.
        """
        update: dict[str, Any] = {"task": recipe.task.kept_in(self.path)}
        update["precision"] = precision_on(self.accelerator.device, recipe.precision)
        if recipe.model is not None:
            update["model"] = locate(recipe.model)
        return recipe.model_copy(update=update)

    def open_folder(self, recipe: TrainRecipe | PretrainRecipe, usable: Usable, *, resume: bool) -> RunFolder:
        """Create the run folder or, with `resume`, open it again.

        Raises:
            RunError: the folder cannot be used; see `RunFolder`.
        """
        source = recipe.task.provenance()
        folder = RunFolder(
            self.path,
            recipe.model_dump(mode="json"),
            resume=resume,
            is_main=self.accelerator.is_main_process,
            data=source | usable.record() if source else source,
            completed=completed(type(recipe)),
            working=self.progress.alive,
        )
        if folder.is_main:
            try:
                with disk_faults_explained(self.path):
                    recipe.task.write_rows(self.path)
            except BaseException:
                folder.close()
                raise
        return folder


class Session:
    """A run from its first step, or its newest checkpoint, to its final model.

    Args:
        member: this rank.
        recipe: settings of the run.
        folder: run folder.
        policy: the model with its optimizers.
        card: function that makes the text of the final model's card, from the metrics and from
            notes on how the run was extended.
        remedy: advice for a loss or a gradient that is not finite, as the end of a sentence.
        saves_last: True to save a checkpoint after the last step even if `save_steps` does not
            divide the number of steps.
        observe: function that is called for each line of metrics.
    """

    def __init__(
        self,
        member: Member,
        recipe: TrainRecipe | PretrainRecipe,
        folder: RunFolder,
        policy: TrainedPolicy,
        card: Callable[[list[dict[str, Any]], list[str]], str],
        remedy: str,
        *,
        saves_last: bool,
        observe: Observer | None = None,
    ) -> None:
        self.accelerator, self.progress, self.ranks = member.accelerator, member.progress, member.ranks
        self.recipe, self.folder, self.policy = recipe, folder, policy
        self.card, self.remedy, self.saves_last, self.observe = card, remedy, saves_last, observe
        self.model, self.optimizers = prepare(self.accelerator, policy.denoiser, policy.optimizers)
        self.state = RunState(
            self.accelerator,
            policy.denoiser,
            self.model,
            self.optimizers,
            recipe.optim,
            policy.kept(recipe),
            policy.describe,
            self.ranks,
        )
        self.progress.count_forwards(policy.denoiser)
        self.signals = StopSignals()
        self.spending = Spending(recipe)
        """Token passes of the training steps that are done."""

    def run(self, begin: Callable[[], Steps]) -> Path:
        """Run to the end and return the run folder. A finished run stays as it is.

        Args:
            begin: function that returns the steps; it is called after the newest checkpoint has
                been loaded.

        Raises:
            RunStoppedError: a signal stopped the run after a saved step.
            UnmaskError: an error for the user; the state before the step that failed is saved.
        """
        try:
            lost = lost_ranks_explained(self.ranks.count)
            full = memory_explained(self.progress, self.recipe, self.accelerator, self._saved)
            with self.signals, self.progress, lost, full:
                self.progress.begin(0, "start")
                if not self._is_finished():
                    self._run(begin)
            # Every other rank has ended, so none waits for the upload.
            if self.recipe.push_to_hub and self.folder.is_main:
                push(self.folder.final, self.recipe.push_to_hub)
        finally:
            self.folder.close()
        return self.folder.path

    def _run(self, begin: Callable[[], Steps]) -> None:
        step = self.state.resume(self.folder)
        with self.ranks.agreed():
            self.folder.open_metrics(step)
            is_evaluated = self.folder.is_main and self._is_evaluated(step)
            spending = self._recorded() if self.folder.is_main else self.spending
            if self.folder.is_main and (origin := origin_of(self.policy.denoiser)):
                self.folder.add_facts(origin=origin)
        start_trackers(self.accelerator, self.recipe, self.folder, step)
        is_evaluated, self.spending = self.ranks.from_main((is_evaluated, spending))
        steps = begin()
        if not is_evaluated:
            self._log(step, steps.evaluate(step))
        while not self.is_over(step):
            metrics = self._step(steps, step)
            step += 1
            self._log(step, metrics)
            self.spending.add(metrics)
            self._log(step, steps.evaluate(step))
            if step % self.recipe.save_steps == 0 or (self.saves_last and self.is_over(step)):
                self._save(step)
            self._stop_on_signal(step)
        self._save_final(step)
        finish_trackers(self.accelerator)

    def is_over(self, step: int) -> bool:
        """Return whether the run ends after `step` training steps: these are all of its steps, or the
        rest of its token passes does not pay for another one."""
        return step >= self.recipe.max_steps or self.spending.is_over

    def save_best(self, step: int) -> None:
        """Write the policy after `step` training steps to best/, from which `load_model` reads it.
        All ranks call this.

        Of a policy with adapters only the adapter is written, because merging an adapter into a
        large model takes minutes. The end of the run merges the adapter once.
        """
        self.progress.begin(step, "writing best/")
        has_adapters = self.policy.adapters is not None
        weights = self.state.adapter_weights() if has_adapters else self.whole_weights()
        with self.ranks.agreed():
            if self.folder.is_main:
                with self._written(self.folder.best) as folder:
                    if has_adapters:
                        self.policy.save_adapter(folder, weights)
                    else:
                        self.policy.save(folder, weights)

    def _save_final(self, last: int) -> None:
        """Write the final model, of the step `last`, with its card, and then merge the adapter in
        best/, if there is one, into the same frozen weights. All ranks call this, because the
        weights may be sharded."""
        best = self.folder.best
        self.progress.begin(last, "writing final/")
        weights = self.whole_weights()
        with self.ranks.agreed():
            if self.folder.is_main:
                with self._written(self.folder.final) as folder:
                    self.policy.save(folder, weights, working=self.progress.alive)
                    card = self.card(read_metrics(self.folder.path), list(self.folder.facts.get("extended", ())))
                    (folder / "README.md").write_text(card, encoding="utf-8")
                self.folder.add_facts(final_step=last)
        self.progress.begin(last, "writing best/")
        with self.ranks.agreed():
            if self.folder.is_main and (adapter := adapter_in(best)) is not None:
                with self._written(best) as folder:
                    self.policy.save(folder, weights, adapter, self.progress.alive)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """Gather the weights in the precision of the run; see `RunState.whole_weights`."""
        return self.state.whole_weights(weights_dtype(self.accelerator.device, self.recipe.precision))

    @contextmanager
    def _written(self, target: Path) -> Iterator[Path]:
        """Yield a folder that replaces `target` if the block ends without an error. Every byte in it
        counts as progress."""
        with self.folder.written_aside(target) as folder, self.progress.writing(folder):
            yield folder

    @contextmanager
    def saved_on_error(self, step: int) -> Iterator[None]:
        """Run a block; if it raises an error for the user on any rank, save the state after `step`
        and stop all ranks."""
        try:
            with self.ranks.agreed():
                yield
        except UnmaskError as error:
            self._save(step)
            if step:
                error.add_note(f"The state after step {step} is saved. Correct the error, then add --resume.")
            raise

    def _step(self, steps: Steps, index: int) -> dict[str, Any]:
        try:
            return steps.step(index)
        except RolloutError as error:
            error.add_note(f"This is step {index + 1}. Nothing was overwritten; {self._saved()}.")
            raise
        except FloatingPointError as error:
            raise RunError(
                f"step {index + 1}: {error}. Nothing was overwritten; {self._saved()}. A resumed run would fail in the same "
                f"way: start a new run in another output_dir, with {self.remedy}.",
                agreed=True,
            ) from error

    def _saved(self) -> str:
        """Return a clause about the newest checkpoint, for messages."""
        last = self.folder.last_step()
        return f"the checkpoint of step {last} is complete" if last else "there is no checkpoint yet"

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a line of metrics, unless it is empty."""
        if not metrics:
            return
        with self.ranks.agreed():
            self.folder.log({"step": step} | metrics)
        if not self.folder.is_main:
            return
        if self.recipe.report_to:
            self.accelerator.log({key: value for key, value in metrics.items() if isinstance(value, float)}, step=step)
        if self.observe is not None:
            self.observe(step, metrics)

    def _save(self, step: int) -> None:
        """Write a checkpoint of the state after `step`. Step 0 is the model that the run starts
        from, and needs no checkpoint."""
        if step:
            self.progress.begin(step, "writing a checkpoint")
            self.state.save(self.folder, step, self.recipe.save_total_limit)

    def _stop_on_signal(self, step: int) -> None:
        received = self.ranks.largest(self.signals.received)
        if received and not self.is_over(step):
            self._save(step)
            raise RunStoppedError(step, self.recipe.max_steps, self.folder.path, received)

    def _recorded(self) -> Spending:
        """Return the token passes of the steps in the metrics."""
        return Spending(self.recipe, read_metrics(self.folder.path))

    def _is_evaluated(self, step: int) -> bool:
        """Return whether the metrics hold an evaluation after this step. The evaluation is missing
        if it failed."""
        lines = read_metrics(self.folder.path)
        return any(line["step"] == step and evaluations(line) for line in lines)

    def _is_finished(self) -> bool:
        """Return whether there is a final model after the last step. If `max_steps` was increased, the
        final model may have fewer steps."""
        is_finished = False
        with self.ranks.agreed():
            if self.folder.is_main and (self.folder.final / "config.json").is_file():
                lines = read_metrics(self.folder.path) if self.folder.metrics_path.exists() else []
                # Runs of earlier versions do not record the step of the final model.
                last = self.folder.facts.get("final_step", lines[-1]["step"] if lines else self.recipe.max_steps)
                is_finished = last >= self.recipe.max_steps or Spending(self.recipe, lines).is_over
        return self.ranks.from_main(is_finished)
