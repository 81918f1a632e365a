"""The token budget of a forward pass: the recipe's, the probe's, and that neither changes what a
run learns."""

from __future__ import annotations

import copy
import errno
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.helpers.messages import raises
from tests.helpers.processes import exit_codes_of_two
from tests.helpers.rollouts import collect
from tests.helpers.runs import OWN_SETTINGS, metrics, train_recipe
from unmask.core.errors import ConfigError, RunError, UnmaskError
from unmask.core.records import Row
from unmask.functional.noise import named_generator
from unmask.methods import METHODS
from unmask.models import Denoiser, char_tokenizer
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.tasks import Sudoku
from unmask.trainer import Trainer, token_budget
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.peak import peak_bytes
from unmask.trainer.policy import make_policy
from unmask.trainer.reference import FrozenCopy
from unmask.trainer.token_budget import FILE, TokenBudget, find_token_budget, first_that_fits, tokens_that_fit

TOKENIZER = char_tokenizer(Sudoku().alphabet)
# Prompts of 4 to 16 tokens.
ROWS: list[Row] = [row | {"prompt": row["prompt"][: 4 * i + 4]} for i, row in enumerate(Sudoku().rows("train", 4))]


@per_completion
def count_ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") + 0.1 * len(text) for text in completions]


class Watched:
    """Records the shape of each forward pass of a denoiser, and whether it builds a graph."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.seen: list[tuple[int, int, bool]] = []
        denoiser.register_forward_pre_hook(self._see)

    def _see(self, _module: object, args: tuple[Tensor, ...]) -> None:
        self.seen.append((*args[0].shape, torch.is_grad_enabled()))


def step(denoiser: Denoiser, recipe: TrainRecipe) -> tuple[Tensor, dict[str, float], Watched]:
    """Return the gradient of one update on prompts of several lengths, its metrics, and its forward
    passes."""
    denoiser = copy.deepcopy(denoiser)
    watched = Watched(denoiser)
    given = recipe.max_tokens_per_forward
    accelerator, tally = Accelerator(), Tally()
    scorer = Scorer({"ones": count_ones})
    tokens = given if isinstance(given, int) else None
    rollout = collect(denoiser, TOKENIZER, scorer, recipe, ROWS, 0, slice(None), tally, tokens)
    reference = copy.deepcopy(denoiser)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.9)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.0)
    learner = Learner(accelerator, denoiser, accelerator.prepare(optimizer), FrozenCopy(reference), recipe, tokens)
    learner.update(rollout, 0, named_generator(0, "update"), tally)
    gradient = torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])
    return gradient, tally.reduce(accelerator), watched


SETTINGS = ("num_generations=3", "num_prompts=4", "optim.max_grad_norm=1.0e9", "optim.warmup_steps=0")


# Methods with a separable loss, with compared distributions, with branches, and with a loss that is
# not separable.
@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("method.beta=0.04", "method.num_selected=3"),
        ("method.beta=0.04", "method.num_selected=3", "method.kl=exact"),
        ("method.type=egspo_ca",),
        ("method.type=espo",),
    ],
    ids=str,
)
def test_the_token_budget_changes_nothing_but_rounding(
    lively: Denoiser, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    whole, before, _ = step(lively, train_recipe(tmp_path, tmp_path, *SETTINGS, *overrides))
    assert whole.norm() > 1e-4
    for tokens in (100, 20):
        recipe = train_recipe(tmp_path, tmp_path, *SETTINGS, *overrides, f"max_tokens_per_forward={tokens}")
        parts, after, watched = step(lively, recipe)
        assert (parts - whole).norm() / whole.norm() < 1e-5
        assert after["reward"] == before["reward"]
        assert after["loss"] == pytest.approx(before["loss"], abs=1e-6)
        assert all(rows * width <= tokens or rows == 1 for rows, width, _ in watched.seen)
        if tokens == 100:
            # Each pass has as many rows as fit, and is as wide as its own longest prompt.
            for wanted in (True, False):
                shapes = {(rows, width) for rows, width, graph in watched.seen if graph == wanted}
                assert min(width for _, width in shapes) < 32 == max(width for _, width in shapes)
                assert max(rows * width for rows, width in shapes) > 64


def test_the_line_through_two_measurements_gives_the_tokens_that_fit() -> None:
    assert tokens_that_fit([(10, 140), (20, 240)], free=1040) == 100
    # Memory that does not grow always fits.
    assert tokens_that_fit([(10, 140), (20, 140)], free=1040) > 10**9


def test_a_trial_that_runs_out_of_memory_is_made_smaller_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    held: list[weakref.ref[Tensor]] = []

    def attempt(rows: int) -> None:
        tried.append(rows)
        activation = torch.zeros(rows)
        held.append(weakref.ref(activation))
        if rows > 5:
            raise torch.OutOfMemoryError

    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append([ref() for ref in held]))
    assert first_that_fits(attempt, 100, width=10) // 10 == 5
    assert tried == [10, 7, 5]
    # The cache is emptied when the error and its traceback no longer hold the tensors of the attempt.
    assert released == [[None], [None, None]]
    with pytest.raises(torch.OutOfMemoryError):
        first_that_fits(lambda rows: attempt(rows + 5), 100, width=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_probe_runs_every_method(name: str, tiny_model: Path, tmp_path: Path) -> None:
    own = OWN_SETTINGS.get(name, ())
    recipe = train_recipe(tiny_model, tmp_path, f"method={{type: {name}}}", *own, "max_tokens_per_forward=auto")
    accelerator = Accelerator()
    policy = make_policy(recipe, accelerator.device)
    budget = find_token_budget(recipe, policy, accelerator, ROWS, tmp_path, Ranks(accelerator))
    # There is memory for far more than a step has: two completions of 16 tokens for each of two
    # prompts of 16 tokens.
    assert budget == TokenBudget(4 * 32, 4 * 32)
    assert all(parameter.grad is None for parameter in policy.denoiser.parameters())


@pytest.mark.slow
def test_the_probed_budget_fills_the_free_memory_and_no_more(
    lively: Denoiser, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train_recipe(tiny_model, tmp_path, "num_prompts=512", "max_tokens_per_forward=auto")
    accelerator = Accelerator()
    policy = make_policy(recipe, accelerator.device)
    free = 2_000_000
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: free)
    budget = find_token_budget(recipe, policy, accelerator, ROWS, tmp_path, Ranks(accelerator))
    probe = token_budget._Probe(recipe, policy, accelerator, ROWS)
    for run, tokens in ((probe.rollout, budget.rollout), (probe.update, budget.update)):
        assert tokens is not None
        rows = tokens // probe.width
        assert 8 <= rows < 1024
        used = peak_bytes(lambda run=run, rows=rows: run(rows), policy.denoiser)  # type: ignore[misc]
        wanted = token_budget.SHARE * free - 2 * 4 * sum(p.numel() for p in policy.denoiser.parameters())
        assert 0.9 * wanted < used <= 1.02 * wanted
    # An update needs more memory than a rollout.
    assert json.loads((tmp_path / FILE).read_text()) == {"rollout": budget.rollout, "update": budget.update}
    # A resumed run has the same budget, whatever is free then.
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: 3 * free)
    assert find_token_budget(recipe, policy, accelerator, ROWS, tmp_path, Ranks(accelerator)) == budget


def test_a_row_that_does_not_fit_is_refused_with_advice(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train_recipe(tiny_model, tmp_path, "max_tokens_per_forward=auto")
    accelerator = Accelerator()
    policy = make_policy(recipe, accelerator.device)
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: 20_000)
    with pytest.raises(ConfigError, match=r"rows of 32 tokens need more memory .* gradient_checkpointing"):
        find_token_budget(recipe, policy, accelerator, ROWS, tmp_path, Ranks(accelerator))


def find_with_unlike_memory(rank: int, model: Path, folder: Path) -> None:
    """Give the second rank less memory, another folder and, at last, memory for no row."""
    free = [2_000_000, 1_000_000]
    token_budget.free_bytes = lambda device: free[rank]
    recipe = train_recipe(model, folder, "num_prompts=512", "max_tokens_per_forward=auto")
    accelerator = Accelerator()
    policy, ranks = make_policy(recipe, accelerator.device), Ranks(accelerator)
    accelerator.prepare(policy.denoiser)
    own = folder / f"seen by {rank}"
    own.mkdir()
    budget = find_token_budget(recipe, policy, accelerator, ROWS, own, Ranks(accelerator))
    budgets = ranks.objects(budget)
    assert budgets[0] == budgets[1]
    free[0] *= 4
    assert find_token_budget(recipe, policy, accelerator, ROWS, own, Ranks(accelerator)) == budget
    (own / FILE).unlink(missing_ok=True)
    free[1] = 20_000
    try:
        find_token_budget(recipe, policy, accelerator, ROWS, own, Ranks(accelerator))
    except UnmaskError as error:
        sys.exit(5 if error.is_agreed and "rows of 32 tokens need more memory" in str(error) else 6)


@pytest.mark.slow
def test_ranks_agree_on_the_smallest_budget_and_on_an_error(tiny_model: Path, tmp_path: Path) -> None:
    assert exit_codes_of_two(find_with_unlike_memory, tiny_model, tmp_path) == [5, 5]
    assert (tmp_path / "seen by 0").exists()


def test_a_disk_that_is_full_when_the_budget_is_saved_is_explained(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("unmask.trainer.token_budget.write_atomically", fail)
    recipe = train_recipe(tiny_model, tmp_path / "run", "max_tokens_per_forward=auto", "max_steps=1")
    with raises(RunError, "the disk is full", "--resume", snapshot=False):
        Trainer(recipe).train()


@pytest.mark.slow
def test_a_run_with_a_probed_budget_learns_what_a_run_without_learns(tiny_model: Path, tmp_path: Path) -> None:
    lines = {}
    for setting in ("null", "40", "auto"):
        folder = Trainer(
            train_recipe(tiny_model, tmp_path / setting, f"max_tokens_per_forward={setting}", "task.sparse=false")
        ).train()
        lines[setting] = metrics(folder)[-1]
    for setting in ("40", "auto"):
        assert lines[setting]["reward"] == lines["null"]["reward"]
        assert lines[setting]["loss"] == pytest.approx(lines["null"]["loss"], abs=1e-5)
    assert (tmp_path / "auto" / FILE).exists()
    assert not (tmp_path / "40" / FILE).exists()
