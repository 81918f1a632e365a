"""Recorder that saves the first groups of a rollout for the report: their texts, one-step guesses
along their paths, and the views (masked versions of a completion) that the update trained on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import RewardError
from unmask.core.records import Rollout, Row, Trajectory, Views
from unmask.models import Denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.rewards.scorer import Scorer
from unmask.runs.atomic import disk_faults_explained
from unmask.runs.folder import RunFolder
from unmask.runs.saved_rollouts import Guesses, SavedRollout, TrainedViews, saved_path
from unmask.sampling.encoding import decode
from unmask.sampling.one_step import one_step_completions
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import TokenPasses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class _Recording:
    """A rollout that is being recorded, between `before_update` and `after_update`."""

    step: int
    """Training step, from 1."""
    rollout: Rollout
    """The groups that are saved."""
    rows: Sequence[Row]
    """One example for each of these groups."""
    guesses: Guesses | None


class RolloutRecorder:
    """Saves the first groups of every `log_rollouts_steps`-th rollout. Recording changes neither
    the results of the run nor its counts of compute.

    Args:
        recipe: settings of the run.
        tokenizer: tokenizer of the model.
        scorer: reward functions of the run.
        meter: counter of token passes.
        folder: run folder.
        ranks: ranks of the run.
        max_tokens: rows times tokens in one forward pass; None limits the rows to
            `rollout_batch_size` instead.
        weights: function that opens a block and provides the denoiser that rollouts sample from.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        tokenizer: PreTrainedTokenizerBase,
        scorer: Scorer,
        meter: TokenPasses,
        folder: RunFolder,
        ranks: Ranks,
        max_tokens: int | None,
        weights: Callable[[], AbstractContextManager[Denoiser]],
    ) -> None:
        self.recipe, self.tokenizer, self.scorer, self.meter = recipe, tokenizer, scorer, meter
        self.folder, self.ranks, self.max_tokens, self.weights = folder, ranks, max_tokens, weights
        self._recording: _Recording | None = None

    def before_update(self, rollout: Rollout, rows: Sequence[Row], step: int) -> dict[str, float]:
        """Store a rollout, and compute one-step guesses (each fills all masked positions of a state
        at once) with the policy that sampled it. All ranks call this.

        Args:
            rollout: rollout of all ranks.
            rows: examples of the training step, one for each group.
            step: training step, from 1.

        Returns:
            The metric `time/guesses`; empty if this step is not recorded.
        """
        if not self.recipe.log_rollouts_steps or step % self.recipe.log_rollouts_steps:
            return {}
        started, groups = time.perf_counter(), slice(0, self.recipe.log_rollouts_groups)
        sample, rows = rollout.groups(groups), rows[groups]
        self._recording = _Recording(step, sample, rows, self._guesses(sample, rows))
        return {"time/guesses": time.perf_counter() - started}

    def after_update(self, views: Views, advantage: Tensor) -> None:
        """Save the rollout with what the update trained on. All ranks call this, and the main rank
        writes.

        Args:
            views: views of the whole training step.
            advantage: [N] or [N, M], advantage of each view.

        Raises:
            RunError: the disk is full or cannot be written. All ranks raise the error.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            return
        with self.ranks.agreed():
            if self.folder.is_main:
                saved = saved_rollout(
                    recording.rollout, recording.rows, self.tokenizer, recording.guesses, views, advantage
                )
                with disk_faults_explained(self.folder.path, self.folder.last_step()):
                    saved.save(saved_path(self.folder.path, recording.step))

    def _guesses(self, sample: Rollout, rows: Sequence[Row]) -> Guesses | None:
        """Return the one-step guesses, with rewards on the main rank only."""
        path = sample.trajectory
        # All ranks run the same forward passes, because with sharded weights each pass needs all of
        # them.
        width = path.prompt_ids.shape[1] + path.tokens.shape[1]
        batch_size = self.max_tokens // width if self.max_tokens else self.recipe.rollout_batch_size
        with self.meter.paused(), self.weights() as denoiser:
            guesses = guesses_along(denoiser, path, self.recipe.log_rollouts_guesses, batch_size)
        if guesses is None or not self.folder.is_main:
            return guesses
        with self.scorer.paused():
            return _scored(guesses, self.scorer, self.tokenizer, [r for r in rows for _ in range(sample.group_size)])


def guesses_along(denoiser: Denoiser, path: Trajectory, count: int, batch_size: int) -> Guesses | None:
    """Return the one-step completions at evenly spaced denoising steps, without rewards; None if
    `count` is 0.

    Args:
        denoiser: the policy that sampled the path.
        path: trajectory of the saved groups.
        count: number of denoising steps; all steps if the path has fewer.
        batch_size: completions that the rollout denoised together. The guesses never compute more
            logits at a time than the rollout did.
    """
    if not count:
        return None
    last = int(path.horizon.max()) - 1
    steps = range(last + 1) if count > last else sorted({round(last * i / max(count - 1, 1)) for i in range(count)})
    was_training = denoiser.training
    denoiser.eval()
    states = max(1, batch_size * path.sampler.block // path.tokens.shape[1])
    tokens = one_step_completions(denoiser, path, steps, batch_size=states)
    denoiser.train(was_training)
    return Guesses(torch.tensor(list(steps), dtype=torch.int32), tokens)


def _scored(guesses: Guesses, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> Guesses:
    """Return the guesses with their rewards; without rewards if a reward function fails or compares
    the completions of a group.

    Args:
        guesses: one-step completions of B completions.
        scorer: reward functions of the run.
        tokenizer: tokenizer of the model.
        rows: B examples, one for each completion.
    """
    if not scorer.judges_each:
        return guesses
    shape = guesses.tokens.shape[:2]
    row_of_guess = [row for row in rows for _ in range(shape[1])]
    try:
        total = scorer.unfinished(row_of_guess, decode(tokenizer, guesses.tokens.flatten(0, 1).long())).total
    except RewardError as error:
        logger.warning("the one-step guesses saved of this step have no rewards: %s", error)
        return guesses
    return Guesses(guesses.step, guesses.tokens, torch.tensor(total).view(shape))


def saved_rollout(
    rollout: Rollout,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    guesses: Guesses | None,
    views: Views,
    advantage: Tensor,
) -> SavedRollout:
    """Return the record of a rollout that the report reads.

    Args:
        rollout: first groups of the training step.
        rows: examples of these groups.
        tokenizer: tokenizer of the model.
        guesses: one-step guesses along their paths.
        views: views of the whole training step, which the update trained on.
        advantage: [N] or [N, M], advantage of each view.
    """
    path = rollout.trajectory
    is_saved = views.row < len(path)
    views, advantage = views.take(is_saved), advantage[is_saved]
    trained = TrainedViews(views.row.int(), path.shown_step(views).int(), _branch_slots(path, views), advantage)
    return SavedRollout(
        rollout,
        decode(tokenizer, path.tokens),
        [row["prompt"] for row in rows],
        [answer if isinstance(answer := row.get("answer"), str) else None for row in rows],
        pieces_of(tokenizer, rollout, guesses),
        guesses,
        trained,
    )


def _branch_slots(path: Trajectory, views: Views) -> Tensor:
    """[N] int32: slot (index of a selected step) whose branches the view shows; -1 if the view
    shows the completion itself."""
    if views.tokens is None or path.branch_tokens is None or path.branch_tokens.shape[2] != views.tokens.shape[1]:
        return torch.full_like(views.row, -1, dtype=torch.int32)
    is_equal = (path.branch_tokens[views.row] == views.tokens.unsqueeze(1)).flatten(2).all(-1)
    # Branches that all repeat the completion would match too, so the step must be that of the slot.
    is_equal &= path.selected_steps[views.row] == path.shown_step(views).unsqueeze(-1)
    return torch.where(is_equal.any(-1), is_equal.int().argmax(-1), -1).int()


def selected_by_step(path: Trajectory, views: Views) -> Tensor:
    """[T] float32: number of views that show the state before each denoising step, divided by the
    number of completions."""
    step = path.shown_step(views)
    return torch.bincount(step[step >= 0], minlength=path.num_steps).float() / len(path)


def pieces_of(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, guesses: Guesses | None = None) -> dict[int, str]:
    """Return the text of each token of the completions, guesses and branches."""
    path = rollout.trajectory
    parts = [path.tokens, path.one_step_tokens, path.branch_tokens, guesses.tokens if guesses else None]
    ids = sorted({int(i) for tokens in parts if tokens is not None for i in tokens.unique()})
    return {i: _piece(tokenizer, i) for i in ids}


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    raw = str(tokenizer.convert_ids_to_tokens(token))
    # SentencePiece drops the space before the first word of a text; inside a completion the space
    # is there.
    return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text
