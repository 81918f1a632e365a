"""What a method states about its loss is true: when a view has no gradient, and whether the loss is a sum
over views or over completions."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from tests.helpers.rollouts import collect
from tests.helpers.runs import OWN_SETTINGS, train_recipe
from unmask.core.records import LossInputs
from unmask.functional.noise import named_generator
from unmask.methods import METHODS, Method
from unmask.methods.egspo import EGSPO
from unmask.models import Denoiser, char_tokenizer
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.tasks import Sudoku

PENALISED = [name for name, method in METHODS.items() if method.penalties]
STATED = [name for name, method in METHODS.items() if method.penalties is not None]


@per_completion
def ones(completions: list[str], **_: object) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


def inputs_of(method: Method, name: str, denoiser: Denoiser, folder: Path, is_zero: slice) -> LossInputs:
    """Return inputs of the loss with random log-probabilities. The advantages of the completions
    `is_zero` are 0."""
    settings = (f"method={{type: {name}}}", *OWN_SETTINGS.get(name, ()))
    recipe = train_recipe(folder, folder, "num_prompts=3", "num_generations=4", *settings)
    rows, tokenizer = Sudoku().rows("train", 3), char_tokenizer(Sudoku().alphabet)
    rollout = collect(denoiser, tokenizer, Scorer({"ones": ones}), recipe, rows)
    generator = named_generator(0, "statements")
    views = method.plan(rollout, generator)
    advantage = method.advantage(rollout)
    advantage = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
    # Advantages of the size of 1, so that no other view has 0 by chance.
    advantage = advantage.sign() + 0.5
    advantage[torch.isin(views.row, torch.arange(len(rollout.trajectory))[is_zero])] = 0.0
    target = views.target if views.tokens is None else views.target.unsqueeze(1).expand_as(views.tokens)

    def logprob() -> Tensor:
        return -torch.rand(target.shape, generator=generator).add(0.1).masked_fill(~target, 0.0)

    return LossInputs(
        new=logprob().requires_grad_(),
        old=logprob(),
        reference=logprob(),
        exact_kl=None,
        row=views.row,
        target=views.target,
        weight=views.weight,
        advantage=advantage,
        slot=views.slot,
        group_size=rollout.group_size,
        new_choice=logprob().requires_grad_() if views.tokens is None else None,
        old_choice=logprob() if views.tokens is None else None,
        mean_tokens=9.0,
        committed=views.committed,
    )


def gradient_by_view(
    method: Method, name: str, denoiser: Denoiser, folder: Path, is_zero: slice
) -> tuple[Tensor, Tensor]:
    """Return the norm of the gradient of the loss with respect to the log-probabilities of each
    view, and whether the method says that the view has a gradient."""
    inputs = inputs_of(method, name, denoiser, folder, is_zero)
    method.loss(inputs).loss.sum().backward()
    norm = torch.zeros(len(inputs.row))
    for leaf in (inputs.new, inputs.new_choice):
        norm += 0.0 if leaf is None or leaf.grad is None else leaf.grad.abs().flatten(1).sum(-1)
    return norm, method.has_gradient(inputs.advantage)


def part_of(inputs: LossInputs, index: Tensor) -> LossInputs:
    """Return the inputs of some views."""
    values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return replace(inputs, **{name: value[index] for name, value in values.items() if isinstance(value, Tensor)})


def without_penalties(name: str) -> Method:
    """Return the method at the settings of the tests, with all its penalties at 0. No ratio is clipped."""
    options = {penalty: 0.0 for penalty in METHODS[name].penalties or ()}
    if "trust_region" in METHODS[name].model_fields:
        options["trust_region"] = "none"
    for setting in OWN_SETTINGS.get(name, ()):
        key, _, value = setting.partition("=")
        if key.startswith("method.") and key.removeprefix("method.") not in options:
            options[key.removeprefix("method.")] = float(value)
    return METHODS[name].model_validate(options)


@pytest.mark.parametrize("name", STATED)
def test_a_view_of_advantage_zero_has_no_gradient_without_penalties(
    name: str, lively: Denoiser, tmp_path: Path
) -> None:
    norm, has_gradient = gradient_by_view(without_penalties(name), name, lively, tmp_path, slice(4, 9))
    assert (norm[~has_gradient] == 0).all()
    assert (~has_gradient).any()
    assert (norm[has_gradient] > 0).any()


@pytest.mark.parametrize("name", PENALISED)
def test_a_penalty_gives_a_view_of_advantage_zero_a_gradient(name: str, lively: Denoiser, tmp_path: Path) -> None:
    method = without_penalties(name).model_copy(update=dict.fromkeys(METHODS[name].penalties or (), 0.5))
    norm, has_gradient = gradient_by_view(method, name, lively, tmp_path, slice(None))
    assert has_gradient.all()
    assert (norm > 0).any()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - set(STATED)))
def test_a_method_that_reads_completions_of_advantage_zero_keeps_their_views(name: str) -> None:
    assert METHODS[name]().has_gradient(torch.zeros(3)).all()


def test_a_method_of_ones_own_states_nothing_unless_it_says_so() -> None:
    class Bonus(EGSPO):
        """EGSPO with a further term."""

        type: Literal["bonus"] = "bonus"  # type: ignore[assignment]

    class Plain(EGSPO):
        """EGSPO under another name."""

        type: Literal["plain"] = "plain"  # type: ignore[assignment]
        penalties: ClassVar[tuple[str, ...] | None] = ("beta",)

    advantage = torch.tensor([0.0, 1.0])
    assert Bonus(beta=0.0).has_gradient(advantage).tolist() == [True, True]
    assert Plain(beta=0.0).has_gradient(advantage).tolist() == [False, True]
    assert Plain(beta=0.1).has_gradient(advantage).tolist() == [True, True]


def test_a_view_of_several_sequences_has_a_gradient_if_one_of_them_has_an_advantage() -> None:
    advantage = torch.tensor([[0.0, 0.0], [0.0, -1.0]])
    assert METHODS["egspo_ca"]().has_gradient(advantage).tolist() == [False, True]


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_is_a_sum_over_what_the_method_states(name: str, lively: Denoiser, tmp_path: Path) -> None:
    method = without_penalties(name)
    inputs = inputs_of(method, name, lively, tmp_path, slice(0, 0))
    whole = method.loss(inputs).loss.sum()
    assert whole.abs() > 1e-3

    def summed(units: Tensor) -> Tensor:
        parts = [(units == unit).nonzero().squeeze(-1) for unit in units.unique()]
        return torch.stack([method.loss(part_of(inputs, part)).loss.sum() for part in parts]).sum()

    by_completion, by_group = summed(inputs.row), summed(inputs.row // inputs.group_size)
    torch.testing.assert_close(by_group, whole, rtol=1e-5, atol=1e-6)
    is_sum = bool((by_completion - whole).abs() < 1e-5 * whole.abs() + 1e-6)
    assert is_sum == (method.separable or method.by_completion)
    if method.separable:
        torch.testing.assert_close(summed(torch.arange(len(inputs.row))), whole, rtol=1e-5, atol=1e-6)
