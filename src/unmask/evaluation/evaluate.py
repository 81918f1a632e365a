"""Accuracy on held-out examples, with 95 % intervals.

With one completion for each example the interval is Wilson's. With several completions there is
also pass@k, and the interval comes from a bootstrap over examples, because completions of one
example are not independent trials. The intervals of secondary measures always come from this
bootstrap. If all values are 0 or all are 1, Wilson's interval replaces the bootstrap interval.
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
from unmask.sampling.encoding import decode, row_seeds
from unmask.sampling.engine import RolloutEngine
from unmask.tasks import Task

T = TypeVar("T")

RESAMPLES = 2000
"""Number of resamples of a bootstrap interval. With another seed, the ends of an interval differ by
about 1 % of its width."""
SCORED_AT_ONCE = 64
"""Number of completions in one call of the reward functions. The time limit of the rewards applies
to one call."""


class MetricEstimate(NamedTuple):
    """Mean over examples with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of one sampler setting on a set of examples."""

    num_rows: int
    """Number of examples."""
    num_solved: int
    """Number of completions that solve their example."""
    accuracy: float
    """Share of completions that solve their example; with several samples this is pass@1."""
    low: float
    """Lower end of the 95 % interval of the accuracy. The interval is Wilson's, or with several
    samples that of a bootstrap over examples."""
    high: float
    """Upper end of this interval."""
    reward: float
    """Mean reward over examples."""
    reward_se: float
    """Standard error of the mean reward, over examples."""
    temperature: float
    """Sampling temperature; 0 is greedy."""
    length: int
    """L, length of a completion in tokens."""
    steps: int
    """T, number of denoising steps; their upper limit under an adaptive schedule."""
    forwards: float
    """Mean number of forward passes of a completion."""
    tokens_per_forward: float
    """Number of tokens that a forward pass committed on average."""
    items: list[dict[str, Any]]
    """Entries row, sample, prompt, answer, completion, reward, solved, measures, forwards and tokens
    (the number that forward passes committed) of each completion, grouped by example."""
    schedule: str = "fixed"
    """Schedule of the denoising loop, as in `sampler.schedule`."""
    samples: int = 1
    """Number of completions for each example."""
    pass_at: dict[int, MetricEstimate] = field(default_factory=dict)
    """pass@k by k, for k = 1, 2, 4, ... and the number of samples; empty with one sample."""
    measures: dict[str, MetricEstimate] = field(default_factory=dict)
    """Means of the task's secondary measures, by name."""

    def summary(self) -> dict[str, Any]:
        """Return all fields except the items as JSON values."""
        facts = {key: value for key, value in asdict(self).items() if key != "items"}
        for name in ("pass_at", "measures"):
            facts[name] = {str(key): estimate._asdict() for key, estimate in getattr(self, name).items()}
        return facts


class Processes(Protocol):
    """Interface of the ranks that share an evaluation."""

    def share(self, total: int) -> slice:
        """Return the slice of `total` examples that this rank evaluates."""
        ...

    def agreed(self) -> AbstractContextManager[None]:
        """Return a context for the evaluation, in which an error on one rank is raised on all
        ranks."""
        ...

    def gathered(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, in the order of the ranks."""
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
    """Denoise completions for each example and count the completions that solve it.

    At temperature 0 the seed matters only if the order draws random numbers. The result of an
    example depends neither on its batch nor on the number of examples and samples, so several ranks
    that share the examples get the same result as a single process.

    Args:
        engine: engine that samples the completions.
        task: task that decides which completions solve their example.
        scorer: the reward functions.
        rows: examples to evaluate on.
        sampler: settings of the denoising loop.
        seed: seed of the random draws.
        samples: number of completions for each example.
        observe: function called after each denoising step with the share of the work that is done.
        processes: ranks that share the examples; default this process alone.

    Raises:
        ConfigError: if several samples are requested at temperature 0.
    """
    check_samples(sampler, samples)
    share = processes.share(len(rows)) if processes else slice(0, len(rows))
    with processes.agreed() if processes else nullcontext():
        with engine.session():
            texts, costs = _completions(engine, rows, share, sampler, seed, samples, observe)
        items = _scored(task, scorer, rows[share], texts, samples, share.start)
        items = [item | cost for item, cost in zip(items, costs, strict=True)]
    return _evaluation(processes.gathered(items) if processes else items, sampler, samples)


def _evaluation(items: list[dict[str, Any]], sampler: SamplerConfig, samples: int) -> Evaluation:
    """Return the estimates over scored completions, of which `samples` in turn belong to an example."""
    num_rows = len(items) // samples
    right = [sum(item["solved"] for item in items[i : i + samples]) for i in range(0, len(items), samples)]
    rewards = _row_means([item["reward"] for item in items], samples)
    # The seed is fixed, so that greedy decoding gives the same interval for every seed of the run.
    bootstrap = named_generator(0, "bootstrap")

    def estimate(values: list[float]) -> MetricEstimate:
        mean = statistics.fmean(values)
        if len({*values}) == 1 and mean in (0.0, 1.0):
            # A bootstrap interval of equal values has width 0, which would present a few examples
            # as certain evidence.
            return MetricEstimate(mean, *wilson_interval(round(mean) * len(values), len(values)))
        return MetricEstimate(mean, *bootstrap_interval(torch.tensor(values), bootstrap, resamples=RESAMPLES))

    ks = sorted({k for k in (2**i for i in range(samples.bit_length())) if k <= samples} | {samples})
    pass_at = {k: estimate([pass_at_k(samples, count, k) for count in right]) for k in ks} if samples > 1 else {}
    interval = pass_at[1][1:] if samples > 1 else wilson_interval(sum(right), num_rows)
    return Evaluation(
        num_rows=num_rows,
        num_solved=sum(right),
        accuracy=sum(right) / len(items),
        low=interval[0],
        high=interval[1],
        reward=statistics.fmean(rewards),
        reward_se=statistics.stdev(rewards) / num_rows**0.5 if num_rows > 1 else 0.0,
        temperature=sampler.temperature,
        length=sampler.max_completion_length,
        steps=sampler.steps,
        forwards=statistics.fmean(item["forwards"] for item in items),
        tokens_per_forward=sum(item["tokens"] for item in items) / max(1, sum(item["forwards"] for item in items)),
        schedule=sampler.schedule,
        items=items,
        samples=samples,
        pass_at=pass_at,
        measures={
            name: estimate(_row_means([item["measures"][name] for item in items], samples))
            for name in items[0]["measures"]
        },
    )


def check_samples(sampler: SamplerConfig, samples: int) -> None:
    """Refuse several samples of each example if they would all be equal.

    Raises:
        ConfigError: if several samples are requested at temperature 0.
    """
    if samples > 1 and sampler.temperature == 0:
        raise ConfigError(f"all {samples} samples of an example are equal at temperature 0. Use a temperature above 0.")


def _completions(
    engine: RolloutEngine,
    rows: Sequence[Row],
    share: slice,
    sampler: SamplerConfig,
    seed: int,
    samples: int,
    observe: Callable[[float], None] | None,
) -> tuple[list[str], list[dict[str, int]]]:
    """Return the completions of the examples in `share`, grouped by example, and what each cost:
    its forward passes and the tokens that they committed."""
    # Each sample has a generator of its own, so that its seeds do not depend on the number of
    # samples.
    names = [() if sample == 0 else (sample,) for sample in range(samples)]
    seeds = [row_seeds(len(rows), named_generator(seed, "evaluate", *name)) for name in names]
    prompts = [row["prompt"] for row in rows[share] for _ in range(samples)]
    if not prompts:
        return [], []
    by_row = torch.stack(seeds, dim=1)[share].flatten()
    finished, current = 0, 0

    def count(snapshot: Snapshot) -> None:
        nonlocal finished, current
        if snapshot.step == 0:
            # The first step of the next batch.
            finished, current = finished + current, len(snapshot.tokens)
        if observe is not None:
            observe((finished + current * snapshot.share) / len(prompts))

    path = engine.rollout(prompts, sampler, by_row, observe=count if observe else None)
    counts = zip(path.forwards.tolist(), path.tokens_committed.tolist(), strict=True)
    costs = [{"forwards": forwards, "tokens": tokens} for forwards, tokens in counts]
    return decode(engine.tokenizer, path.tokens), costs


def _scored(
    task: Task, scorer: Scorer, rows: Sequence[Row], texts: Sequence[str], samples: int, first: int
) -> list[dict[str, Any]]:
    """Return the items of an evaluation: the texts with their rewards, measures and verdicts."""
    repeated = [row for row in rows for _ in range(samples)]
    rewards: list[float] = []
    # A call scores whole groups: the samples of an example, or for a single sample the copies that
    # `single` makes of it.
    group_size = samples if samples > 1 or scorer.judges_each else scorer.group_size
    size = max(1, SCORED_AT_ONCE // group_size) * samples
    for start in range(0, len(texts), size):
        block = slice(start, start + size)
        rewards += (scorer if samples > 1 else scorer.single)(repeated[block], texts[block]).total
    return [
        {
            "row": first + i // samples,
            "sample": i % samples,
            "prompt": row["prompt"],
            "answer": row.get("answer"),
            "completion": text,
            "reward": reward,
            "solved": task.solved(text, row),
            "measures": task.measures(text, row),
        }
        for i, (row, text, reward) in enumerate(zip(repeated, texts, rewards, strict=True))
    ]


def _row_means(values: Sequence[float], samples: int) -> list[float]:
    return [statistics.fmean(values[i : i + samples]) for i in range(0, len(values), samples)]
