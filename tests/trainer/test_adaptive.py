"""Training under adaptive schedules: every method trains and resumes bit for bit, a run keeps its
schedule, and evaluations may have another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import OWN_SETTINGS, metrics, steps_saved, train_recipe, weights
from unmask.core.errors import ConfigError, RewardError, RunError
from unmask.methods import METHODS
from unmask.rewards import per_completion
from unmask.trainer import Trainer

SETTINGS = (
    "max_steps=2",
    "save_steps=1",
    "num_prompts=2",
    "num_generations=3",
    "num_minibatches=2",
    "evaluation.eval_steps=0",
    "evaluation.num_rows=2",
    "optim.learning_rate=1.0e-3",
    "sampler.schedule=entropy_bound=4.14",
    "sampler.order=max_probability",
    "sampler.num_steps=null",
)
MORE = OWN_SETTINGS | {
    "egspo_ca": ("method.num_selected=2", "method.finish=rollout", "method.num_actions=2"),
    "step_merge": ("method.num_segments=3",),
}
"""Methods whose rollouts and weights depend on the number of steps have settings that use it."""


class Ones:
    """Reward that counts a digit, and gives up at one call."""

    __name__ = "ones"
    per_completion = True

    def __init__(self, fails_at: int = 0) -> None:
        self.left = fails_at

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.left -= 1
        if not self.left:
            raise OSError("the disk with the answers is gone")
        return [text.count("1") + 0.1 * len(text) for text in completions]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("mask_aware", "just_grpo")])
def test_every_method_trains_and_resumes_bit_for_bit(method: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, f"method={{type: {method}}}", *MORE.get(method, ()))
    whole = Trainer(train_recipe(tiny_model, tmp_path / "whole", *settings), [Ones()]).train()
    recipe = train_recipe(tiny_model, tmp_path / "cut", *settings)
    needs = recipe.method.needs()
    # In the second step: a call of its own scores one-step completions and branches.
    calls = 2 if needs.greedy or needs.branches else 1
    with raises(RewardError, "answers", snapshot=False):
        Trainer(recipe, [Ones(fails_at=calls + 1)]).train()
    assert steps_saved(tmp_path / "cut") == [1]
    resumed = Trainer(recipe, [Ones()], resume=True).train()
    assert weights(resumed) == weights(whole)
    assert weights(whole) != (tiny_model / "model.safetensors").read_bytes(), "it learnt something"
    assert all(1 < line["diffusion/tokens_per_forward"] < 16 for line in metrics(whole) if "reward" in line)


def test_a_run_is_not_resumed_with_another_schedule(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SETTINGS)
    with raises(RewardError, "answers", snapshot=False):
        Trainer(recipe, [Ones(fails_at=3)]).train()
    other = train_recipe(tiny_model, tmp_path / "run", *SETTINGS, "sampler.schedule=entropy_bound=1")
    with raises(RunError, "sampler.schedule", "entropy_bound=4.14", snapshot=False):
        Trainer(other, [Ones()], resume=True).train()


def test_evaluations_may_decode_with_another_schedule_than_rollouts(tiny_model: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, "max_steps=1", "evaluation.schedule=fixed", "evaluation.num_steps=4")
    recipe = train_recipe(tiny_model, tmp_path / "run", *settings)
    assert (recipe.sampler.is_adaptive, recipe.evaluation_sampler(0.0).is_adaptive) == (True, False)
    lines = metrics(Trainer(recipe, [per_completion(lambda completions, **_: [0.0] * len(completions))]).train())
    evaluated = [line for line in lines if "eval/test@0/accuracy" in line]
    assert evaluated
    # The untrained model may end a completion early, but never takes more steps.
    assert all(1 <= line["eval/test@0/forwards"] <= 4 for line in evaluated)
    # Without settings of their own, evaluations decode as rollouts do.
    own = train_recipe(tiny_model, tmp_path / "own", *SETTINGS)
    assert own.evaluation_sampler(0.9).schedule == "entropy_bound=4.14"


def test_a_schedule_of_evaluations_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "evaluation.schedule", "plackett_luce"):
        train_recipe(
            tiny_model, tmp_path, "sampler.order=plackett_luce", "sampler.num_steps=16", "evaluation.schedule=factor=1"
        )
