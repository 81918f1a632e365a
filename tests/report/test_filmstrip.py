"""The film strip says what the rollout recorded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.helpers.rollouts import generate
from unmask.config import SamplerConfig
from unmask.functional.selection import step_sum
from unmask.models import load_model
from unmask.records import Needs, Rollout
from unmask.report.filmstrip import plot_filmstrip


@pytest.fixture
def rollout(tiny_model: Path) -> Rollout:
    """Two completions of 16 tokens in 4 steps, with the greedy completions of 2 steps and made-up rewards."""
    denoiser, tokenizer = load_model(tiny_model)
    sampler = SamplerConfig(max_completion_length=16, num_steps=4, temperature=0.9)
    needs = Needs(greedy=True, selection=("entropy_topk", 2))
    prompt = "1200003000004000="
    path = generate(denoiser, tokenizer, [prompt] * 2, sampler, torch.tensor([3, 4]), needs=needs)
    return Rollout(path, 2, torch.tensor([0.5, 1.0]), torch.tensor([[0.25, 0.75], [0.125, 0.0]]))


def texts(picture: Path) -> list[str]:
    """What is written in an SVG, piece by piece."""
    return re.findall(r">([^<>\n]+)</text>", picture.read_text())


def test_each_step_shows_its_tokens_and_its_joint_entropy(rollout, tmp_path):
    path = rollout.trajectory
    written = texts(plot_filmstrip(rollout, 1, lambda token: f"t{token}", tmp_path / "film.svg"))
    joint = step_sum(path.entropy, path.unmask_step, path.num_steps)[1].tolist()
    assert [text for text in written if text.startswith("H = ")] == [f"H = {value:.2f}" for value in joint]
    for token in set(path.tokens[1].tolist()):
        # A token committed at step k is shown at k and in every later picture.
        steps = path.unmask_step[1][path.tokens[1] == token]
        assert written.count(f"t{token}") == int((path.num_steps - steps).clamp(min=0).sum())


def test_the_selected_steps_carry_the_reward_of_their_greedy_completion(rollout, tmp_path):
    written = texts(plot_filmstrip(rollout, 0, str, tmp_path / "film.svg"))
    step = rollout.trajectory.greedy_step[0].tolist()
    by_time = [value for _, value in sorted(zip(step, [0.25, 0.75], strict=True))]
    assert [text for text in written if text.startswith("r(")] == [f"r(x̂) = {value:.2f}" for value in by_time]


def test_a_png_is_written_too(rollout, tmp_path):
    assert plot_filmstrip(rollout, 0, str, tmp_path / "film.png").read_bytes().startswith(b"\x89PNG")


def test_the_surer_a_token_was_the_lighter_it_is(rollout, tmp_path):
    path = rollout.trajectory
    path.entropy[0] = torch.linspace(0, 1, 16)
    picture = plot_filmstrip(rollout, 0, str, tmp_path / "film.svg").read_text()
    last = [tuple(bytes.fromhex(code)) for code in re.findall(r"fill: #(\w{6}); stroke: #c9c4b8", picture)][-16:]
    lightness = [sum(colour) for colour in last]
    assert lightness == sorted(lightness, reverse=True)
    assert lightness[0] - lightness[-1] > 300
