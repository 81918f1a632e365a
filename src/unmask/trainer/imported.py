"""Import of rollouts that another engine recorded, as a saved rollout with rewards and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.core.errors import DataError
from unmask.core.records import Rollout
from unmask.models import Policy
from unmask.rewards.scorer import Scorer
from unmask.runs.saved_rollouts import SavedRollout
from unmask.sampling.encoding import decode
from unmask.sampling.remote.importing import Imported, imported
from unmask.sampling.remote.recorded import Recorded, read_recorded
from unmask.trainer.recorder import pieces_of


@dataclass(frozen=True, slots=True)
class ImportedRollout:
    """A file of recorded answers as a saved rollout, and what the import found."""

    saved: SavedRollout
    """The rollout."""
    found: Imported
    """Facts about the answers."""


def import_rollouts(file: Path, policy: Policy, scorer: Scorer | None = None, **settings: Any) -> ImportedRollout:
    """Read a file of recorded answers, and compute what they lack: log-probabilities and entropies
    by replay, and rewards if the file has none.

    Args:
        file: recorded answers, one JSON object a line; see `unmask.sampling.remote.recorded`.
        policy: policy that sampled them, in evaluation mode.
        scorer: reward functions, for a file whose lines hold examples of a task; None if the lines
            hold rewards.
        settings: settings of the sampler; see `imported`.

    Raises:
        DataError: an answer cannot be used, or its reward is not known.
        RewardError: a reward function failed.
    """
    recorded = read_recorded(file)
    _check_rewards(file, recorded, scorer)
    found = imported(file, recorded, policy, **settings)
    path, texts = found.trajectory.to("cpu"), decode(policy.tokenizer, found.trajectory.tokens)
    rewards = [one.reward or 0.0 for one in recorded]
    if scorer is not None:
        rewards = scorer([one.row or {} for one in recorded], texts).total
    rollout = Rollout(path, found.group_size, torch.tensor(rewards, dtype=torch.float32))
    first = recorded[:: found.group_size]
    saved = SavedRollout(
        rollout,
        texts,
        [_prompt(one, policy) for one in first],
        [answer if isinstance(answer := (one.row or {}).get("answer"), str) else None for one in first],
        pieces_of(policy.tokenizer, rollout),
    )
    return ImportedRollout(saved, found)


def _check_rewards(file: Path, recorded: Sequence[Recorded], scorer: Scorer | None) -> None:
    """Check that each answer has a reward, or an example from which it can be computed."""
    for one in recorded:
        if scorer is None and one.reward is None:
            raise DataError(
                f'{file}, line {one.line} has no "reward". Add it, or add the example as "row" and name its task with --task.'
            )
        if scorer is not None:
            if one.row is None:
                raise DataError(
                    f'{file}, line {one.line} has no "row", the example that the reward functions of the task read.'
                )
            try:
                scorer.check_columns(one.row)
            except DataError as error:
                raise DataError(f"{file}, line {one.line}: {error}") from error


def _prompt(one: Recorded, policy: Policy) -> Any:
    """Return the prompt of an answer: that of its example, or the text of its tokens."""
    if one.row is not None and "prompt" in one.row:
        return one.row["prompt"]
    return policy.tokenizer.decode(one.prompt)
