"""The examples run, at tiny size, and do what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from examples import minimal
from examples.custom_method import RandomStep
from examples.custom_reward import row_variety
from tests.helpers.records import make_inputs, make_trajectory
from tests.helpers.runs import metrics, unmask, weights
from unmask.core.records import Rollout, Trajectory
from unmask.tasks import Sudoku

EXAMPLES = Path(minimal.__file__).parent


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Run an example as its first lines say."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"minimal.py", "custom_reward.py", "custom_method.py"}


# --- minimal.py ---


@pytest.mark.slow
def test_the_minimal_loop_runs_from_the_command_line(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "minimal.py", tiny_model, "--steps", 1)
    assert re.fullmatch(r"step    1  reward 0\.\d{3}  solved 0\.000\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_minimal_loop_raises_its_reward(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate and a reward with which an untrained model of this size learns at once.
    monkeypatch.setattr(minimal, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(Sudoku, "score", lambda self, answer, row: answer.count("1") / 16)
    monkeypatch.setattr(minimal, "NUM_PROMPTS", 4)
    minimal.train(str(tiny_model), 20)
    first, last = (float(x) for x in re.findall(r"reward (\S+)", capsys.readouterr().out))
    minimal.train(str(tiny_model), 1)
    (start,) = (float(x) for x in re.findall(r"reward (\S+)", capsys.readouterr().out))
    assert start + 0.1 < last
    assert start < first


# --- custom_reward.py ---


def test_the_reward_of_ones_own_counts_rows_of_four_digits() -> None:
    grids = ["1234341221434321", "1234341221434322", "1111222233334444", "1234", ""]
    assert row_variety([""] * 5, grids) == [1.0, 0.75, 0.0, 0.25, 0.0]


@pytest.mark.slow
def test_the_reward_of_ones_own_is_trained_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "custom_reward.py", tiny_model, "--steps", 1, "--output", tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1]
    last = metrics(tmp_path / "run")[-1]
    assert last["rewards/row_variety/mean"] == last["reward"]
    assert capsys.readouterr().out.splitlines() == [f"1 {last['reward']}"]


# --- custom_method.py ---


def path_of(unmask_step: list[list[int]], tokens: list[list[int]]) -> Trajectory:
    """Return a trajectory with these steps and tokens; EOS is 2."""
    return make_trajectory(tokens, unmask_step=unmask_step)


def test_the_method_of_ones_own_takes_one_step_and_weighs_it_by_the_number_of_candidates() -> None:
    # Rows of 4, 4 and 1 candidates: in the second, steps 2 and 3 write nothing but EOS, and count all the same.
    path = path_of([[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]], [[5, 5, 5, 5], [5, 5, 2, 2], [5, 5, 5, 5]])
    views = RandomStep().plan(Rollout(path, 3, torch.tensor([1.0, 0.0, 0.5])), torch.Generator())
    assert views.row.tolist() == [0, 1, 2]
    assert views.weight.tolist() == [4.0, 4.0, 1.0]
    for row, hidden, target in zip(views.row, views.hidden, views.target, strict=True):
        (step,) = set(path.unmask_step[row][target].tolist())
        assert torch.equal(target, path.unmask_step[row] == step)
        assert torch.equal(hidden, path.unmask_step[row] >= step)


def test_the_method_of_ones_own_draws_its_step_uniformly() -> None:
    path = path_of([[0, 1, 2, 3]] * 4000, [[5, 5, 5, 5]] * 4000)
    views = RandomStep().plan(Rollout(path, 2, torch.zeros(4000)), torch.Generator())
    counts = path.unmask_step[views.target].bincount(minlength=4)
    # Four standard deviations of a binomial count.
    assert (counts - 1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_the_loss_of_the_method_of_ones_own_is_that_of_reinforce() -> None:
    new = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    output = RandomStep().loss(make_inputs(new, target=new < 0, weight=[4.0, 2.0], advantage=[0.5, -1.0]))
    assert output.loss.tolist() == [6.0, -6.0]


@pytest.mark.slow
def test_the_method_of_ones_own_trains(tiny_model: Path, tmp_path: Path) -> None:
    # As its first lines say.
    path = f"{EXAMPLES / 'custom_method.py'}:RandomStep"
    settings = (f"model={tiny_model}", f"method.type={path}", "num_iterations=1", "max_steps=1")
    assert unmask("train", "sudoku-tiny", *settings, f"output_dir={tmp_path / 'run'}", "num_rows=64") == 0
    assert metrics(tmp_path / "run")[1]["diffusion/num_views"] == 64.0
    assert weights(tmp_path / "run") != (tiny_model / "model.safetensors").read_bytes()
