"""The cost of a recipe: counts against closed forms, bytes against a real run, and arithmetic by
hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.helpers.messages import raises
from tests.helpers.paths import ROOT
from unmask.cli import app
from unmask.cli.estimate import estimate
from unmask.cli.estimate.flops import costs_of
from unmask.cli.estimate.memory import NF4, memory_of
from unmask.cli.estimate.shapes import build_fake, config_of, prompt_tokens
from unmask.cli.estimate.time import BALANCE, Rates, durations_of
from unmask.cli.estimate.work import Pass, Setup, scores_choice, work_of
from unmask.core.config import LoraConfig
from unmask.core.errors import ConfigError, ModelError
from unmask.functional.least_squares import ridge_regression, second_moments
from unmask.methods import METHODS
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.recipes.load import load_recipe
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.tasks.story_text import split_words
from unmask.trainer.peak import peak_bytes

SHAPE = "layers=2,width=32,heads=4,ffn=64,vocab=50"


BLOCKS = ("sampler.block_length=8", "method.stepwise_weight=0")


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
        # positions are masked. The first step runs once for each of 16 prompts; batches of five
        # completions share fewer.
        ((), 8, (64 * 7 + 16) * 34, 64 * 72 - 48 * 16),
        (("rollout_batch_size=24",), 3 * 8, (64 * 7 + 16) * 34, 64 * 72 - 48 * 16),
        (("max_tokens_per_forward=170",), 13 * 8, (64 * 7 + 25) * 34, 64 * 72 - 39 * 16),
        # A method without one-step completions reads the active block only: 8 + 6 + 4 + 2
        # positions, twice.
        (BLOCKS, 8, (64 * 7 + 16) * 34, 64 * 40 - 48 * 8),
        # The sum of 16 + 14 + ... + 2, with and without the prompt.
        (("sampler.guidance=0.5",), 2 * 8, 2 * (64 * 7 + 16) * 34, 2 * (64 * 72 - 48 * 16)),
        # With a cache, the first of the four steps of a block runs all 34 tokens. The others run
        # the block of 8, or the block and what follows it.
        ((*BLOCKS, "sampler.cache=dual"), 8, 64 * 2 * (34 + 3 * 8) - 48 * 34, 64 * 40 - 48 * 8),
        ((*BLOCKS, "sampler.cache=prefix"), 8, 64 * (34 + 3 * 16 + 34 + 3 * 8) - 48 * 34, 64 * 40 - 48 * 8),
        (
            (*BLOCKS, "sampler.cache=dual", "sampler.cache_refresh_steps=2"),
            8,
            64 * 2 * 2 * (34 + 8) - 48 * 34,
            64 * 40 - 48 * 8,
        ),
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


def test_values_of_several_steps_are_counted() -> None:
    settings = "method={type: egspo_sa, num_selected: 2, beta: 0, value_steps: %d}"
    free, paid = (work_of(tiny(settings % steps, "num_prompts=2"), 18) for steps in (0, 3))
    [values] = paid.of("rollout, values")
    masked = [int((paid.rollout.trajectory.unmask_step[b] >= k).sum()) for b, k in _selected(paid)]
    assert values.tokens == 34 * sum(min(3, count) for count in masked)
    assert sum(each.tokens for each in paid.passes) - values.tokens <= sum(each.tokens for each in free.passes)
    assert not free.of("rollout, values")


def _selected(work) -> list[tuple[int, int]]:
    """Return the path and the denoising step of each selected step."""
    table = work.rollout.trajectory.selected_steps
    return [(int(b), int(table[b, slot])) for b, slot in (table >= 0).nonzero()]


def test_a_critic_runs_the_states_that_it_values_once_and_without_a_head() -> None:
    recipe = tiny("method={type: egspo, num_selected: 2, baseline: critic}")
    work = work_of(recipe, 18)
    [critic] = work.of("critic")
    assert (critic.tokens, critic.head, critic.backward) == (64 * 2 * 34, 0, False)
    config, _ = config_of(recipe, SHAPE)
    memory, width, count = memory_of(recipe, config, work), config.hidden_size, 64 * 2
    [line] = [line for line in memory.resident if line.name == "critic"]
    assert line.bytes == 8 * (width + 2) ** 2 + 4 * count * width
    [line] = [line for line in memory.peaks if line.name == "critic"]
    features, ones = torch.randn(count, width), torch.ones(count)
    moments = second_moments(features, ones, ones)
    counted = [
        peak_bytes(lambda: second_moments(features, ones, ones)),
        peak_bytes(lambda: ridge_regression(moments, 1.0)),
    ]
    assert line.bytes == pytest.approx(max(counted), rel=0.1)
    assert not work_of(tiny("method={type: egspo, num_selected: 2}"), 18).of("critic")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_views_are_counted_as_each_method_plans_them(name) -> None:
    segments = ["method.num_segments=4"] if "num_segments" in METHODS[name].model_fields else []
    drawn = ["method.num_samples=4"] if name == "dtrpo" else []
    selected = ["method.num_selected=4"] if name.startswith("egspo") else []
    orders = {
        "just_grpo": ["sampler.order=left_to_right", "sampler.num_steps=16"],
        "mask_aware": ["sampler.order=plackett_luce", "method.num_sampled=2"],
    }
    shared = ("num_prompts=2", "num_iterations=2", "views_per_forward=7")
    recipe = tiny(f"method.type={name}", *shared, *segments, *drawn, *selected, *orders.get(name, []))
    work = work_of(recipe, 18)
    model = Counting()
    path = work.rollout.trajectory
    for start in range(0, len(work.views), 7):
        view_logprobs(model, path, work.views.take(slice(start, start + 7)), LogprobSettings.of(path, "sampling"))
    [old] = work.of("old policy")
    plans = 2 if recipe.method.fresh_views else 1
    assert old.tokens == plans * model.tokens
    read = work.views.hidden if scores_choice(recipe) else work.views.target
    assert (old.forwards, old.head) == (plans * model.calls, plans * int(read.sum()))
    if recipe.method.needs().reference == "distribution":
        assert [p.head for p in work.of("reference")] == [plans * model.head]
    assert bool(work.of("reference")) == (recipe.method.needs().reference != "none")
    # 7 views a forward are fewer than there are, but more than those of a completion.
    assert bool(work.of("update, first")) == (not recipe.method.separable and not recipe.method.by_completion)


def test_logits_that_an_update_does_not_keep_are_computed_twice() -> None:
    def update(overrides, vocab_size):
        [found] = work_of(tiny(*overrides, "num_prompts=2"), 18, setup=Setup(vocab_size=vocab_size)).of("update")
        return found.head, found.read_again

    # A forward pass reads the two targets of 8 views. A CPU keeps 2^23 logits.
    few, many = 2**23 // 16, 2**23 // 15
    assert update((), few) == (2 * 8 * 2, 0)
    assert update((), many) == (2 * 8 * 2, 2 * 8 * 2)
    assert update(("sampler.guidance=0.5",), many) == (2 * 8 * 2, 0)


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


def test_a_block_causal_model_runs_each_final_column_once() -> None:
    rollout = work_of(tiny(*BLOCKS), 18, setup=Setup(block_length=8)).passes[0]
    # The prompt and two blocks once each, and the active block again at each of its other steps and
    # at the first step of the next block. The first step runs once for each of 16 prompts.
    assert rollout.tokens == 64 * (18 + 8 + 3 * 8 + 8 + 8 + 3 * 8) - 48 * (18 + 8)


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        # Eight states: the prompt, the first block once, and a copy of a block for each state.
        ("method={type: egspo, step_choice: all}", 18 + 8 + 8 * 8),
        # A mask of everything: the first block once, and a copy of each of the two.
        ("method={type: diffu_grpo, prompt_mask_ratio: 0}", 18 + 8 + 2 * 8),
    ],
)
def test_the_views_of_a_block_causal_model_share_its_clean_columns(method, tokens) -> None:
    recipe = tiny("sampler.block_length=8", "num_iterations=1", "num_minibatches=2", method)
    work = work_of(recipe, 18, setup=Setup(block_length=8))
    [old], [alone] = work.of("old policy"), work_of(recipe, 18).of("old policy")
    assert (old.tokens, old.length) == (64 * tokens, tokens)
    assert alone.tokens == len(work.views) * 34
    assert (f" in 64 rows x {tokens} tokens" in old.words) == (len(work.views) > 64)
    assert old.head == alone.head


@pytest.mark.slow
def test_the_memory_of_an_update_of_packed_views_is_what_it_holds() -> None:
    from unmask.cli.estimate.shapes import build

    recipe = tiny("num_prompts=2", "sampler.block_length=8", "method={type: egspo, step_choice: all}")
    config, _ = config_of(recipe, SHAPE)
    config.block_length = 8
    work = work_of(recipe, 18, setup=Setup(block_length=8))
    found = {line.name: line.bytes for line in memory_of(recipe, config, work).peaks}
    denoiser = build(config, recipe, 2)
    path = work.rollout.trajectory
    views = replace(work.views, pack=work.views.row)
    assert work.of("update")[0].rows == len(path), "one batch holds all"

    def learn() -> None:
        view_logprobs(
            denoiser, path, views, LogprobSettings.of(path, "sampling"), positions_at_once=10**6
        ).logprob.sum().backward()

    learn()
    assert found["update"] == pytest.approx(peak_bytes(learn, denoiser), rel=0.05)


def test_the_published_setting_runs_an_eighth_of_its_tokens_with_a_cache() -> None:
    recipe = ("method.stepwise_weight=0", "num_prompts=1", "num_generations=2")
    # The two completions share their first step, which each would run alone.
    tokens = [
        (work_of(load_recipe("egspo-sa-llada-sudoku", [*recipe, *cache]), 200).passes[0].tokens + 456) / 2
        for cache in ((), ("sampler.cache=dual",))
    ]
    assert tokens == [128 * 456, 8 * (456 + 15 * 32)] == [58_368, 7_488]


def test_evaluations_are_counted_over_the_run_and_shared_by_ranks() -> None:
    settings = ("max_steps=100", "evaluation={num_rows: 50, eval_steps: 40, temperatures: [0.0, 0.9], batch_size: 20}")
    work = work_of(tiny(*settings), 18, 2)
    assert work.evaluations == 4, "before the first step, after 40, 80 and 100 steps"
    assert work.evaluation.tokens == 2 * 25 * 8 * 34
    assert (work.evaluation.forwards, work.evaluation.rows) == (2 * 2 * 8, 20)
    assert work_of(tiny("max_steps=80", settings[1]), 18).evaluations == 3
    assert work_of(tiny("evaluation.eval_steps=0"), 18).evaluations == 1


def test_a_limit_of_token_passes_ends_the_run() -> None:
    work = work_of(tiny(), 18)
    cost = sum(p.tokens * (3 if p.backward else 1) for p in work.passes)
    limited = ("evaluation.eval_steps=0", f"max_token_passes={10 * cost + 1}")
    work = work_of(tiny(*limited, f"evaluation.eval_token_passes={4 * cost}"), 18)
    assert (work.steps, work.evaluations) == (10, 4), "before the first step, after 4, 8 and 10 steps"
    assert work_of(tiny(*limited, "max_steps=3"), 18).steps == 3


@pytest.mark.parametrize("adapted", [False, True])
def test_flops_are_those_that_torch_counts(adapted) -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
        num_key_value_heads=2, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    config.is_causal = False
    denoiser = Denoiser(LlamaForCausalLM(config), 0, 1, 1)
    if adapted:
        Adapters(denoiser, LoraConfig(r=8, alpha=8))
    costs = costs_of(denoiser, config, 2, recomputes=False)
    # Per layer: queries and output 32 x 32, keys and values 32 x 16, three of 32 x 64.
    assert costs.adapters == (2 * 2 * 8 * (2 * 64 + 2 * 48 + 3 * 96) if adapted else 0)
    ids, positions = torch.zeros(3, 24, dtype=torch.long), torch.arange(5).expand(3, -1)
    with FlopCounterMode(display=False) as counter:
        logits = denoiser(ids, None, positions)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    one = Pass("one", 1, 3, 72, 15, 15, 5, 15, 24.0, "", backward=True, has_adapters=adapted)
    # Rotary angles are a product too: 24 positions x 4 frequencies, for all rows alike.
    assert forward - costs.forward(one) in range(0, 2 * 24 * 4 * 3 + 1)
    # The first layer has no gradient for its inputs if only its adapters are trained: three
    # matrices of the weights and three of the adapters.
    first = 72 * (2 * (32 * 32 + 2 * 32 * 16) + 2 * 8 * 3 * 32) if adapted else 0
    assert counter.get_total_flops() == costs.backward(one) - first


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
    config, _ = config_of(recipe, SHAPE.replace("layers=2", "layers=6"))
    work = work_of(recipe, 18)
    built = memory_of(recipe, config, work)
    monkeypatch.setattr("unmask.cli.estimate.memory.FEW", 2)
    monkeypatch.setattr("unmask.cli.estimate.memory.MORE", 3)
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
    # All completions of a rank are of one prompt, so the first step runs one row.
    assert (rollout.tokens, found.work.completions) == ((8 * 127 + 1) * (200 + 256), 8)
    assert found.durations is not None
    # Adapters beside the weights add the time of the numbers that they move, two bytes each: of
    # every matrix the inputs once and the outputs six times. Queries, keys and values run in all
    # columns of the last layer, the rest of it only where the head reads.
    attention, rest = 3 * 7 * 4096, 7 * 4096 + 2 * (4096 + 6 * 12288) + 12288 + 6 * 4096
    assert rollout.columns == rollout.head
    moved = 2 * ((32 * attention + 31 * rest) * rollout.tokens + rest * rollout.columns)
    assert found.costs.moved(rollout) == moved
    # Each forward pass unpacks the 4-bit weights.
    unpacked = rollout.forwards * matrices * (NF4 + 2)
    seconds = found.costs.forward(rollout) / 1e14 + (moved + unpacked) / (1e14 / BALANCE)
    assert found.durations.passes["rollout"] == pytest.approx(seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "preset", "room"),
    [
        ("egspo-sa-llada-24gb", 1, "none", 24e9),
        ("egspo-sa-dream-80gb", 1, "none", 80e9),
        ("egspo-ca-llada-80gb", 1, "none", 80e9),
        ("examples/scale/four-nodes.yaml", 32, "ddp", 80e9),
        ("examples/egspo-sa-8b.yaml", 8, "fsdp2", 80e9),
        ("bgpo-llada-math", 8, "zero3", 80e9),
    ],
)
def test_a_recipe_fits_the_hardware_that_it_names(name, processes, preset, room) -> None:
    path = str(ROOT / name) if name.startswith("examples/") else name
    memory = estimate(load_recipe(path), processes=processes, preset=preset, on_gpu=True).memory
    assert memory.fits(room)
    assert memory.total > 0.3 * room
    if name == "examples/egspo-sa-8b.yaml":
        # The same recipe whole on every rank does not fit.
        assert not estimate(load_recipe(path), processes=8, preset="ddp", on_gpu=True).memory.fits(room)


@pytest.mark.slow
def test_a_rank_holds_what_its_preset_says() -> None:
    recipe = tiny("num_prompts=4", "method.beta=0.04", "precision=bf16")
    config, _ = config_of(recipe, SHAPE)

    def lines(preset, *overrides):
        changed = tiny("num_prompts=4", "method.beta=0.04", "precision=bf16", *overrides)
        memory = memory_of(changed, config, work_of(changed, 18, 4), processes=4, preset=preset)
        found = {line.name: line.bytes for line in (*memory.resident, *memory.peaks)}
        return found, memory.parameters, memory.trained

    layer, outside = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32, 2 * 50 * 32 + 32
    ddp, parameters, _ = lines("ddp")
    assert parameters == 2 * layer + outside
    assert (ddp["weights"], ddp["master weights"], ddp["gradients"]) == (2 * parameters, 4 * parameters, 4 * parameters)
    # FSDP2's shards are the master weights, from which it gathers; ZeRO-3 has shards of both.
    zero3, fsdp2 = lines("zero3")[0], lines("fsdp2")[0]
    assert (zero3["weights"], zero3["master weights"]) == (2 * parameters / 4, parameters)
    assert "weights" not in fsdp2
    assert fsdp2["gradients"] == parameters
    # A frozen copy is whole on every rank, and so are the weights of rollouts.
    assert zero3["reference"] == fsdp2["reference"] == 2 * parameters
    assert zero3["rollout"] - ddp["rollout"] == 2 * parameters
    assert lines("zero3", "rollout_weights=sharded")[0]["rollout"] == ddp["rollout"]
    gathered = 2 * (2 * layer + outside)
    assert zero3["old policy pass"] - ddp["old policy pass"] == gathered
    assert zero3["update"] - ddp["update"] == gathered + 4 * (layer + outside)
    # Merged weights stand beside those of the adapted layers.
    merged, whole = (lines("ddp", "lora={r: 4}", f"rollout_weights={kind}")[0] for kind in ("merged", "whole"))
    assert merged["rollout"] - whole["rollout"] == pytest.approx(2 * 2 * (layer - 2 * 32), rel=0.15)


@pytest.mark.parametrize(
    ("overrides", "in_rollouts"),
    [
        (("lora={r: 4}",), False),
        (("lora={r: 4}", "rollout_weights=whole"), True),
        (("lora={r: 4, quantize: 4bit}",), True),
    ],
)
def test_merged_adapters_cost_a_rollout_nothing(overrides, in_rollouts) -> None:
    work = work_of(tiny(*overrides, "num_prompts=2", "method.beta=0.04"), 18)
    assert (work.passes[0].has_adapters, work.evaluation.has_adapters) == (in_rollouts, in_rollouts)
    assert {p.name: p.has_adapters for p in work.passes[1:]} == {"old policy": True, "reference": False, "update": True}


def test_the_run_takes_its_steps_and_its_evaluations() -> None:
    recipe = tiny("max_steps=100", "evaluation.eval_steps=50")
    config, _ = config_of(recipe, SHAPE)
    work = work_of(recipe, 18)
    with FakeTensorMode():
        costs = costs_of(build_fake(config, recipe, 2), config, 2, recomputes=False)
    fast = durations_of(work, costs, Rates(1e9, 1e9, 1e12), recipe)
    assert fast.step == pytest.approx(sum(costs.total(p) for p in work.passes) / 1e9)
    assert fast.run == pytest.approx(100 * fast.step + 3 * costs.total(work.evaluation) / 1e9)
    # Rollouts and evaluations have a rate of their own.
    slow = durations_of(work, costs, Rates(1e9, 5e8, 1e12), recipe)
    assert slow.passes["update"] == fast.passes["update"]
    assert (slow.passes["rollout"], slow.evaluation) == (2 * fast.passes["rollout"], 2 * fast.evaluation)
    # A memory that is slow enough decides: 8 forward passes read all weights, of 4 bytes.
    bound = durations_of(work, costs, Rates(1e9, 1e9, 1e3), recipe)
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 50 * 32
    assert bound.passes["rollout"] == pytest.approx(8 * 4 * matrices / 1e3)


@pytest.mark.parametrize("other", ["rollout_flops", "bandwidth"])
def test_other_rates_need_the_rate_of_the_updates(other) -> None:
    with raises(ConfigError, "need --flops"):
        estimate(tiny(), shape=SHAPE, **{other: 1e9})


# --- the command ---


@pytest.mark.slow
def test_the_command_shows_the_arithmetic_and_says_whether_it_fits() -> None:
    shown = CliRunner().invoke(
        app,
        ["estimate", "sudoku-tiny", "--shape", SHAPE, "--gpu-memory", "24GB", "--flops", "1e8", "--gpu-price", "3.5"]
        + ["--processes", "2", "--preset", "ddp"],
    )
    assert shown.exit_code == 0
    for part in (
        "optimizer",
        "state: 2 x",
        "fits 24 GB",
        "32 completions x 8 steps x",
        "steps an hour",
        "200 steps and 5 evaluations",
        "at 3.5 an hour",
    ):
        assert part in shown.output
    tight = CliRunner().invoke(app, ["estimate", "sudoku-tiny", "--shape", SHAPE, "--gpu-memory", "1MB"]).output
    assert "does NOT fit" in tight
    assert "needs --flops" in tight


@pytest.mark.slow
def test_the_command_prints_json() -> None:
    command = ["estimate", "sudoku-tiny", "--shape", SHAPE, "--json"]
    shown = json.loads(CliRunner().invoke(app, command).output)
    assert shown["completions"] == 64
    assert shown["total_bytes"] > 0
    assert (shown["seconds"], shown["gpu_hours"], shown["cost"]) == (None, None, None)
    options = ["--flops", "1e9", "--gpu-price", "2", "--processes", "4", "--preset", "ddp"]
    shown = json.loads(CliRunner().invoke(app, [*command, *options]).output)
    assert shown["gpu_hours"] == pytest.approx(4 * shown["seconds"]["run"] / 3600)
    assert shown["cost"] == pytest.approx(2 * shown["gpu_hours"])


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


def test_processes_share_completions() -> None:
    recipe = tiny("num_prompts=6", "num_generations=4")
    assert [work_of(recipe, 8, processes).completions for processes in (1, 2, 8, 24)] == [24, 12, 3, 1]
    with raises(ConfigError, "24 completions", "25 ranks"):
        work_of(recipe, 8, 25)


# --- mixtures of experts ---


def mixture(**settings):
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    shape |= {"vocab_size": 50, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = transformers.Qwen3MoeConfig(**shape | settings, tie_word_embeddings=False, attn_implementation="eager")
    config.is_causal, config.architectures = False, ["Qwen3MoeForCausalLM"]
    return config


@pytest.mark.parametrize("experts", [None, False, True], ids=["all weights", "attention adapted", "experts adapted"])
def test_a_token_of_a_mixture_costs_its_own_experts(experts) -> None:
    config = mixture()
    backbone = transformers.Qwen3MoeForCausalLM(config)
    backbone.set_experts_implementation("eager")  # one product for each expert, which torch's counter sees
    denoiser = Denoiser(backbone, 0, 1, 1)
    if experts is not None:
        Adapters(denoiser, LoraConfig(r=4, alpha=4, experts=experts))
    costs = costs_of(denoiser, config, 2, recomputes=False)
    # Per layer: 8 experts of three matrices of 32 x 16, of which a token uses two.
    assert costs.stacks == 2 * 8 * 3 * 32 * 16
    assert costs.used == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 8 * 32 + 2 * 3 * 32 * 16) + 32 * 50
    ids, everywhere = torch.randint(0, 50, (3, 24)), torch.arange(24).expand(3, -1)
    with FlopCounterMode(display=False) as counter:
        logits = denoiser(ids, None, everywhere)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    one = Pass("one", 1, 3, 72, 72, 72, 24, 24, 24.0, "", backward=True, has_adapters=experts is not None)
    # Rotary angles are a product too.
    assert forward - costs.forward(one) in range(0, 2 * 24 * 4 * 3 + 1)
    # A product of 4 x 2 r (2 m D + m D) for the two stacks of each of 8 experts and 2 layers.
    assert costs.stacked == (2 * 8 * 2 * 4 * 3 * 32 * 16 if experts else 0)
    # torch leaves out the gradients of the inputs of the first layer if they are not needed.
    assert counter.get_total_flops() == pytest.approx(costs.backward(one), rel=0.12)


def test_a_pass_reads_the_experts_that_its_tokens_use() -> None:
    config = mixture()
    with FakeTensorMode():
        costs = costs_of(build_fake(config, tiny(), 2), config, 2, recomputes=False)

    def read(tokens):
        return costs.read(Pass("one", 1, 1, tokens, tokens, tokens, tokens, tokens, 1.0, ""))

    assert read(1) == pytest.approx(costs.used)
    everything = costs.used + costs.stacks * (1 - 2 / 8)
    assert read(2) == pytest.approx(costs.used + costs.stacks * (1 - 2 / 8) * 2 / 8)
    assert read(200) == pytest.approx(everything)


@pytest.mark.slow
def test_the_memory_of_an_update_of_a_mixture_is_what_it_holds() -> None:
    from unmask.cli.estimate.shapes import build

    recipe, config = tiny("num_prompts=2", "views_per_forward=4"), mixture()
    work = work_of(recipe, 18)
    memory = memory_of(recipe, config, work)
    denoiser = build(config, recipe, 2)
    path = work.rollout.trajectory
    assert memory.parameters == sum(p.numel() for p in denoiser.parameters())
    assert memory.trained == memory.parameters - 2 * 8 * 32, "the routers are frozen"

    def learn() -> None:
        view_logprobs(
            denoiser, path, work.views.take(slice(0, 4)), LogprobSettings.of(path, "sampling")
        ).logprob.sum().backward()

    learn()
    found = {line.name: line.bytes for line in memory.peaks}
    assert found["update"] == pytest.approx(peak_bytes(learn, denoiser), rel=0.1)


@pytest.mark.parametrize(
    ("model", "blocks", "parameters", "used"),
    [
        # Attention, dense layers, routers, experts, norms, embeddings and head of the configs, added up by hand.
        ("inclusionAI/LLaDA2.1-mini", 32, 16_255_638_528, 1_110_966_272),
        ("JetLM/SDAR-30B-A3B-Chat-b8", 8, 30_532_122_624, 3_041_656_832),
        ("inclusionAI/LLaDA-MoE-7B-A1B-Instruct", None, 7_356_880_896, 1_397_751_808),
    ],
)
def test_the_released_mixtures_have_their_numbers(model, blocks, parameters, used) -> None:
    recipe = tiny(f"model={model}")
    config, _ = config_of(recipe)
    assert getattr(config, "block_length", None) == blocks
    with torch.device("meta"):
        whole = getattr(transformers, config.architectures[0])(config)
    assert sum(p.numel() for p in whole.parameters()) == parameters
    with FakeTensorMode():
        costs = costs_of(build_fake(config, recipe, 3), config, 3, recomputes=False)
    assert costs.used == used


def test_dense_models_mention_no_experts() -> None:
    shown = CliRunner().invoke(app, ["estimate", "sudoku-tiny", "--shape", SHAPE]).output
    assert "parameters" in shown
    assert "experts" not in shown


def test_a_prompt_of_a_model_that_is_not_here_is_counted_in_the_tokens_of_its_task() -> None:
    recipe = load_recipe("story-small", ["model=runs/not-here/final"])
    count, source = prompt_tokens(recipe)
    prompts = [row["prompt"] for row in recipe.task.rows("train", 64, recipe.seed)]
    assert count == max(len(split_words(prompt)) for prompt in prompts) < max(map(len, prompts)) / 2
    assert "the tokens of a tiny model" in source
    assert prompt_tokens(load_recipe("sudoku-tiny", ["model=runs/not-here/final"]))[0] == len("0001412310000300=")
