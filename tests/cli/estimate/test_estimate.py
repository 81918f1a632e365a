"""The cost of a recipe: counts against closed forms, bytes against a real run, and arithmetic by
hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.helpers.messages import raises
from unmask.cli import app
from unmask.cli.estimate import estimate
from unmask.cli.estimate.flops import costs_of
from unmask.cli.estimate.memory import NF4, memory_of
from unmask.cli.estimate.shapes import config_of
from unmask.cli.estimate.work import Pass, work_of
from unmask.core.errors import ConfigError, ModelError
from unmask.methods import METHODS
from unmask.models import Denoiser
from unmask.recipes.load import load_recipe
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.peak import peak_bytes

SHAPE = "layers=2,width=32,heads=4,ffn=64,vocab=50"


class Counting:
    """A denoiser that counts the calls, tokens and positions of its forward passes."""

    mask_id, eos_id = 0, 1

    def __init__(self) -> None:
        self.calls = self.tokens = self.head = 0

    def __call__(self, ids, attention_mask, positions):
        self.calls, self.tokens, self.head = self.calls + 1, self.tokens + ids.numel(), self.head + positions.numel()
        return torch.zeros(*positions.shape, 20)


def tiny(*overrides):
    return load_recipe("sudoku-tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "forwards", "tokens", "head"),
    [
        # 64 completions of 16 tokens after 18, of which 8 steps commit two each: 16 + 14 + ... + 2
        # positions are masked.
        ((), 8, 64 * 8 * 34, 64 * 72),
        (("rollout_batch_size=24",), 3 * 8, 64 * 8 * 34, 64 * 72),
        (("max_tokens_per_forward=170",), 13 * 8, 64 * 8 * 34, 64 * 72),
        # A method without one-step completions reads the active block only: 8 + 6 + 4 + 2
        # positions, twice.
        (("sampler.block_length=8", "method.stepwise_weight=0"), 8, 64 * 8 * 34, 64 * 40),
        # The sum of 16 + 14 + ... + 2, with and without the prompt.
        (("sampler.guidance=0.5",), 2 * 8, 2 * 64 * 8 * 34, 2 * 64 * 72),
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_rollout_costs_what_its_schedule_says(overrides, forwards, tokens, head) -> None:
    rollout = work_of(tiny(*overrides), 18).passes[0]
    assert (rollout.forwards, rollout.tokens, rollout.head) == (forwards, tokens, head)


def test_branches_are_denoised_from_their_steps_to_the_end() -> None:
    work = work_of(tiny("method={type: egspo_ca, num_selected: 2, finish: rollout}", "num_prompts=2"), 18)
    path = work.rollout.trajectory
    assert path.branch_tokens is not None
    num_steps = sum(7 - int(step) for step in path.selected_steps.flatten()) * path.branch_tokens.shape[2]
    [branches] = work.of("rollout, branches")
    assert branches.tokens == 34 * num_steps


@pytest.mark.parametrize("name", sorted(METHODS))
def test_views_are_counted_as_each_method_plans_them(name) -> None:
    segments = ["method.num_segments=4"] if "num_segments" in METHODS[name].model_fields else []
    selected = ["method.num_selected=4"] if name.startswith("egspo") else []
    orders = {
        "just_grpo": ["sampler.order=left_to_right", "sampler.num_steps=16"],
        "mask_aware": ["sampler.order=plackett_luce", "method.num_sampled=2"],
    }
    shared = ("num_prompts=2", "num_iterations=2", "views_per_forward=7")
    recipe = tiny(f"method.type={name}", *shared, *segments, *selected, *orders.get(name, []))
    work = work_of(recipe, 18)
    model = Counting()
    path = work.rollout.trajectory
    for start in range(0, len(work.views), 7):
        view_logprobs(model, path, work.views.take(slice(start, start + 7)), LogprobSettings.of(path, "sampling"))
    [old] = work.of("old policy")
    plans = 2 if recipe.method.fresh_views else 1
    assert old.tokens == plans * model.tokens
    if not recipe.method.needs().choice:
        assert (old.forwards, old.head) == (plans * model.calls, plans * model.head)
    assert bool(work.of("reference")) == (recipe.method.needs().reference != "none")
    # 7 views a forward are fewer than there are, but more than those of a completion.
    assert bool(work.of("update, first")) == (not recipe.method.separable and not recipe.method.by_completion)


def test_one_update_needs_no_old_pass() -> None:
    assert not work_of(tiny("num_iterations=1"), 18).of("old policy")


@pytest.mark.parametrize(
    ("settings", "num_views"),
    [
        (("behaviour.level=step",), 0),  # the update's own log-probabilities are those of the old policy
        (("behaviour={level: step, normalise: true}",), 4 * 64),
        (("behaviour={level: step, normalise: true}", "num_iterations=2"), 0),
        (("behaviour.level=step", "logprob_temperature=1.0"), 4 * 64),
        (("behaviour.level=sequence",), 8 * 64),
    ],
    ids=str,
)
def test_the_comparison_with_the_behaviour_policy_costs_a_pass_where_it_needs_one(settings, num_views) -> None:
    work = work_of(tiny("num_iterations=1", "method.num_selected=4", *settings), 18)
    assert sum(p.tokens for p in work.of("behaviour ratio")) == num_views * 34


def test_flops_are_those_that_torch_counts() -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
        num_key_value_heads=2, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    config.is_causal = False
    denoiser = Denoiser(LlamaForCausalLM(config), 0, 1, 1)
    costs = costs_of(denoiser, config, 24, 2, recomputes=False)
    ids, positions = torch.zeros(3, 24, dtype=torch.long), torch.arange(5).expand(3, -1)
    with FlopCounterMode(display=False) as counter:
        logits = denoiser(ids, None, positions)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    one = Pass("one", 1, 3, 72, 15, 5, "", backward=True)
    # Rotary angles are a product too: 24 positions x 4 frequencies, for all rows alike.
    assert forward - costs.forward(one) in range(0, 2 * 24 * 4 * 3 + 1)
    assert counter.get_total_flops() == costs.backward(one)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("lora={r: 4}",)], ids=["all weights", "lora"])
def test_the_memory_of_an_update_is_what_it_holds(overrides) -> None:
    from unmask.cli.estimate.shapes import build

    recipe = tiny("num_prompts=2", "views_per_forward=4", *overrides)
    config, _ = config_of(recipe, SHAPE)
    work = work_of(recipe, 18)
    found = {line.name: line.bytes for line in memory_of(recipe, config, work).peaks}
    denoiser = build(config, recipe, 2)
    path = work.rollout.trajectory

    def learn() -> None:
        view_logprobs(
            denoiser, path, work.views.take(slice(0, 4)), LogprobSettings.of(path, "sampling")
        ).logprob.sum().backward()

    learn()
    assert found["update"] == pytest.approx(peak_bytes(learn, denoiser), rel=0.05)


@pytest.mark.slow
def test_a_deep_model_is_extrapolated_from_shallow_ones(monkeypatch) -> None:
    recipe = tiny("num_prompts=2", "views_per_forward=4")
    config, _ = config_of(recipe, SHAPE.replace("layers=2", "layers=4"))
    work = work_of(recipe, 18)
    built = memory_of(recipe, config, work)
    monkeypatch.setattr("unmask.cli.estimate.memory.FEW", 1)
    monkeypatch.setattr("unmask.cli.estimate.memory.MORE", 2)
    extended = memory_of(recipe, config, work)
    assert extended.total == pytest.approx(built.total, rel=1e-3)
    assert extended.trained == built.trained


@pytest.mark.slow
def test_the_published_setting_has_llada_s_numbers() -> None:
    found = estimate(load_recipe("egspo-sa-llada-sudoku", ["num_prompts=8"]), processes=8, preset="zero2", flops=1e14)
    # By hand: embeddings and head 2 x 126464 x 4096, a layer 4 x 4096^2 + 3 x 4096 x 12288 and two
    # norms, one norm more.
    layer = 4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096
    matrices = 32 * (layer - 2 * 4096)
    lora = 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 12288))
    assert found.memory.parameters == 2 * 126464 * 4096 + 32 * layer + 4096 + lora
    assert found.memory.trained == lora
    by_name = {line.name: line.bytes for line in found.memory.resident}
    frozen = found.memory.parameters - lora
    assert by_name["weights, frozen"] == pytest.approx(matrices * NF4 + 2 * (frozen - matrices))
    assert by_name["optimizer"] == 2 * 4 * lora / 8
    assert by_name["reference"] == 0
    rollout = found.work.passes[0]
    assert (rollout.tokens, found.work.completions) == (8 * 128 * (200 + 256), 8)
    assert found.seconds["rollout"] == pytest.approx(found.costs.forward(rollout) / 1e14)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada-24gb", "dream-80gb"])
def test_a_recipe_for_one_gpu_fits_it_with_a_tenth_to_spare(name) -> None:
    room = float(name.split("-")[1].removesuffix("gb")) * 1e9
    total = estimate(load_recipe(f"egspo-sa-{name}"), on_gpu=True).memory.total
    assert 0.3 * room < total < 0.9 * room


# --- the command ---


@pytest.mark.slow
def test_the_command_shows_the_arithmetic_and_says_whether_it_fits() -> None:
    shown = CliRunner().invoke(
        app, ["estimate", "sudoku-tiny", "--shape", SHAPE, "--gpu-memory", "24GB", "--flops", "1e12"]
    )
    assert shown.exit_code == 0
    for part in ("optimizer", "state: 2 x", "fits 24 GB", "64 completions x 8 steps x", "steps an hour", "rollout"):
        assert part in shown.output
    tight = CliRunner().invoke(app, ["estimate", "sudoku-tiny", "--shape", SHAPE, "--gpu-memory", "1MB"]).output
    assert "does NOT fit" in tight
    assert "needs --flops" in tight


@pytest.mark.slow
def test_the_command_prints_json() -> None:
    shown = json.loads(CliRunner().invoke(app, ["estimate", "sudoku-tiny", "--shape", SHAPE, "--json"]).output)
    assert shown["completions"] == 64
    assert shown["total_bytes"] > 0


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("layers=2", ("--shape", "width, heads, ffn, vocab")),
        ("depth=2", ("depth", "layers, width, heads")),
        ("layers=two", ("two", "whole number")),
    ],
)
def test_a_shape_that_cannot_be_read_is_explained(shape, words) -> None:
    with raises(ConfigError, *words):
        config_of(tiny(), shape)


def test_a_model_that_is_not_here_can_be_given_by_its_shape(tmp_path) -> None:
    with raises(ModelError, "--shape"):
        config_of(tiny(f"model={tmp_path}/none"))


def test_processes_share_whole_prompts() -> None:
    with raises(ConfigError, "num_prompts = 6", "8"):
        estimate(load_recipe("egspo-sa-llada-sudoku"), processes=8)
