"""The trainer's comparison with the behaviour policy: its weights, its metrics and its limit, in every kind of update."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.helpers.messages import raises
from tests.helpers.rollouts import collect
from tests.helpers.runs import OWN_SETTINGS, steps_saved, train_recipe
from unmask.core.config import SamplerConfig
from unmask.core.errors import RolloutError
from unmask.core.records import Rollout, Trajectory, ViewLogprobs, Views
from unmask.functional.noise import named_generator
from unmask.methods import METHODS
from unmask.methods.egspo import EGSPO
from unmask.models import Denoiser, TinyConfig, char_tokenizer, load_model, tiny_denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling import LogprobSettings, denoise, view_logprobs
from unmask.sampling.engine import LocalEngine
from unmask.tasks import Sudoku
from unmask.trainer import Trainer
from unmask.trainer.behaviour import Comparison, Ratios, path_views
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally, TokenPasses
from unmask.trainer.reference import FrozenCopy

TASK = Sudoku()
SETTINGS = (
    "num_prompts=2",
    "num_generations=3",
    "num_iterations=1",
    "method.num_selected=3",
    "method.beta=0",
    "optim.max_grad_norm=1.0e9",
    "optim.warmup_steps=0",
    "optim.learning_rate=1.0e-12",
)


@per_completion
def count_ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


class Bench:
    """A denoiser, its rollout, and updates from it that leave the denoiser as it is."""

    def __init__(self, denoiser: Denoiser, folder: Path) -> None:
        self.denoiser, self.folder, self.accelerator = denoiser, folder, Accelerator()

    def recipe(self, *overrides: str) -> TrainRecipe:
        return train_recipe(self.folder, self.folder, *SETTINGS, *overrides)

    def rollout(self, recipe: TrainRecipe) -> Rollout:
        rows = TASK.rows("train", 2)
        tokenizer = char_tokenizer(TASK.alphabet)
        return collect(self.denoiser, tokenizer, Scorer({"ones": count_ones}), recipe, rows, 0, slice(None), Tally())

    def update(self, recipe: TrainRecipe, rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Return the gradient of the last update, and the metrics."""
        optimizer = self.accelerator.prepare(torch.optim.SGD(self.denoiser.parameters(), lr=1.0))
        reference = FrozenCopy.of(self.denoiser, "cpu")
        learner = Learner(self.accelerator, self.denoiser, optimizer, reference, recipe)
        tally = Tally()
        self.denoiser.zero_grad()
        learner.update(rollout, 0, named_generator(0, "update", 0), tally)
        gradient = torch.cat([p.grad.flatten() for p in self.denoiser.parameters() if p.grad is not None])
        return gradient, tally.reduce(self.accelerator)

    def gradient(self, recipe: TrainRecipe, rollout: Rollout) -> Tensor:
        return self.update(recipe, rollout)[0]


@pytest.fixture
def bench(lively: Denoiser, tmp_path: Path) -> Bench:
    return Bench(lively, tmp_path)


def shifted(rollout: Rollout, shift: Tensor | float, where: Tensor | None = None) -> Rollout:
    """Return the rollout with log-probabilities that are `shift` nats higher at the sampled tokens, as if another policy
    had sampled them."""
    path = rollout.trajectory
    is_sampled = (path.unmask_step >= 0) & (path.unmask_step < path.num_steps)
    is_shifted = is_sampled if where is None else is_sampled & where
    moved = path.logprob + torch.where(is_shifted, torch.as_tensor(shift), torch.zeros_like(path.logprob))
    return replace(rollout, trajectory=replace(path, logprob=moved))


def noisy(rollout: Rollout, size: float = 0.7) -> Rollout:
    """Return the rollout as if another policy had sampled it."""
    noise = torch.randn(rollout.trajectory.logprob.shape, generator=torch.Generator().manual_seed(3))
    return shifted(rollout, size * noise)


def first_of_each(rollout: Rollout, by_step: bool) -> Tensor:
    """Return [B, L] bool, one sampled token of each completion, or of each of its steps."""
    when = rollout.trajectory.unmask_step
    mask = torch.zeros_like(when, dtype=torch.bool)
    for row, steps in enumerate(when.tolist()):
        for step in sorted(set(steps) - {-1, rollout.trajectory.num_steps})[: None if by_step else 1]:
            mask[row, steps.index(step)] = True
    return mask


def close(found: Tensor, wanted: Tensor) -> bool:
    assert wanted.norm() > 1e-4
    return bool((found - wanted).norm() / wanted.norm() < 1e-4)


# --- every method ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_a_ratio_of_one_half_everywhere_halves_the_gradient_of_every_method(bench: Bench, method: str) -> None:
    settings = [f"method={{type: {method}}}", *OWN_SETTINGS.get(method, ())]
    if "beta" in METHODS[method].model_fields and method not in ("vrpo", "dtrpo"):
        settings.append("method.beta=0")
    plain = bench.recipe(*settings)
    rollout = bench.rollout(plain)
    whole = bench.gradient(plain, rollout)
    levels = plain.method.behaviour_levels(plain.sampler)
    has_none = ("vrpo", "dtrpo", "dmpo", "gdsd", "direct_advantage", "trajectory_balance")
    assert (levels == ("off",)) == (method in has_none)
    for level in levels:
        if level == "off":
            continue
        recipe = bench.recipe(*settings, f"behaviour.level={level}")
        where = None if level == "token" else first_of_each(rollout, level == "step")
        gradient = bench.gradient(recipe, shifted(rollout, math.log(2), where))
        assert close(gradient, whole / 2), level
        assert close(bench.gradient(recipe, rollout), whole), "an exact rollout is not changed"


class TwoRanks:
    """Two ranks with the same numbers of weights; those of the other rank add up to a given sum."""

    def __init__(self, other: float) -> None:
        self.other = other

    def objects(self, own: tuple[float, int]) -> list[tuple[float, int]]:
        return [own, (self.other, own[1])]


def test_the_mean_of_normalised_weights_is_that_of_all_ranks(bench: Bench) -> None:
    recipe = bench.recipe("behaviour={level: step, normalise: true}")
    rollout = bench.rollout(recipe)
    path, views = rollout.trajectory, recipe.method.plan(rollout, torch.Generator())
    recorded = ViewLogprobs(path.logprob[views.row] * views.target)
    ranks: Any = TwoRanks(other=3.0 * len(views))
    weights = Comparison(recipe.behaviour, "step", True, path, ranks, Tally()).weights(views, recorded, None)
    assert weights is not None
    assert weights.scale == pytest.approx(0.5, rel=1e-6), "the weights of this rank are 1, those of the other 3"


# --- a cached rollout ---


def completions_of(denoiser: Denoiser, cache: str) -> Trajectory:
    """Return every completion that the sampler draws, once each. There are two tokens besides EOS and PAD, three positions,
    and one block, in which only the keys and values of the prompt become stale."""
    sampler = SamplerConfig(max_completion_length=3, num_steps=3, order="left_to_right", temperature=2.0, cache=cache)
    prompt = torch.full((4096, 2), 4)
    path = denoise(denoiser, prompt, torch.ones_like(prompt, dtype=torch.bool), sampler, torch.arange(4096))
    first: dict[tuple[int, ...], int] = {}
    for row, tokens in enumerate(path.tokens.tolist()):
        first.setdefault(tuple(tokens), row)
    return path.rows(torch.tensor([first[tokens] for tokens in sorted(first)]))


def test_weights_turn_the_distribution_of_a_cached_rollout_into_that_of_the_policy() -> None:
    denoiser = tiny_denoiser(TinyConfig(num_layers=2, width=16, num_heads=2), char_tokenizer("01"), seed=0).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0)
    exact, cached = completions_of(denoiser, "off"), completions_of(denoiser, "dual")
    assert torch.equal(exact.tokens, cached.tokens)
    policy, behaviour = (path.logprob.double().sum(-1).exp() for path in (exact, cached))
    assert float(policy.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(behaviour.sum()) == pytest.approx(1.0, abs=1e-6)
    states = path_views(cached, torch.arange(len(cached)))
    with torch.no_grad():
        scores = view_logprobs(denoiser, cached, states, LogprobSettings.of(cached, "sampling"))
    weight = Ratios.of(cached, states.row, states.target, scores, "sequence").log_ratio.double().exp()
    assert float((behaviour - policy).abs().sum()) > 0.005, "stale keys make another policy"
    torch.testing.assert_close(weight * behaviour, policy, rtol=0, atol=1e-6)


# --- weights by hand ---


def by_hand(rollout: Rollout, noisy: Rollout, level: str, cap: float = math.inf) -> Tensor:
    """Return the weight of each step of each completion, [B, T], from the two records of the log-probabilities; the first
    is that of an exact rollout, so it is the old policy's."""
    path = rollout.trajectory
    gap = path.logprob.double() - noisy.trajectory.logprob.double()
    by_step = torch.stack([(gap * (path.unmask_step == k)).sum(-1) for k in range(path.num_steps)], dim=-1)
    if level == "sequence":
        by_step = by_step.sum(-1, keepdim=True).expand_as(by_step)
    return by_step.exp().clamp(max=cap)


def weighted_gradient(bench: Bench, recipe: TrainRecipe, rollout: Rollout, weight: Tensor) -> Tensor:
    """Return the gradient of -Σ weight A log π over the method's views, computed view by view with the plain loss."""
    path = rollout.trajectory
    views = recipe.method.plan(rollout, torch.Generator())
    advantage = recipe.method.advantage(rollout)
    of_view = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
    bench.denoiser.zero_grad()
    for n in range(len(views)):
        row, target = int(views.row[n]), views.target[n]
        step = int(path.unmask_step[row][target][0])
        ids = torch.cat([path.prompt_ids[row], path.state_before(step)[row]]).unsqueeze(0)
        logits = bench.denoiser.backbone(input_ids=ids).logits[0, path.prompt_ids.shape[1] :] / path.sampler.temperature
        logits[:, path.mask_id] = -torch.inf
        logprob = logits.log_softmax(-1).gather(-1, path.tokens[row].unsqueeze(-1)).squeeze(-1)[target].sum()
        factor = weight[row, step] * of_view[n] * views.weight[n] / len(path)
        (-float(factor) * logprob).backward()
    return torch.cat([p.grad.flatten() for p in bench.denoiser.parameters() if p.grad is not None])


@pytest.mark.parametrize("level", ["step", "sequence"])
@pytest.mark.parametrize("more", [(), ("num_iterations=2",), ("views_per_forward=2",)], ids=str)
def test_the_gradient_is_that_of_the_views_weighted_by_hand(bench: Bench, level: str, more: tuple[str, ...]) -> None:
    recipe = bench.recipe(f"behaviour.level={level}", *more)
    rollout = bench.rollout(recipe)
    other = noisy(rollout)
    weight = by_hand(rollout, other, level, cap=2.0)
    assert (weight == 2.0).any(), "some weights are truncated"
    assert (weight < 2.0).any(), "some are not"
    expected = weighted_gradient(bench, recipe, rollout, weight)
    assert close(bench.gradient(recipe, other), expected)
    assert not close(bench.gradient(bench.recipe(*more), other), expected)


@pytest.mark.parametrize("more", [(), ("num_iterations=2",)], ids=str)
def test_normalised_weights_have_the_mean_one(bench: Bench, more: tuple[str, ...]) -> None:
    recipe = bench.recipe("behaviour={level: step, cap: 0, normalise: true}", *more)
    rollout = bench.rollout(recipe)
    other = noisy(rollout)
    weight = by_hand(rollout, other, "step")
    views = recipe.method.plan(rollout, torch.Generator())
    step = torch.stack([rollout.trajectory.unmask_step[r][t][0] for r, t in zip(views.row, views.target, strict=True)])
    mean = weight[views.row, step.long()].mean()
    assert abs(mean - 1) > 0.05
    assert close(bench.gradient(recipe, other), weighted_gradient(bench, recipe, rollout, weight / mean))


def test_the_ratio_is_that_of_the_sampling_distribution_whatever_the_temperature_of_the_loss(bench: Bench) -> None:
    plain = bench.recipe("logprob_temperature=1.0")
    recipe = bench.recipe("logprob_temperature=1.0", "behaviour.level=step")
    rollout = bench.rollout(recipe)
    gradient, metrics = bench.update(recipe, rollout)
    assert close(gradient, bench.gradient(plain, rollout))
    assert metrics["behaviour/ratio_max"] == pytest.approx(1.0, abs=1e-4)


# --- metrics ---


@pytest.mark.parametrize(
    "more", [(), ("num_iterations=2", "num_minibatches=2"), ("behaviour.normalise=true",)], ids=str
)
def test_the_metrics_describe_the_ratios_of_the_views(bench: Bench, more: tuple[str, ...]) -> None:
    recipe = bench.recipe("behaviour={level: step, cap: 1.5, band: [0.5, 3]}", *more)
    rollout = bench.rollout(recipe)
    other = noisy(rollout)
    _, metrics = bench.update(recipe, other)
    path, views = rollout.trajectory, recipe.method.plan(rollout, torch.Generator())
    ratio = by_hand(rollout, other, "step")
    pairs = [
        (int(row), int(path.unmask_step[row][target][0])) for row, target in zip(views.row, views.target, strict=True)
    ]
    ratios = torch.stack([ratio[row, step] for row, step in pairs])
    count = torch.tensor([int((path.unmask_step[row] == step).sum()) for row, step in pairs])
    mean_ratio = ratios ** (1 / count)
    is_masked = (mean_ratio < 0.5) | (mean_ratio > 3)
    assert metrics["behaviour/ratio_mean"] == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert metrics["behaviour/ratio_max"] == pytest.approx(float(ratios.max()), rel=1e-4)
    assert metrics["behaviour/masked_share"] == pytest.approx(float(is_masked.double().mean()), rel=1e-6)
    truncated = ((ratios > 1.5) & ~is_masked).double().mean()
    assert metrics["behaviour/truncated_share"] == pytest.approx(float(truncated), rel=1e-6)
    share = ratios.sum() ** 2 / (len(ratios) * ratios.square().sum())
    assert metrics["behaviour/effective_share"] == pytest.approx(float(share), rel=1e-4)
    assert 0.0 < metrics["behaviour/effective_share"] < 1.0
    assert metrics["behaviour/truncated_share"] > 0.0


def test_a_sequence_level_measures_whole_completions(bench: Bench) -> None:
    recipe = bench.recipe("behaviour.level=sequence")
    rollout = bench.rollout(recipe)
    other = noisy(rollout, 0.2)
    _, metrics = bench.update(recipe, other)
    ratio = by_hand(rollout, other, "sequence")[:, 0]
    assert metrics["behaviour/ratio_mean"] == pytest.approx(float(ratio.mean()), rel=1e-4)
    assert metrics["behaviour/ratio_max"] == pytest.approx(float(ratio.max()), rel=1e-4)


def test_an_exact_rollout_is_neither_weighted_nor_measured_by_default(bench: Bench) -> None:
    recipe = bench.recipe()
    _, metrics = bench.update(recipe, bench.rollout(recipe))
    assert not any(name.startswith("behaviour/") for name in metrics)


# --- what it costs ---


def test_only_the_level_of_completions_and_a_mean_take_forward_passes(bench: Bench) -> None:
    meter = TokenPasses(bench.denoiser)
    costs = {}
    for name, settings in {
        "off": "behaviour.level=off",
        "step": "behaviour.level=step",
        "mean": "behaviour={level: step, normalise: true}",
        "sequence": "behaviour.level=sequence",
        "mean of sequences": "behaviour={level: sequence, normalise: true}",
    }.items():
        recipe = bench.recipe("method.stepwise_weight=0", settings)
        rollout = bench.rollout(recipe)
        # The first group is flat, so that its completions have the advantage 0.
        rollout.reward[:3] = 0.5
        meter.take()
        bench.update(recipe, rollout)
        costs[name] = meter.take()
    num_states = [len(path_views(rollout.trajectory, rows)) for rows in (torch.arange(3, 6), torch.arange(6))]
    num_views = len(recipe.method.plan(rollout, torch.Generator()))
    length = rollout.trajectory.prompt_ids.shape[1] + rollout.trajectory.tokens.shape[1]
    assert costs["step"] == costs["off"]
    assert costs["sequence"] == costs["off"] + num_states[0] * length
    assert costs["mean of sequences"] == costs["off"] + num_states[1] * length
    # Views without a gradient are not left out, because their weights are a part of the mean.
    assert costs["mean"] == 4 * num_views * length
    assert costs["off"] < 3 * num_views * length


# --- a method of one's own ---


class Coarse(EGSPO):
    """EGSPO whose views hide everything, although it says that they are states of the path."""

    type: Literal["coarse"] = "coarse"  # type: ignore[assignment]

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        views = super().plan(rollout, generator)
        return replace(views, hidden=torch.ones_like(views.hidden))


def test_views_that_are_no_states_of_the_path_cannot_be_weighted_by_step(bench: Bench) -> None:
    recipe = bench.recipe("behaviour.level=step")
    rollout = bench.rollout(recipe)
    coarse = recipe.model_copy(update={"method": Coarse(num_selected=3, beta=0.0)})
    with pytest.raises(ValueError, match="behaviour_levels"):
        bench.update(coarse, rollout)


# --- the limit ---


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("more", [("num_iterations=1",), ("num_iterations=2",)], ids=str)
def test_a_ratio_above_the_limit_stops_the_run_before_the_weights_change(
    bench: Bench, sign: float, more: tuple[str, ...]
) -> None:
    recipe = bench.recipe("behaviour.max_ratio=2.5", "optim.learning_rate=0.1", *more)
    rollout = bench.rollout(recipe)
    # The last completion has the largest ratio, e^1.005.
    shift = sign * (1 + 0.001 * torch.arange(6.0).unsqueeze(-1))
    before = {name: value.clone() for name, value in bench.denoiser.state_dict().items()}
    with raises(RolloutError, "likely", "behaviour.max_ratio = 2.5"):
        bench.update(recipe, shifted(rollout, shift))
    assert all(torch.equal(value, before[name]) for name, value in bench.denoiser.state_dict().items())
    bench.update(recipe, shifted(rollout, 0.9 * shift))


def test_a_ratio_that_is_not_a_number_is_above_the_limit(bench: Bench) -> None:
    recipe = bench.recipe("behaviour.max_ratio=2.5", "behaviour.level=sequence")
    with raises(RolloutError, "behaviour.max_ratio"):
        bench.update(recipe, shifted(bench.rollout(recipe), math.nan))


class Drifting(LocalEngine):
    """An engine that samples from another distribution from the fourth step on, as far as its records say."""

    def rollout(self, *arguments: Any, **options: Any) -> Trajectory:
        path = super().rollout(*arguments, **options)
        return replace(path, logprob=path.logprob - float(path.policy_version >= 3))


@pytest.mark.slow
def test_a_run_that_stops_at_the_limit_names_the_step_and_its_last_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", "behaviour.max_ratio=2")
    with raises(RolloutError, "behaviour.max_ratio = 2") as caught:
        Trainer(recipe, [count_ones], engine=Drifting(load_model(tiny_model))).train()
    (note,) = caught.value.__notes__
    assert note == "This is step 4. Nothing was overwritten; the checkpoint of step 2 is complete."
    assert steps_saved(tmp_path / "run") == [2]
