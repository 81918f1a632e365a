"""Accuracy on rows that training never saw, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from unmask.config import SamplerConfig
from unmask.functional.intervals import wilson_interval
from unmask.functional.noise import named_generator
from unmask.models import Denoiser
from unmask.records import Row
from unmask.rollout import decode, generate, row_seeds
from unmask.score import Scorer
from unmask.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one sampler setting reaches on a set of rows."""

    num_rows: int
    num_solved: int
    accuracy: float
    """Share of rows solved whole."""
    low: float
    """Lower end of the 95 % Wilson interval of the accuracy."""
    high: float
    """Upper end."""
    reward: float
    """Mean reward."""
    reward_se: float
    """Standard error of that mean."""
    temperature: float
    length: int
    steps: int
    items: list[dict[str, Any]]
    """For each row: prompt, completion, reward, solved."""

    def summary(self) -> dict[str, Any]:
        """Everything but the items."""
        return {key: value for key, value in asdict(self).items() if key != "items"}


def evaluate(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    scorer: Scorer,
    rows: Sequence[Row],
    sampler: SamplerConfig,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> Evaluation:
    """Denoise one completion for each row and say how many are solved.

    At temperature 0 the seed matters only to an order that draws. A row's result does not depend on its batch.
    """
    seeds = row_seeds(len(rows), named_generator(seed, "evaluate"))
    path = generate(denoiser, tokenizer, [row["prompt"] for row in rows], sampler, seeds, batch_size=batch_size)
    texts = decode(tokenizer, path.tokens)
    rewards = scorer(rows, texts).total
    solved = [task.solved(text, row) for text, row in zip(texts, rows, strict=True)]
    low, high = wilson_interval(sum(solved), len(rows))
    return Evaluation(
        num_rows=len(rows),
        num_solved=sum(solved),
        accuracy=sum(solved) / len(rows),
        low=low,
        high=high,
        reward=statistics.fmean(rewards),
        reward_se=statistics.stdev(rewards) / len(rows) ** 0.5 if len(rows) > 1 else 0.0,
        temperature=sampler.temperature,
        length=sampler.max_completion_length,
        steps=sampler.steps,
        items=[
            {"prompt": row["prompt"], "completion": text, "reward": reward, "solved": is_solved}
            for row, text, reward, is_solved in zip(rows, texts, rewards, solved, strict=True)
        ],
    )
