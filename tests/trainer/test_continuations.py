"""Completions of intermediate states by further denoising."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.rollouts import ROWS, TOKENIZER, collect, count_ones
from tests.helpers.runs import train_recipe
from unmask.core.records import Trajectory
from unmask.models import Denoiser
from unmask.models.policy import Policy
from unmask.recipes.schema import TrainRecipe
from unmask.rewards.scorer import Scorer
from unmask.sampling.engine import LocalEngine
from unmask.trainer.continuations import with_denoised_values
from unmask.trainer.metrics import Tally


def recipe_of(folder: Path, *overrides: str) -> TrainRecipe:
    return train_recipe(folder, folder, "num_generations=3", "num_prompts=4", "sampler.num_steps=8", *overrides)


def path_of(denoiser: Denoiser, recipe: TrainRecipe) -> Trajectory:
    return collect(denoiser, TOKENIZER, Scorer({"ones": count_ones}), recipe, ROWS, 0, slice(None), Tally()).trajectory


def slots_of(path: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paths, slots and denoising steps of all selected steps."""
    assert path.selected_step is not None
    row, slot = (path.selected_step >= 0).nonzero(as_tuple=True)
    return row, slot, path.selected_step[row, slot].unsqueeze(-1)


def likelihoods(denoiser: Denoiser, path: Trajectory, row: int, tokens: Tensor) -> Tensor:
    """Return the probabilities of all tokens at each position of a state, [L, V]."""
    width = path.prompt_ids.shape[1]
    everything = torch.cat([path.prompt_ids[row], tokens])[None]
    seen = torch.nn.functional.pad(path.prompt_mask[row : row + 1], (0, len(tokens)), value=True)
    with torch.no_grad():
        logits = denoiser(everything, seen, torch.arange(width, width + len(tokens))[None])[0].float()
    logits[:, denoiser.mask_id] = -torch.inf
    return logits.softmax(-1)


def most_likely(denoiser: Denoiser, path: Trajectory, row: int, tokens: Tensor) -> Tensor:
    """Return the most likely token at each position of a state, [L]."""
    return likelihoods(denoiser, path, row, tokens).argmax(-1)


# --- values ---

SA = "method={type: egspo_sa, num_selected: 3, value_steps: %d}"


def test_one_step_of_a_single_block_is_the_one_step_completion(lively: Denoiser, tmp_path: Path) -> None:
    free, paid = (path_of(lively, recipe_of(tmp_path, SA % steps)) for steps in (0, 1))
    assert torch.equal(free.one_step_tokens, paid.one_step_tokens)
    assert torch.equal(free.tokens, paid.tokens)


def test_a_value_of_many_steps_is_a_greedy_rollout_of_the_state(lively: Denoiser, tmp_path: Path) -> None:
    path = path_of(lively, recipe_of(tmp_path, SA % 16))
    one_step = path_of(lively, recipe_of(tmp_path, SA % 0)).one_step_tokens
    differ = 0
    for row, slot, step in zip(*slots_of(path), strict=True):
        # One token in each step: of all most likely tokens, the one of largest probability.
        tokens = path.tokens[row].masked_fill(path.unmask_step[row] >= step, lively.mask_id)
        while (tokens == lively.mask_id).any():
            best, token = likelihoods(lively, path, int(row), tokens).max(-1)
            where = best.masked_fill(tokens != lively.mask_id, -1.0).argmax()
            tokens = tokens.clone()
            tokens[where] = token[where]
            ends = (tokens == lively.eos_id).nonzero()
            if len(ends) and not (tokens[: ends[0]] == lively.mask_id).any():
                tokens[tokens == lively.mask_id] = lively.eos_id
        assert path.one_step_tokens[row, slot].tolist() == tokens.tolist()
        differ += not torch.equal(path.one_step_tokens[row, slot], one_step[row, slot])
    assert differ, "a value of many steps would be the one-step value"


def test_a_value_depends_on_the_state_alone(lively: Denoiser, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, SA % 2)
    path = path_of(lively, recipe)
    row, slot, step = slots_of(path)
    engine, rows = LocalEngine(Policy(lively, TOKENIZER)), [row for row in ROWS for _ in range(3)]

    def values_of(changed: Tensor) -> Tensor:
        """Return the completions after a change of the tokens at these positions, [B, L]."""
        other = torch.where(path.tokens == lively.eos_id - 1, lively.eos_id - 2, lively.eos_id - 1)
        moved = replace(path, tokens=torch.where(changed, other, path.tokens))
        found = with_denoised_values(engine, rows, moved, recipe.sampler, recipe.method.needs()).one_step_tokens
        assert found is not None
        return found[row, slot]

    last = torch.zeros(len(path), dtype=torch.int64).scatter_reduce(0, row, step.squeeze(-1).long(), "amax")
    first = torch.full((len(path),), 16).scatter_reduce(0, row, step.squeeze(-1).long(), "amin")
    same = path.one_step_tokens[row, slot]
    assert torch.equal(values_of(path.unmask_step >= last.unsqueeze(-1)), same)
    # Tokens before the first selected step are part of all states.
    assert not torch.equal(values_of(path.unmask_step < first.unsqueeze(-1)), same)


def test_each_remaining_block_takes_its_own_steps(lively: Denoiser, tmp_path: Path) -> None:
    path = path_of(lively, recipe_of(tmp_path, SA % 1, "sampler.block_length=8", "sampler.order=left_to_right"))
    both = 0
    for row, slot, step in zip(*slots_of(path), strict=True):
        tokens = path.tokens[row].masked_fill(path.unmask_step[row] >= step, lively.mask_id)
        both += int((tokens[:8] == lively.mask_id).any() and (tokens[8:] == lively.mask_id).any())
        for block in (slice(0, 8), slice(8, 16)):
            masked = (tokens == lively.mask_id) & (torch.arange(16) // 8 == block.start // 8)
            tokens = torch.where(masked, most_likely(lively, path, int(row), tokens), tokens)
            ends = (tokens == lively.eos_id).nonzero()
            if len(ends) and not (tokens[: ends[0]] == lively.mask_id).any():
                tokens[tokens == lively.mask_id] = lively.eos_id
        assert path.one_step_tokens[row, slot].tolist() == tokens.tolist()
    assert both, "a state with two masked blocks would need no second step"


@pytest.mark.parametrize("setting", ["sampler.cache=dual", "sampler.schedule=threshold=0.3", "sampler.num_steps=16"])
def test_values_of_approximate_adaptive_and_long_rollouts_are_greedy_and_exact(
    lively: Denoiser, tmp_path: Path, setting: str
) -> None:
    refresh = ["sampler.cache_refresh_steps=2", "sampler.block_length=8"] if "cache" in setting else []
    recipe = recipe_of(tmp_path, SA % 40, "behaviour.level=off", setting, *refresh)
    path = path_of(lively, recipe)
    plain = recipe_of(tmp_path, SA % 16, *refresh[1:]).sampler
    engine, rows = LocalEngine(Policy(lively, TOKENIZER)), [row for row in ROWS for _ in range(3)]
    again = with_denoised_values(engine, rows, path, plain, recipe.method.needs())
    assert torch.equal(path.one_step_tokens, again.one_step_tokens)


# --- branches ---


def test_branches_are_denoised_further_from_the_state_after_their_action(lively: Denoiser, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "method={type: egspo_ca, num_selected: 2, num_actions: 16, finish: rollout}")
    plain = recipe_of(tmp_path, "method={type: egspo_ca, num_selected: 2, num_actions: 16}")
    branched, finished = (
        collect(lively, TOKENIZER, Scorer({"ones": count_ones}), r, ROWS, 0, slice(None), Tally()).trajectory
        for r in (recipe, plain)
    )
    assert torch.equal(branched.tokens, finished.tokens)
    row, slot = (branched.selected_step >= 0).nonzero(as_tuple=True)
    step = branched.selected_step[row, slot].unsqueeze(-1)
    when = branched.unmask_step[row]
    one, other = branched.branch_tokens[row, slot], finished.branch_tokens[row, slot]
    settled = (when <= step).unsqueeze(1).expand_as(one)
    # The actions and the tokens before them are equal; the rest is denoised further, not filled at
    # once.
    assert torch.equal(one[settled], other[settled])
    rest = (when > step).unsqueeze(1).expand_as(one)
    assert rest.any()
    assert (one[rest] != other[rest]).float().mean() > 0.2
    assert (one != lively.mask_id).all()
    # Each branch has its own draws: two branches with the same action differ later.
    same = (one[:, :1] == one).masked_fill(rest, True).all(-1) & (when > step).any(-1, keepdim=True)
    same[:, 0] = False
    twin = same.nonzero()
    assert len(twin)
    assert any(not torch.equal(one[view, 0], one[view, fill]) for view, fill in twin.tolist())
