"""What a run keeps of a rollout: the first groups, with texts, greedy guesses along their paths, and what was trained of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import RewardError
from unmask.core.records import Rollout, Row, Trajectory, Views
from unmask.models import Denoiser
from unmask.rewards.scorer import Scorer
from unmask.runs.saved_rollouts import Guesses, SavedRollout, TrainedViews
from unmask.sampling.generation import decode
from unmask.sampling.one_step import one_step_completions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("unmask")


def guesses_of(denoiser: Denoiser, path: Trajectory, count: int, batch_size: int) -> Guesses | None:
    """Greedy one-step completions at `count` steps, evenly spaced, or at all if there are no more; not yet scored.

    Args:
        denoiser: the policy as it walked the paths, so before the update.
        path: of the groups that are kept.
        count: how many; none if 0.
        batch_size: completions that the rollout denoised together. As many logits as it asked for are asked for here.
    """
    if not count:
        return None
    last = path.num_steps - 1
    spaced = (
        range(path.num_steps) if count > last else sorted({round(last * i / max(count - 1, 1)) for i in range(count)})
    )
    was_training = denoiser.training
    denoiser.eval()
    states = max(1, batch_size * path.sampler.block // path.tokens.shape[1])
    tokens = one_step_completions(denoiser, path, spaced, batch_size=states)
    denoiser.train(was_training)
    return Guesses(torch.tensor(list(spaced), dtype=torch.int32), tokens)


def scored(guesses: Guesses, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> Guesses:
    """The guesses with their rewards; without them where a reward function fails, or compares the completions of a group.

    Args:
        guesses: of B completions.
        scorer: the run's.
        tokenizer: the model's.
        rows: B of them, what each completion answers.
    """
    if not scorer.judges_each:
        return guesses
    shape = guesses.tokens.shape[:2]
    of_row = [row for row in rows for _ in range(shape[1])]
    counted = scorer.count
    try:
        total = scorer.unfinished(of_row, decode(tokenizer, guesses.tokens.flatten(0, 1).long())).total
    except RewardError as error:
        logger.warning("the one-step guesses that are kept of this step have no rewards: %s", error)
        return guesses
    finally:
        # Looking is not charged to the method.
        scorer.count = counted
    return Guesses(guesses.step, guesses.tokens, torch.tensor(total).view(shape))


def to_keep(
    rollout: Rollout,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    guesses: Guesses | None,
    views: Views,
    advantage: Tensor,
) -> SavedRollout:
    """All that is kept.

    Args:
        rollout: the groups that are kept, the first of the step's.
        rows: what they answer, one for each group.
        tokenizer: the model's.
        guesses: along their paths.
        views: of the whole step, on which the update was made.
        advantage: [N] or [N, M], of the views.
    """
    path = rollout.trajectory
    is_kept = views.row < len(path)
    views, advantage = views.take(is_kept), advantage[is_kept]
    trained = TrainedViews(views.row.int(), path.shown_step(views).int(), _fills_read(path, views), advantage)
    return SavedRollout(
        rollout,
        decode(tokenizer, path.tokens),
        [row["prompt"] for row in rows],
        [answer if isinstance(answer := row.get("answer"), str) else None for row in rows],
        _pieces(tokenizer, rollout, guesses),
        guesses,
        trained,
    )


def _fills_read(path: Trajectory, views: Views) -> Tensor:
    """[N] int32: the slot whose fills each view reads; -1 where it reads the completion itself."""
    if views.tokens is None or path.branch_tokens is None or path.branch_tokens.shape[2] != views.tokens.shape[1]:
        return torch.full_like(views.row, -1, dtype=torch.int32)
    is_read = (path.branch_tokens[views.row] == views.tokens.unsqueeze(1)).flatten(2).all(-1)
    # Fills that all came out as what was written could be taken for it.
    is_read &= path.selected_steps[views.row] == path.shown_step(views).unsqueeze(-1)
    return torch.where(is_read.any(-1), is_read.int().argmax(-1), -1).int()


def selected_by_step(path: Trajectory, views: Views) -> Tensor:
    """[T] how many views show the state before each step, divided by the completions."""
    step = path.shown_step(views)
    return torch.bincount(step[step >= 0], minlength=path.num_steps).float() / len(path)


def _pieces(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, guesses: Guesses | None) -> dict[int, str]:
    """The text of each token that occurs in a completion, a guess or a fill, by itself."""
    path = rollout.trajectory
    found = [path.tokens, path.one_step_tokens, path.branch_tokens, guesses.tokens if guesses else None]
    ids = sorted({int(i) for tokens in found if tokens is not None for i in tokens.unique()})
    return {i: _piece(tokenizer, i) for i in ids}


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    raw = str(tokenizer.convert_ids_to_tokens(token))
    # SentencePiece's decoders drop the space before a first word, which inside a text is there.
    return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text
