"""Accuracy on rows that training never saw, with intervals.

One completion for each row gives an accuracy with Wilson's interval. Several give pass@k as well; completions of one row are not
independent trials, so then, and for every secondary measure, the interval is a bootstrap over rows, or Wilson's where all rows
are 0 or all are 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Row
from unmask.functional.intervals import wilson_interval
from unmask.functional.noise import named_generator
from unmask.functional.paired import bootstrap_interval
from unmask.functional.pass_at_k import pass_at_k
from unmask.rewards.scorer import Scorer
from unmask.sampling import Snapshot
from unmask.sampling.engine import RolloutEngine
from unmask.sampling.generation import decode, row_seeds
from unmask.tasks import Task

T = TypeVar("T")

RESAMPLES = 2000
"""Of a bootstrap interval: its ends move by about a hundredth of its width from one seed to the next."""
SCORED_AT_ONCE = 64
"""Completions of one call of the reward functions, whose time limit is for one call."""


class MetricEstimate(NamedTuple):
    """A mean over rows and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one sampler setting reaches on a set of rows."""

    num_rows: int
    num_solved: int
    """Completions that are right; as many as rows where one is sampled for each."""
    accuracy: float
    """Share of rows solved whole; pass@1 where several completions are sampled."""
    low: float
    """Lower end of the 95 % interval of the accuracy: Wilson's, or a bootstrap over rows where several are sampled."""
    high: float
    """Upper end."""
    reward: float
    """Mean reward."""
    reward_se: float
    """Standard error of that mean, over rows."""
    temperature: float
    length: int
    steps: int
    items: list[dict[str, Any]]
    """For each completion: row, sample, prompt, answer, completion, reward, solved, measures. Those of a row stand together."""
    samples: int = 1
    """Completions of each row."""
    pass_at: dict[int, MetricEstimate] = field(default_factory=dict)
    """pass@k for k = 1, 2, 4, ... and the number of samples; empty where one is sampled."""
    measures: dict[str, MetricEstimate] = field(default_factory=dict)
    """Means of the task's secondary measures."""

    def summary(self) -> dict[str, Any]:
        """Everything but the items, ready for JSON."""
        facts = {key: value for key, value in asdict(self).items() if key != "items"}
        for name in ("pass_at", "measures"):
            facts[name] = {str(key): estimate._asdict() for key, estimate in getattr(self, name).items()}
        return facts


class Processes(Protocol):
    """What an evaluation asks of processes that share it."""

    def share(self, total: int) -> slice:
        """Which of `total` rows are this process's."""
        ...

    def agreed(self) -> AbstractContextManager[None]:
        """Around the scoring: a mistake on one process stops them all."""
        ...

    def gathered(self, items: list[T]) -> list[T]:
        """The items of all processes, in their order."""
        ...


def evaluate(
    engine: RolloutEngine,
    task: Task,
    scorer: Scorer,
    rows: Sequence[Row],
    sampler: SamplerConfig,
    *,
    seed: int = 0,
    samples: int = 1,
    observe: Callable[[float], None] | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Denoise completions for each row and count those that are right.

    At temperature 0 the seed matters only to an order that draws. A row's result depends neither on its batch nor on the number
    of rows and samples beside it, so ranks that share the rows get the result of a single process.

    Args:
        engine: samples the completions.
        task: decides which completions are right.
        scorer: the reward functions.
        rows: the examples to evaluate on.
        sampler: sampler settings.
        seed: seed of the draws.
        samples: completions of each row.
        observe: is called after each denoising step with the share of the work that is done.
        processes: the ranks that share the rows; default this process alone.

    Raises:
        ConfigError: several samples at temperature 0.
    """
    check_samples(sampler, samples)
    share = processes.share(len(rows)) if processes else slice(0, len(rows))
    with processes.agreed() if processes else nullcontext():
        with engine.session():
            texts = _completions(engine, rows, share, sampler, seed, samples, observe)
        items = _scored(task, scorer, rows[share], texts, samples, share.start)
    items = processes.gathered(items) if processes else items
    right = [sum(item["solved"] for item in items[i : i + samples]) for i in range(0, len(items), samples)]
    rewards = _row_means([item["reward"] for item in items], samples)
    # Not the run's seed: greedy decoding gives the same result, interval included, with any.
    bootstrap = named_generator(0, "bootstrap")

    def estimate(values: list[float]) -> MetricEstimate:
        mean = statistics.fmean(values)
        if len({*values}) == 1 and mean in (0.0, 1.0):
            # Resamples of rows that are all alike have no width, as if a few rows were proof.
            return MetricEstimate(mean, *wilson_interval(round(mean) * len(values), len(values)))
        return MetricEstimate(mean, *bootstrap_interval(torch.tensor(values), bootstrap, resamples=RESAMPLES))

    ks = sorted({k for k in (2**i for i in range(samples.bit_length())) if k <= samples} | {samples})
    pass_at = {k: estimate([pass_at_k(samples, count, k) for count in right]) for k in ks} if samples > 1 else {}
    interval = pass_at[1][1:] if samples > 1 else wilson_interval(sum(right), len(rows))
    return Evaluation(
        num_rows=len(rows),
        num_solved=sum(right),
        accuracy=sum(right) / len(items),
        low=interval[0],
        high=interval[1],
        reward=statistics.fmean(rewards),
        reward_se=statistics.stdev(rewards) / len(rows) ** 0.5 if len(rows) > 1 else 0.0,
        temperature=sampler.temperature,
        length=sampler.max_completion_length,
        steps=sampler.steps,
        items=items,
        samples=samples,
        pass_at=pass_at,
        measures={
            name: estimate(_row_means([item["measures"][name] for item in items], samples))
            for name in items[0]["measures"]
        },
    )


def check_samples(sampler: SamplerConfig, samples: int) -> None:
    """Refuse several samples of each row where they would all be the same.

    Raises:
        ConfigError: several samples at temperature 0.
    """
    if samples > 1 and sampler.temperature == 0:
        raise ConfigError(
            f"{samples} samples at temperature 0 are {samples} times the same. Use a temperature above 0."
        )


def _completions(
    engine: RolloutEngine,
    rows: Sequence[Row],
    share: slice,
    sampler: SamplerConfig,
    seed: int,
    samples: int,
    observe: Callable[[float], None] | None,
) -> list[str]:
    """The texts of the rows in `share`, those of a row beside each other."""
    # A generator for each sample: its seeds are the same however many are asked.
    names = [() if sample == 0 else (sample,) for sample in range(samples)]
    seeds = [row_seeds(len(rows), named_generator(seed, "evaluate", *name)) for name in names]
    prompts = [row["prompt"] for row in rows[share] for _ in range(samples)]
    if not prompts:
        return []
    by_row = torch.stack(seeds, dim=1)[share].flatten()
    done, total = 0, sampler.steps * len(prompts)

    def count(snapshot: Snapshot) -> None:
        nonlocal done
        done += len(snapshot.tokens)
        if observe is not None:
            observe(done / total)

    path = engine.rollout(prompts, sampler, by_row, observe=count if observe else None)
    return decode(engine.tokenizer, path.tokens)


def _scored(
    task: Task, scorer: Scorer, rows: Sequence[Row], texts: Sequence[str], samples: int, first: int
) -> list[dict[str, Any]]:
    repeated = [row for row in rows for _ in range(samples)]
    rewards: list[float] = []
    # Calls of whole groups: those of a row, or the equal ones that a function which compares sees in their place.
    group_size = samples if samples > 1 or scorer.judges_each else scorer.group_size
    size = max(1, SCORED_AT_ONCE // group_size) * samples
    for start in range(0, len(texts), size):
        block = slice(start, start + size)
        rewards += (scorer if samples > 1 else scorer.single)(repeated[block], texts[block]).total
    return [
        {
            "row": first + place // samples,
            "sample": place % samples,
            "prompt": row["prompt"],
            "answer": row.get("answer"),
            "completion": text,
            "reward": reward,
            "solved": task.solved(text, row),
            "measures": task.measures(text, row),
        }
        for place, (row, text, reward) in enumerate(zip(repeated, texts, rewards, strict=True))
    ]


def _row_means(values: Sequence[float], samples: int) -> list[float]:
    return [statistics.fmean(values[i : i + samples]) for i in range(0, len(values), samples)]
