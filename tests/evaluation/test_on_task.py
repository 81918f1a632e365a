"""The function `evaluate` of the public API, held to the evaluation below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask import evaluate, load_model
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.evaluation import evaluate as measuring
from unmask.evaluation.on_task import default_sampler, task_of
from unmask.models import Policy
from unmask.rewards.loading import make_scorer
from unmask.sampling.engine import LocalEngine
from unmask.tasks import Dataset, Sudoku

SAMPLER = SamplerConfig(max_completion_length=16, num_steps=4, temperature=0.9)


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return load_model(tiny_model)


def test_the_evaluation_is_that_of_the_rows_of_the_task(policy: Policy) -> None:
    task = Sudoku()
    rows, scorer = task.rows("validation", 6, seed=3), make_scorer((), task.rewards())
    expected = measuring.evaluate(LocalEngine(policy), task, scorer, rows, SAMPLER, seed=3, samples=2)
    assert evaluate(policy, task, 6, split="validation", sampler=SAMPLER, samples=2, seed=3) == expected


def test_a_task_may_be_a_name_or_a_dict(policy: Policy) -> None:
    result = evaluate(policy, "sudoku", 4)
    assert (result.num_rows, result.length, result.steps, result.temperature) == (4, 16, 8, 0.0)
    assert result == evaluate(policy, Sudoku(), 4) == evaluate(policy, {"type": "sudoku"}, 4)
    assert task_of({"type": "sudoku", "max_blanks": 8}) == Sudoku(max_blanks=8)
    assert task_of(Sudoku) == Sudoku()
    assert 0 <= result.low <= result.accuracy <= result.high <= 1


def test_a_reward_of_ones_own_replaces_that_of_the_task(policy: Policy) -> None:
    def half(completions: list[str], **_: Any) -> list[float]:
        return [0.5] * len(completions)

    assert evaluate(policy, "sudoku", 4, reward_funcs=half).reward == 0.5


def test_rows_of_ones_own_are_evaluated_on(policy: Policy) -> None:
    rows = [{"prompt": f"{i // 25}{i // 5 % 5}{i % 5}=", "answer": "1"} for i in range(100)]
    result = evaluate(policy, Dataset(path=rows), 8, sampler=SAMPLER)
    assert {item["prompt"] for item in result.items} <= {row["prompt"] for row in rows}


def test_the_default_sampler_has_the_length_of_the_task_or_that_of_language_models() -> None:
    assert default_sampler(Sudoku()).max_completion_length == 16
    assert default_sampler(Sudoku(format="plain")).max_completion_length == 256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "sudok"}, ("sudok", "sudoku")),
        ({"task": {"type": "sudoku", "blanks": 1}}, ("blanks", "min_blanks")),
        ({"policy": "runs/mine"}, ("policy has the type str", "load_model")),
        ({"samples": 2}, ("2 samples", "temperature")),
        ({"samples": 0}, ("samples = 0", "at least 1")),
        ({"num_rows": 0}, ("num_rows = 0", "at least 1")),
        ({"task": [{"prompt": "1=", "answer": "1"}]}, ("list", "dataset")),
        ({"sampler": {"num_steps": 4}}, ("dict", "SamplerConfig")),
    ],
    ids=["task", "option", "policy", "samples", "no sample", "no row", "rows", "sampler"],
)
def test_what_cannot_be_evaluated_is_refused(policy: Policy, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with raises(ConfigError, *words):
        evaluate(**{"policy": policy, "task": "sudoku", "num_rows": 2} | changes)
