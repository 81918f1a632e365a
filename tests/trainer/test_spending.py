"""A run ends at its limit of token passes, follows it with its learning rate, and resumes to the same
end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import metrics, train_recipe, weights
from unmask.core.errors import ConfigError
from unmask.rewards import per_completion
from unmask.trainer import Trainer
from unmask.trainer.distributed.stopping import RunStoppedError
from unmask.trainer.spending import Spending


def spent(folder: Path, *costs: float, limit: int | None = 100, every: int | None = None) -> Spending:
    overrides = [f"max_token_passes={limit or 'null'}", f"evaluation.eval_token_passes={every or 'null'}"]
    recipe = train_recipe(folder, folder, *overrides)
    return Spending(recipe, [{"step": i + 1, "compute/token_passes": cost} for i, cost in enumerate(costs)])


def test_a_run_is_over_if_the_rest_does_not_pay_for_its_most_expensive_step(tmp_path: Path) -> None:
    costs = [(), (30.0,), (30.0, 20.0), (30.0, 20.0, 20.0), (30.0, 20.0, 20.0, 1.0)]
    assert [spent(tmp_path, *each).is_over for each in costs] == [False, False, False, False, True]
    assert [spent(tmp_path, *each).share for each in costs] == [0.0, 0.3, 0.5, 0.7, 0.71]
    assert not spent(tmp_path, 30.0, 1e9, limit=None).is_over
    assert spent(tmp_path, 30.0, limit=None).share == 0.0


def test_an_evaluation_is_due_at_each_multiple_that_a_step_reaches(tmp_path: Path) -> None:
    costs = (20.0, 10.0, 10.0, 60.0, 10.0)
    due = [spent(tmp_path, *costs[:i], limit=None, every=40).is_evaluation_due for i in range(6)]
    assert due == [True, False, False, True, True, False]
    assert not spent(tmp_path, limit=None).is_evaluation_due


def test_the_lines_of_evaluations_cost_nothing(tmp_path: Path) -> None:
    spending = spent(tmp_path, 30.0)
    spending.add({"step": 1, "eval/test@0/accuracy": 0.5})
    assert spending.share == 0.3


def test_a_limit_below_the_cost_of_a_step_is_refused(tmp_path: Path) -> None:
    assert spent(tmp_path, 100.0).is_over
    with raises(ConfigError, "max_token_passes = 100", "101", "num_prompts"):
        spent(tmp_path, 101.0)


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


LIMIT = 7_000
LIMITED = (
    "max_steps=1000",
    f"max_token_passes={LIMIT}",
    "evaluation.eval_steps=0",
    "evaluation.eval_token_passes=2500",
    "optim.warmup_steps=0",
    "optim.lr_floor=0",
)


@pytest.mark.slow
def test_a_run_stops_at_its_limit_and_a_resumed_run_stops_at_the_same_step(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "whole", *LIMITED)
    Trainer(recipe, [ones]).train()
    lines = metrics(tmp_path / "whole")
    costs = [line["compute/token_passes"] for line in lines[1:]]
    assert LIMIT - max(costs) < sum(costs) <= LIMIT
    evaluated = [line["step"] for line in lines if "eval/test@0/accuracy" in line]
    reached = [sum(costs[:step]) // 2_500 for step in range(len(costs) + 1)]
    assert evaluated == [0, reached.index(1), reached.index(2), len(costs)]
    # The rate falls in a straight line with what is spent, to 0 at the limit.
    rates = [line["learning_rate"] / recipe.optim.learning_rate for line in lines[1:]]
    assert rates == pytest.approx([1 - sum(costs[:step]) / LIMIT for step in range(len(costs))])

    def stop(step: int, line: dict[str, Any]) -> None:
        if step == 3 and "loss" in line:
            trainer.session.signals.received = 15

    cut = train_recipe(tiny_model, tmp_path / "cut", *LIMITED)
    trainer = Trainer(cut, [ones], observe=stop)
    with pytest.raises(RunStoppedError):
        trainer.train()
    Trainer(cut, [ones], resume=True).train()
    assert metrics(tmp_path / "cut") == lines
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    # A finished run stays as it is.
    Trainer(recipe, [ones], resume=True).train()
    assert metrics(tmp_path / "whole") == lines
