"""Seeded runs of 20 steps, one for each method and switch: loss and reward of every step, to 4 digits.

A change that is not meant to alter numbers leaves tests/golden/ as it is. One that is meant to regenerates it,
`pytest tests/trainer/test_golden.py --regenerate-golden`, and the diff is part of what is reviewed.
"""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.runs import SWITCHES, method_overrides, metrics, train_recipe
from unmask.methods import METHODS
from unmask.rewards import per_completion
from unmask.trainer import Trainer

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests" / "golden"

SETTINGS = (
    "max_steps=20",
    "save_steps=20",
    "num_prompts=4",
    "num_generations=4",
    "num_iterations=2",
    "evaluation.eval_steps=0",
    "optim.learning_rate=1.0e-2",
)


@per_completion
def share_of_ones(completions: list[str], **_: Any) -> list[float]:
    """A reward that an untrained model can climb in 20 steps."""
    return [text.count("1") / 16 for text in completions]


def run(model: Path, folder: Path, *overrides: str) -> str:
    """A table of step, loss and reward."""
    lines = metrics(Trainer(train_recipe(model, folder, *SETTINGS, *overrides), [share_of_ones]).train())
    rows = [f"{line['step']:>4}  {line['loss']:10.3e}  {line['reward']:.4f}" for line in lines]
    return "\n".join(["step        loss  reward", *rows]) + "\n"


def numbers(table: str) -> list[tuple[float, float]]:
    """(loss, reward) of each step."""
    return [(float(loss), float(reward)) for _, loss, reward in map(str.split, table.splitlines()[1:])]


FIRST_STEPS = 4
"""Number of steps that agree on every processor."""


def agree(table: str, other: str) -> bool:
    """Whether two tables are equal but for the last digit, which another processor may round the other way.

    A probability that is rounded the other way may also decide a draw. The rewards then differ, and all later numbers
    with them, so the tables are compared up to this step. It must come after the first steps."""
    for step, (a, b) in enumerate(zip(numbers(table), numbers(other), strict=True)):
        if a != pytest.approx(b, rel=2e-3, abs=1e-6):
            return step >= FIRST_STEPS and a[1] != b[1]
    return True


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the activation that the numbers on file were made with."""
    folder = tmp_path_factory.mktemp("golden") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "gelu_pytorch_tanh"}))
    return folder


@pytest.mark.parametrize("method", [*METHODS, *SWITCHES])
def test_a_seeded_run_gives_the_numbers_on_file(
    method: str, model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = run(model, tmp_path / "run", *method_overrides(method))
    path = GOLDEN / f"{method}.txt"
    if request.config.getoption("--regenerate-golden"):
        path.write_text(table)
    assert agree(path.read_text(), table)


def test_no_method_has_the_numbers_of_another_and_no_run_stands_still() -> None:
    tables = {method: (GOLDEN / f"{method}.txt").read_text() for method in (*METHODS, *SWITCHES)}
    for one, other in combinations(tables, 2):
        assert not agree(tables[one], tables[other])
    for table in tables.values():
        rewards = [reward for _, reward in numbers(table)]
        assert len(rewards) == 20
        # The first rollout is that of the untrained model.
        assert sum(rewards[-10:]) > 10 * rewards[0] + 0.5
