"""The recorder saves texts, guesses with rewards and trained views, and changes nothing in the
run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import metrics, train_recipe, weights
from unmask.functional.noise import named_generator
from unmask.methods import METHODS
from unmask.models import Denoiser, load_model
from unmask.report.film import Vocabulary, film_of
from unmask.rewards import per_completion
from unmask.runs.saved_rollouts import SavedRollout
from unmask.sampling import engine
from unmask.sampling.encoding import decode
from unmask.sampling.one_step import one_step_completions
from unmask.tasks.sudoku import Sudoku
from unmask.trainer import Trainer, recorder

KEEP = ("log_rollouts_steps=1", "log_rollouts_groups=2", "max_steps=1")


@per_completion
def share_of_ones(completions: list[str], **_: Any) -> list[float]:
    return [text.count("1") / 16 for text in completions]


def saved_of(model: Path, folder: Path, *overrides: str, step: int = 1) -> SavedRollout:
    run = Trainer(train_recipe(model, folder, *KEEP, *overrides), [share_of_ones]).train()
    return SavedRollout.load(run / "rollouts" / f"step-{step:08d}.safetensors")


@pytest.mark.slow
def test_texts_and_pieces_are_those_of_the_tokens(tiny_model: Path, tmp_path: Path) -> None:
    saved, (_, tokenizer) = saved_of(tiny_model, tmp_path / "run"), load_model(tiny_model)
    path = saved.rollout.trajectory
    assert saved.completions == decode(tokenizer, path.tokens)
    assert {saved.pieces[int(i)] for i in path.tokens.unique()} <= {"0", "1", "2", "3", "4", "=", "<pad>", "<eos>"}
    rows = {row["prompt"]: row["answer"] for row in Sudoku().rows("train", 20, 0)}
    assert [rows[prompt] for prompt in saved.prompts] == saved.answers
    prompt_ids = [ids[mask].tolist() for ids, mask in zip(path.prompt_ids, path.prompt_mask, strict=True)]
    assert [tokenizer.decode(ids) for ids in prompt_ids[:: saved.rollout.group_size]] == saved.prompts


@pytest.mark.parametrize(("count", "steps"), [("32", [0, 1, 2, 3]), ("4", [0, 1, 2, 3]), ("2", [0, 3]), ("1", [0])])
@pytest.mark.slow
def test_guesses_are_of_the_policy_before_the_update_and_scored(
    tiny_model: Path, tmp_path: Path, count: str, steps: list[int]
) -> None:
    rate = "optim.learning_rate=0.1"
    saved = saved_of(tiny_model, tmp_path / "run", f"log_rollouts_guesses={count}", rate, "optim.warmup_steps=0")
    guesses, path = saved.guesses, saved.rollout.trajectory
    assert guesses is not None
    assert guesses.step.tolist() == steps
    denoiser, tokenizer = load_model(tiny_model)
    assert torch.equal(guesses.tokens, one_step_completions(denoiser.eval(), path, steps))
    # The update changes the policy, so the trained model guesses other tokens.
    trained, _ = load_model(tmp_path / "run" / "final")
    assert not torch.equal(guesses.tokens, one_step_completions(trained.eval(), path, steps))
    texts = decode(tokenizer, guesses.tokens.flatten(0, 1).long())
    assert guesses.reward is not None
    assert guesses.reward.flatten().tolist() == pytest.approx(share_of_ones(texts))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["merged", "whole"])
def test_guesses_read_the_weights_that_the_rollout_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    read: dict[str, list[tuple[Denoiser, Tensor]]] = {"rollout": [], "guesses": []}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(denoiser: Denoiser, *arguments: Any, **options: Any) -> Any:
            read[name].append((denoiser, next(denoiser.parameters()).detach().clone()))
            return function(denoiser, *arguments, **options)

        return noted

    monkeypatch.setattr(engine, "denoise", noting("rollout", engine.denoise))
    monkeypatch.setattr(recorder, "one_step_completions", noting("guesses", recorder.one_step_completions))
    options = ["lora={r: 2, alpha: 16}", f"rollout_weights={weights}", "evaluation.eval_steps=0"]
    saved = saved_of(tiny_model, tmp_path / "run", *options)
    (of_guesses, values), (of_rollout, expected) = read["guesses"][0], read["rollout"][0]
    assert of_guesses is of_rollout
    assert torch.equal(values, expected), "the block of weights is open"
    has_adapters = any("lora" in name for name, _ in of_guesses.named_parameters())
    assert has_adapters == (weights == "whole")
    assert saved.guesses is not None


@pytest.mark.slow
def test_no_guesses_are_saved_if_their_number_is_zero(tiny_model: Path, tmp_path: Path) -> None:
    assert saved_of(tiny_model, tmp_path / "run", "log_rollouts_guesses=0").guesses is None


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_saved_views_are_the_methods_own_plan_and_advantage(tiny_model: Path, tmp_path: Path, method: str) -> None:
    own = {
        "egspo": ["method.num_selected=2"],
        "just_grpo": ["sampler.order=left_to_right", "sampler.num_steps=16"],
        "mask_aware": ["method.num_segments=0", "method.num_sampled=2", "sampler.order=plackett_luce"],
        "step_merge": ["method.num_segments=2"],
        "trace_rl": ["method.num_segments=2"],
    }
    options = [f"method.type={method}", *own.get(method, [])]
    recipe = train_recipe(tiny_model, tmp_path / "run", *KEEP, *options)
    Trainer(recipe, [share_of_ones]).train()
    saved = SavedRollout.load(tmp_path / "run" / "rollouts" / "step-00000001.safetensors")
    path, trained = saved.rollout.trajectory, saved.trained
    assert trained is not None
    # The run saves all groups, so the method gives the same plan again.
    views = recipe.method.plan(saved.rollout, named_generator(recipe.seed, "update", 0))
    advantage = recipe.method.advantage(saved.rollout)
    advantage = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
    assert trained.row.tolist() == views.row.tolist()
    torch.testing.assert_close(trained.advantage, advantage)
    # The report can show the file.
    film, _ = film_of(saved, 1, {}, Vocabulary([saved]))
    members = [member for group in film["groups"] for member in group["members"]]
    for row, member in enumerate(members):
        assert member["selected"] == sorted({k for k in trained.step[trained.row == row].tolist() if k >= 0})
        assert set(map(int, [*member["advantages"], *member["fills"]])) == set(member["selected"])
    for view, step in enumerate(trained.step.tolist()):
        shows = torch.where(views.hidden[view], path.mask_id, path.tokens[views.row[view]])
        is_state = [torch.equal(shows, path.state_before(k)[views.row[view]]) for k in range(path.num_steps)]
        prompt_is_whole = views.prompt_hidden is None or not views.prompt_hidden[view].any()
        assert (step >= 0) == (any(is_state) and prompt_is_whole)
        if step >= 0:
            assert is_state[step]
            assert (path.unmask_step[views.row[view]] == step)[views.target[view]].any()


@pytest.mark.slow
def test_a_saved_view_names_the_slot_whose_branches_it_shows(tiny_model: Path, tmp_path: Path) -> None:
    options = ["method={type: dispo, num_states: 2, num_fills: 5}"]
    saved = saved_of(tiny_model, tmp_path / "run", *options)
    path, trained = saved.rollout.trajectory, saved.trained
    assert trained is not None
    # DiSPO trains on each completion from all masks, then on its states with their own branches.
    own, states = trained.slot < 0, trained.slot >= 0
    assert int(own.sum()) == len(path)
    assert trained.step[own].tolist() == [0] * len(path)
    assert int(states.sum()) == int((path.selected_steps >= 0).sum())
    assert torch.equal(path.selected_steps[trained.row[states], trained.slot[states]].int(), trained.step[states])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["method.type=egspo", "method.step_choice=all"], [1.0, 1.0, 1.0, 1.0]),
        (["method.type=egspo", "method.step_choice=last_k", "method.num_selected=2"], [0.0, 0.0, 1.0, 1.0]),
        (["method.type=espo"], None),
    ],
)
@pytest.mark.slow
def test_selected_steps_are_counted(
    tiny_model: Path, tmp_path: Path, options: list[str], expected: list[float] | None
) -> None:
    saved_of(tiny_model, tmp_path / "run", *options)
    selected = metrics(tmp_path / "run")[-1].get("diffusion/selected_by_step")
    assert selected == expected or (expected is None and sum(selected or [0]) < 1)


@pytest.mark.slow
def test_recording_changes_neither_the_run_nor_its_counts_of_compute(tiny_model: Path, tmp_path: Path) -> None:
    for name, steps in (("with", 1), ("without", 0)):
        recipe = train_recipe(tiny_model, tmp_path / name, f"log_rollouts_steps={steps}", "max_steps=3")
        Trainer(recipe, [share_of_ones]).train()
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


@pytest.mark.slow
def test_a_reward_that_fails_on_guesses_does_not_stop_the_run(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    @per_completion
    def fails_later(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        # The first two calls score the rollout, and the third scores its guesses.
        if len(calls) == 3:
            raise RuntimeError("no guesses please")
        return share_of_ones(completions)

    recipe = train_recipe(tiny_model, tmp_path / "run", *KEEP, "evaluation.eval_steps=0")
    with caplog.at_level(logging.WARNING, logger="unmask"):
        Trainer(recipe, [fails_later]).train()
    saved = SavedRollout.load(tmp_path / "run" / "rollouts" / "step-00000001.safetensors")
    assert saved.guesses is not None
    assert saved.guesses.reward is None
    assert "the one-step guesses saved of this step have no rewards" in caplog.text
    assert "no guesses please" in caplog.text
