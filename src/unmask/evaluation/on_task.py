"""Accuracy of a policy on a task in one call: the function `evaluate` of the public API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError, DataError
from unmask.evaluation import evaluate as measuring
from unmask.evaluation.evaluate import Evaluation
from unmask.evaluation.usable import faults_for, usable_rows
from unmask.models import Policy
from unmask.recipes.load import make_sampler, make_task, validate
from unmask.recipes.schema import RunRecipe
from unmask.rewards.given import RewardFuncs, reward_list
from unmask.rewards.loading import make_scorer
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.generate import check_policy, check_sampler
from unmask.tasks import Split, Task


def evaluate(
    policy: Policy,
    task: Task | type[Task] | str | Mapping[str, Any],
    num_rows: int = 256,
    *,
    split: Split = "test",
    sampler: SamplerConfig | None = None,
    samples: int = 1,
    reward_funcs: RewardFuncs = (),
    seed: int = 0,
    batch_size: int | None = None,
    observe: Callable[[float], None] | None = None,
) -> Evaluation:
    """Measure the accuracy and the mean reward of a policy on rows of a task, with 95 % intervals.

    Args:
        policy: the model and its tokenizer, as `load_model` returns them.
        task: a task object, its class, its name such as "sudoku" or "my_task.py:Mine", or a dict of
            its type and options.
        num_rows: number of rows.
        split: train, validation or test.
        sampler: sampler settings. By default, decoding is greedy. The completion length is the
            length of the task if its format is `bare`, else 256 tokens, and the number of denoising
            steps is half the number of tokens.
        samples: number of completions of each row. Several completions also give pass@k.
        reward_funcs: a reward function, its path, or a list of them, instead of the rewards of the
            task.
        seed: seed of the rows and of the draws.
        batch_size: maximum number of completions that are denoised together; by default 256, on a
            CPU 64, and fewer if the tokens or the logits would take much memory.
        observe: function that is called after each denoising step with the share of the work that
            is done.

    Returns:
        The evaluation. `accuracy`, `low` and `high` are the result; `items` holds every completion
        with its reward.

    Raises:
        ConfigError: the task, the sampler or a reward function cannot be used.
        DataError: the split has no rows, or the model cannot use one of the rows.
    """
    check_policy(policy)
    check_sampler(sampler)
    if num_rows < 1 or samples < 1:
        raise ConfigError(f"num_rows = {num_rows} and samples = {samples} must be at least 1.")
    task = task_of(task)
    sampler = sampler or default_sampler(task)
    functions = reward_list(reward_funcs)
    scorer = make_scorer(functions, task.rewards())
    try:
        candidates = task.candidates(split, num_rows, seed)
        if not candidates.rows:
            raise DataError(f"The split {split} of the task has no rows. Give another split, or more rows.")
        scorer.check_columns(candidates.rows[0])
        length = sampler.max_completion_length
        faults = faults_for(task, policy.denoiser, policy.tokenizer, length, needs_answer=not functions)
        rows = usable_rows({split: candidates}, faults).rows[split]
        engine = LocalEngine(policy, BatchLimits(batch_size))
        return measuring.evaluate(engine, task, scorer, rows, sampler, seed=seed, samples=samples, observe=observe)
    finally:
        scorer.close()


def task_of(task: Task | type[Task] | str | Mapping[str, Any]) -> Task:
    """Return the task that a class, a name, a path, or a dict of a type and options stands for.

    Raises:
        ConfigError: there is no such task, or an option of it cannot be used.

    Example:
        >>> task_of("sudoku") == task_of({"type": "sudoku"})
        True
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, str):
        return make_task(task)
    if isinstance(task, type) and issubclass(task, Task):
        task = {"type": task}
    if not isinstance(task, Mapping):
        raise ConfigError(
            f"task has the type {type(task).__name__}. Give a task object, its class, its name, or a dict of its type and "
            'options, such as {"type": "dataset", "path": rows}.'
        )
    return validate(RunRecipe, {"task": dict(task)}).task


def default_sampler(task: Task) -> SamplerConfig:
    """Return the default sampler settings of `evaluate`.

    Example:
        >>> sampler = default_sampler(task_of("sudoku"))
        >>> sampler.max_completion_length, sampler.steps, sampler.temperature
        (16, 8, 0.0)
    """
    length = task.completion_length if task.format == "bare" else SamplerConfig().max_completion_length
    return make_sampler(max_completion_length=length, temperature=0.0)
