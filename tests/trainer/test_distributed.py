"""Two ranks learn what one rank learns, continue from its checkpoints, and stop together."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmark.cpu_ranks import fsdp2_on_the_cpu, gather_in_every_forward
from tests.helpers.processes import (
    exit_codes_of_two,
    printed,
    raise_after,
    said,
    train_by_command,
    train_several_by_command,
)
from tests.helpers.runs import metrics, steps_saved, train_recipe, unmask_train, without_report
from tests.helpers.servers import serving
from unmask.core.errors import LostProcessError, RunError, UnmaskError
from unmask.models import load_model
from unmask.models.state_files import WEIGHT, StateFiles
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.trainer import Trainer
from unmask.trainer.out_of_memory import MemoryFullError

pytestmark = pytest.mark.slow

SAME = 1e-5
"""Largest difference of a weight between equal runs: float32 sums have another order, and AdamW
divides small gradients by their size."""
MOVED = 1e-3
"""Distance that some weight must move in those runs; otherwise equal weights would prove
nothing."""

COUNT_ONES = """
from unmask.rewards import per_completion

@per_completion
def ones(completions, **_):
    return [text.count("1") + 0.1 * len(text) for text in completions]

def sparse(completions, **_):
    return [float(text.count("1") > 2) for text in completions]
"""

# From left to right a completion ends at EOS, so the ranks differ in their numbers of forward
# passes and views.
SHARED = (
    "num_prompts=4",
    "max_steps=4",
    "save_steps=1",
    "num_iterations=2",
    "views_per_forward=4",
    "optim.learning_rate=2e-3",
    "sampler.order=left_to_right",
    "sampler.num_steps=8",
    "method.beta=0.04",
    "evaluation.num_rows=5",
    "evaluation.eval_steps=2",
    "evaluation.temperatures=[0.9]",
    "report_to=[]",
)
# One plan is fixed. Two are random, and their losses are not sums over views; espo draws over all
# completions.
METHODS = {
    # The ranks divide the second of three groups. They exchange the supports that top-k records.
    "egspo_sa": ("method.num_selected=8", "num_prompts=3", "sampler.top_k=4", "method.entropy_weight=0.1"),
    "espo": ("method={type: espo, beta: 0.04}", "num_minibatches=2", "num_prompts=3"),
    # Completions differ in their number of steps, and so do the ranks in their forward passes.
    "adaptive": (
        "sampler.schedule=entropy_bound=4.14",
        "sampler.order=max_probability",
        "sampler.num_steps=16",
        "method.num_selected=3",
        "num_prompts=3",
    ),
    # The ranks train a position head together, and one of them may have no view to train it on.
    "learned": (
        "sampler.order=learned",
        "method={type: egspo, num_selected: 2, beta: 0}",
        "num_prompts=3",
        "num_minibatches=2",
    ),
    # The ranks add up what the critic learns, and the loss tells it soft returns.
    "critic": ("method={type: trajectory_balance, subpath_steps: 3}", "optim.learning_rate=5e-3"),
    # The loss is divided by the tokens of the whole batch, not of a rank or a minibatch.
    "coupled_grpo": (
        "method={type: coupled_grpo}",
        "num_minibatches=2",
        "behaviour={level: sequence, normalise: true}",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def no_reports() -> Iterator[None]:
    """The runs of one rank draw no curve and write no report, as those of two ranks."""
    with without_report():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    (folder / "mine.py").write_text(COUNT_ONES)
    return folder


def settings(place: Path, method: str = "egspo_sa", *more: str) -> tuple[str, ...]:
    return (*SHARED, *METHODS[method], f"reward_funcs=[{place}/mine.py:ones]", *more)


@pytest.fixture(scope="module")
def one(place: Path, tiny_model: Path) -> dict[str, Path]:
    """Return the folders of the runs with one rank, by method."""
    for method in METHODS:
        assert unmask_train(tiny_model, place / f"one-{method}", *settings(place, method)) == 0
    return {method: place / f"one-{method}" for method in METHODS}


def check_same(folder: Path, other: Path, model: Path, *, least: float = 1.0) -> None:
    """Check that two runs have the same weights and metrics, up to rounding.

    Args:
        folder: run folder of two ranks.
        other: run folder of one rank.
        model: folder of the model that both started from.
        least: smallest ratio of the token passes of the two runs. Two ranks may need fewer than one:
            packs of views differ in length, and so in padding; and if the views of each rank fit into
            one forward pass, a loss that compares completions needs no pass before the update.
    """
    ours, theirs = map(weights, (folder / "final", other / "final"))
    before = weights(model)
    assert ours.keys() == theirs.keys()
    assert max(float((theirs[name] - before[name]).abs().max()) for name in before) > MOVED
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < SAME
    for actual, expected in zip(metrics(folder), metrics(other), strict=True):
        # A rank without views or rows runs blank forward passes, which count. Equal texts of a group
        # that two ranks share are judged on both.
        for count in ("compute/token_passes", "compute/reward_calls"):
            numbers = actual.pop(count, 0.0), expected.pop(count, 0.0)
            assert numbers[0] >= numbers[1] * least
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert actual[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (actual["step"], name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a model, with those of its position head if it has one."""
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    return {name: tensor for file in files for name, tensor in file.items()}


# --- two ranks equal one ---


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_under_ddp_equal_one(method: str, place: Path, one: dict[str, Path], tiny_model: Path) -> None:
    folder = place / f"ddp-{method}"
    assert exit_codes_of_two(train_by_command, tiny_model, folder, settings(place, method)) == [0, 0]
    assert [printed(folder, rank).read_text().count("model: ") for rank in (0, 1)] == [1, 0]
    check_same(folder, one[method], tiny_model)


MORE_METHODS = {
    "direct_advantage": "{type: direct_advantage, beta: 0.3}",
    "direct_advantage-critic": "{type: direct_advantage, beta: 0.3, value: critic}",
    "dppo": "{type: cj_grpo, beta: 0, trust_region: divergence, divergence: tv}",
    "dtrpo": "{type: dtrpo}",
    "egspo-critic": "{type: egspo, num_selected: 2, baseline: critic}",
    "egspo_ca": "{type: egspo_ca, num_selected: 2, form: unique}",
    "stable_drl": "{type: stable_drl}",
    "trajectory_balance": "{type: trajectory_balance}",
}


def test_two_ranks_of_further_methods_equal_one(place: Path, tiny_model: Path) -> None:
    short = ("num_prompts=4", "evaluation.eval_steps=0", "sampler.num_steps=4", "sampler.order=random")
    # The values of a critic are 0 in the first step.
    steps = {name: f"max_steps={2 if 'critic' in method else 1}" for name, method in MORE_METHODS.items()}
    own = {
        name: settings(place, "espo", f"method={method}", *short, steps[name]) for name, method in MORE_METHODS.items()
    }
    runs = {place / f"more-{name}": overrides for name, overrides in own.items()}
    assert exit_codes_of_two(train_several_by_command, tiny_model, runs) == [0, 0]
    for name, overrides in own.items():
        assert unmask_train(tiny_model, place / f"one-more-{name}", *overrides) == 0
        check_same(place / f"more-{name}", place / f"one-more-{name}", tiny_model, least=0.7)


def test_two_ranks_whose_rollouts_read_shards_equal_one(place: Path, one: dict[str, Path], tiny_model: Path) -> None:
    # Each forward pass is a collective, and the completions of the two ranks end at different steps.
    pytest.importorskip("deepspeed")
    folder, shards = place / "zero3", settings(place, "adaptive", "rollout_weights=sharded")
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, shards, gather_in_every_forward, preset="zero3")
    assert codes == [0, 0]
    check_same(folder, one["adaptive"], tiny_model)


def test_two_ranks_that_refill_groups_equal_one(place: Path, tiny_model: Path) -> None:
    # A rank samples whole groups, because the reward might compare them, and so it may have none in
    # an extra rollout.
    reward = (f"reward_funcs=[{place}/mine.py:sparse]", "method={type: egspo, num_selected: 4, beta: 0.04}")
    shared = settings(place, "egspo_sa", "num_prompts=4", "refill_rounds=3", *reward)
    assert unmask_train(tiny_model, place / "one-refill", *shared) == 0
    assert exit_codes_of_two(train_by_command, tiny_model, place / "refill", shared) == [0, 0]
    check_same(place / "refill", place / "one-refill", tiny_model)
    extra = [line["refill/extra_share"] * 4 for line in metrics(place / "one-refill") if "refill/rounds" in line]
    rounds = [line["refill/rounds"] for line in metrics(place / "one-refill") if "refill/rounds" in line]
    assert any(groups % 2 for groups in extra), "some extra rollout gives one rank nothing to sample"
    assert max(rounds) == 3


def test_two_ranks_that_share_servers_equal_one(place: Path, one: dict[str, Path], tiny_model: Path) -> None:
    weights = place / "weights"
    weights.mkdir()
    with serving(load_model(tiny_model), weights) as first, serving(load_model(tiny_model), weights) as second:
        engine = (
            "rollout_engine.type=http",
            f"rollout_engine.urls=[{first},{second}]",
            f"rollout_engine.weights_dir={weights}",
        )
        shared = settings(place, "egspo_sa", *engine)
        assert exit_codes_of_two(train_by_command, tiny_model, place / "served", shared) == [0, 0]
    check_same(place / "served", one["egspo_sa"], tiny_model)
    assert list(weights.iterdir()) == []


@pytest.fixture(scope="module")
def block_causal(place: Path, tiny_model: Path) -> Path:
    """Return the folder of the tiny model with block-causal attention."""
    folder = place / "block-causal"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"block_length": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("preset", ["ddp", "zero3", "fsdp2"])
def test_two_ranks_whose_views_share_forward_passes_equal_one(preset: str, place: Path, block_causal: Path) -> None:
    if preset == "zero3":
        pytest.importorskip("deepspeed")
    packed = ("views_per_forward=null", "sampler.block_length=4", "max_steps=2", "max_tokens_per_forward=200")
    shared = settings(place, "egspo_sa", *packed)
    if not (place / "one-packed").exists():
        assert unmask_train(block_causal, place / "one-packed", *shared) == 0
    folder, prepare = place / f"packed-{preset}", (SHARDING[preset],) if preset in SHARDING else ()
    assert exit_codes_of_two(train_by_command, block_causal, folder, shared, *prepare, preset=preset) == [0, 0]
    check_same(folder, place / "one-packed", block_causal, least=0.7)


LONG = (
    "max_steps=20",
    "save_steps=5",
    "num_prompts=2",
    "num_iterations=1",
    "evaluation.eval_steps=5",
    "evaluation.num_rows=1",
    "method.num_selected=4",
)
"""Twenty steps with evaluations and checkpoints between them. The second rank has no row to evaluate."""

SHARDING = {"zero3": gather_in_every_forward, "fsdp2": fsdp2_on_the_cpu}


@pytest.fixture(scope="module")
def long(place: Path, tiny_model: Path) -> Path:
    """Return the folder of a run of twenty steps with one rank."""
    assert unmask_train(tiny_model, place / "long", *settings(place, "egspo_sa", *LONG)) == 0
    return place / "long"


class _StopsAfterTenSteps:
    """Prepares a rank of a run with sharded weights that stops after ten steps."""

    def __init__(self, preset: str) -> None:
        self.preset = preset

    def __call__(self, rank: int) -> None:
        SHARDING[self.preset](rank)
        raise_after(10, 1, signal.SIGTERM)(rank)


@pytest.mark.parametrize("preset", SHARDING)
def test_twenty_sharded_steps_that_stop_and_resume_equal_those_of_one_rank(
    preset: str, place: Path, long: Path, tiny_model: Path
) -> None:
    if preset == "zero3":
        pytest.importorskip("deepspeed")
    folder, overrides = place / f"long-{preset}", settings(place, "egspo_sa", *LONG, "--resume")
    for prepare, code in ((_StopsAfterTenSteps(preset), 128 + signal.SIGTERM), (SHARDING[preset], 0)):
        codes = exit_codes_of_two(train_by_command, tiny_model, folder, overrides, prepare, preset=preset)
        assert codes == [code] * 2
    assert steps_saved(folder) == [15, 20]
    check_same(folder, long, tiny_model)


@pytest.mark.parametrize(
    ("preset", "more"), [("ddp", ("sync_ref_model=true", "ref_model_sync_steps=2")), ("zero3", ())]
)
def test_two_ranks_with_adapters_equal_one(preset: str, more: tuple[str, ...], place: Path, tiny_model: Path) -> None:
    if preset == "zero3":
        pytest.importorskip("deepspeed")
    rate = ("optim.learning_rate=1e-2", "max_steps=3")
    lora = ("lora={r: 2, alpha: 16}", *rate, "max_tokens_per_forward=100", *more)
    alone, folder = place / f"adapters-{preset}-one", place / f"adapters-{preset}"
    assert unmask_train(tiny_model, alone, *settings(place, "egspo_sa", *lora)) == 0
    prepare = (gather_in_every_forward,) if preset == "zero3" else ()
    codes = exit_codes_of_two(
        train_by_command, tiny_model, folder, settings(place, "egspo_sa", *lora), *prepare, preset=preset
    )
    assert codes == [0, 0]
    check_same(folder, alone, tiny_model)
    adapters = [load_file(path / "final" / "adapter" / "adapter_model.safetensors") for path in (alone, folder)]
    assert max(float((adapters[0][key] - adapters[1][key]).abs().max()) for key in adapters[0]) < 10 * SAME


def test_bf16_means_the_same_in_shards(place: Path, tiny_model: Path) -> None:
    pytest.importorskip("deepspeed")
    overrides = settings(place, "egspo_sa", "precision=bf16", "max_steps=2", "method.num_selected=4")
    folders = {preset: place / f"bf16-{preset}" for preset in SHARDING}
    for preset, folder in folders.items():
        codes = exit_codes_of_two(train_by_command, tiny_model, folder, overrides, SHARDING[preset], preset=preset)
        assert codes == [0, 0]
    for actual, expected in zip(*map(metrics, folders.values()), strict=True):
        for name in ("loss", "reward", "kl", "grad_norm", "policy/ratio_max"):
            if name in expected:
                assert actual[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), (actual["step"], name)
    # Checkpoints hold the float32 master copies, and models the weights that compute.
    before = load_file(tiny_model / "model.safetensors")
    for folder in folders.values():
        files = StateFiles(sorted((folder / "checkpoints").glob("step-*"))[-1])
        saved = {name.removeprefix("backbone."): files.read(WEIGHT + name) for name in files.of_kind(WEIGHT)}
        assert {value.dtype for value in saved.values()} == {torch.float32}
        assert max(float((saved[name] - value).abs().max()) for name, value in before.items()) > MOVED
        final = load_file(folder / "final" / "model.safetensors")
        assert all(torch.equal(value, saved[name].bfloat16()) for name, value in final.items())


def test_zero2_saves_the_master_copies_of_adapters_that_compute_in_bf16(place: Path, tiny_model: Path) -> None:
    pytest.importorskip("deepspeed")
    more = ("precision=bf16", "lora={r: 2, alpha: 16}", "max_steps=1", "method.num_selected=4", "evaluation.num_rows=2")
    folder = place / "adapters-zero2"
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, settings(place, "egspo_sa", *more), preset="zero2")
    assert codes == [0, 0]
    files = StateFiles(folder / "checkpoints" / "step-00000001")
    masters = {name.removeprefix("backbone."): files.read(WEIGHT + name) for name in files.of_kind(WEIGHT)}
    saved = load_file(folder / "final" / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(masters) > 0
    for name, value in masters.items():
        its = saved[f"base_model.model.{name.replace('.default.', '.')}"]
        assert its.dtype == torch.float32
        assert torch.equal(its, value)
        # Negative control: the copy that computes is another number.
        assert not torch.equal(value.bfloat16().float(), value)


def test_a_run_of_another_seed_is_not_the_same(place: Path, one: dict[str, Path], tiny_model: Path) -> None:
    folder = place / "other-seed"
    assert unmask_train(tiny_model, folder, *settings(place, "egspo_sa", "seed=1")) == 0
    with pytest.raises(AssertionError):
        check_same(folder, one["egspo_sa"], tiny_model)


# --- resuming with other ranks ---


def test_a_run_continues_with_another_number_of_ranks_and_another_preset(
    place: Path, one: dict[str, Path], tiny_model: Path
) -> None:
    pytest.importorskip("deepspeed")
    folder = place / "chain"

    def two(preset: str, *stop: Any) -> None:
        prepare = (raise_after(*stop),) if stop else ()
        codes = exit_codes_of_two(
            train_by_command, tiny_model, folder, settings(place, "egspo_sa", "--resume"), *prepare, preset=preset
        )
        # A signal to one rank stops all ranks.
        assert codes == ([128 + stop[2]] * 2 if stop else [0, 0])

    two("zero3", 1, 1, signal.SIGUSR1)
    assert steps_saved(folder) == [1]
    assert said(folder) == [
        f"RunStoppedError: stopped after step 1 of 4; everything is in {folder}. To continue, give the same "
        "command again with --resume."
    ]
    two("zero2", 2, 0, signal.SIGTERM)
    Stopping(3).train(train_recipe(tiny_model, folder, *settings(place)))
    assert steps_saved(folder) == [2, 3]
    two("zero3")
    check_same(folder, one["egspo_sa"], tiny_model)


class Stopping:
    """Runs on one rank and stops after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def train(self, recipe: TrainRecipe) -> None:
        def stop(step: int, line: dict[str, Any]) -> None:
            if step == self.step and "loss" in line:
                signal.raise_signal(signal.SIGUSR1)

        with pytest.raises(UnmaskError, match=f"stopped after step {self.step} of 4"):
            Trainer(recipe, resume=True, observe=stop).train()


# --- stopping together ---


def train_and_fail(failing_rank: int, failing_call: int, rank: int, recipe: TrainRecipe) -> None:
    """Train with a reward that fails at one call on one rank, and exit with 2 if both ranks raise
    its error."""
    calls = 0

    @per_completion
    def ones(completions: list[str], **_: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if (rank, calls) == (failing_rank, failing_call):
            raise OSError("the grader is away")
        return [text.count("1") + 0.1 * len(text) for text in completions]

    try:
        Trainer(recipe, [ones], resume=True).train()
    except UnmaskError as error:
        # Both ranks raise the same error, so that one of them can print it for both.
        sys.exit(2 if "raised OSError: the grader is away" in str(error) and error.is_agreed else 3)


SHORT = ("max_steps=2", "method.num_selected=8")


def test_both_ranks_take_the_same_number_of_minibatches_even_with_few_views(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SHARED, *SHORT, "num_minibatches=15")
    assert exit_codes_of_two(partial(train_and_fail, -1, 0), recipe) == [0, 0]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2]


# Each rank calls the reward once in the evaluation at step 0, twice in each of the two steps, for
# finished and for one-step completions, and once in the evaluation at the end.
@pytest.mark.parametrize(
    ("rank", "call", "saved"),
    [(1, 4, [1]), (1, 5, [1]), (1, 6, [1, 2])],
    ids=["on finished completions", "on one-step completions", "in an evaluation"],
)
def test_an_error_on_one_rank_stops_both_and_loses_nothing(
    tiny_model: Path, tmp_path: Path, rank: int, call: int, saved: list[int]
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", *SHARED, *SHORT)
    assert exit_codes_of_two(partial(train_and_fail, rank, call), recipe) == [2, 2]
    assert steps_saved(tmp_path / "run") == saved
    assert exit_codes_of_two(partial(train_and_fail, -1, 0), recipe) == [0, 0]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2]


def test_an_error_that_only_the_main_rank_sees_stops_both_with_one_message(
    place: Path, one: dict[str, Path], tiny_model: Path
) -> None:
    folder = one["egspo_sa"]
    assert exit_codes_of_two(train_by_command, tiny_model, folder, settings(place)) == [2, 2]
    assert said(folder) == [
        f"RunError: {folder} already holds a run. Add --resume to continue it (in Python resume=True), or set "
        "output_dir to another folder."
    ]


def spoil_the_loss(rank: int) -> None:
    """Make the forward passes of the update return NaN on the second rank."""
    from unmask.models import Denoiser

    forward = Denoiser.forward

    def spoiled(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = forward(self, *arguments, **options)
        return logits * float("nan") if rank == 1 and torch.is_grad_enabled() else logits

    Denoiser.forward = spoiled  # type: ignore[method-assign]


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_and_names_its_completions(
    place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, settings(place), spoil_the_loss)
    assert codes == [2, 2]
    (message,) = said(folder)
    # The second rank owns the completions 3 to 5; the message names those of its first forward pass.
    assert re.match(r"RunError: step 1: the loss is nan in completions \[[345](, [45])*\] of the rollout\.", message)
    assert not (folder / "final").exists()


def spoil_the_gradient(rank: int) -> None:
    """Make the gradients infinite on the second rank, while its losses stay finite."""
    from unmask.models import Denoiser

    forward = Denoiser.forward

    def spoiled(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = forward(self, *arguments, **options)
        if rank == 1 and logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return logits

    Denoiser.forward = spoiled  # type: ignore[method-assign]


def test_a_gradient_that_is_not_finite_under_zero3_stops_both_and_nothing_is_saved(
    place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    folder = tmp_path / "run"
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, settings(place), spoil_the_gradient, preset="zero3")
    assert codes == [2, 2]
    (message,) = said(folder)
    assert message.startswith("RunError: step 1: the norm of the gradient is inf. Nothing was overwritten")
    assert steps_saved(folder) == []
    assert not (folder / "final").exists()


def fill_the_disk_before_the_second_line(rank: int) -> None:
    """Let the main rank find the disk full when it logs."""
    from unmask.runs.folder import RunFolder

    log = RunFolder.log

    def log_or_fail(self: RunFolder, line: dict[str, Any]) -> None:
        if rank == 0 and line["step"] == 2:
            raise RunError("the disk is full. Free some space, then add --resume.")
        log(self, line)

    RunFolder.log = log_or_fail  # type: ignore[method-assign, assignment]


def refuse_a_folder_for_checkpoints(rank: int) -> None:
    """Keep the main rank from creating the folder of a checkpoint whose sharded weights all ranks
    gather."""
    from unmask.runs.folder import RunFolder

    open_metrics = RunFolder.open_metrics

    def open_and_block(self: RunFolder, step: int) -> None:
        open_metrics(self, step)
        if rank == 0:
            (self.path / "checkpoints").write_text("in the way")

    RunFolder.open_metrics = open_and_block  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("prepare", "preset", "message"),
    [
        (fill_the_disk_before_the_second_line, "ddp", "the disk is full"),
        (refuse_a_folder_for_checkpoints, "zero3", ".incomplete-step-00000001: Not a directory)"),
    ],
    ids=["metrics", "checkpoint"],
)
def test_a_write_error_on_the_main_rank_stops_both_with_one_message(
    prepare: Any, preset: str, message: str, place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    folder = tmp_path / "run"
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, settings(place), prepare, preset=preset)
    assert codes == [2, 2]
    (line,) = said(folder)
    assert line.startswith("RunError: ")
    assert message in line


def hang_in_an_update(rank: int) -> None:
    from unmask.trainer.learn import Learner

    update = Learner.update

    def update_or_hang(self: Any, rollout: Any, step: int, *rest: Any) -> Any:
        if (rank, step) == (1, 1):
            signal.pause()
        return update(self, rollout, step, *rest)

    Learner.update = update_or_hang  # type: ignore[method-assign]


def test_a_rank_that_is_stuck_is_named_with_its_step_and_phase_and_the_run_ends(
    place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    limits = ("stuck_timeout=4", "reward_timeout=3")
    codes = exit_codes_of_two(
        train_by_command, tiny_model, folder, settings(place, "egspo_sa", *limits), hang_in_an_update
    )
    assert codes == [LostProcessError.exit_code] * 2
    (message,) = said(folder)
    assert message.startswith("LostProcessError: no rank has made progress for 4 s. ")
    assert "wait for rank 1 (step 2, update)" in message
    assert steps_saved(folder) == [1]
    # The rank that hangs prints its stack.
    assert "update_or_hang" in printed(folder, 1).read_text()


def fail_in_an_update(error: type[Exception], rank: int) -> None:
    """Make the second update raise an error on the second rank; the first rank then waits in a collective."""
    from unmask.trainer.learn import Learner

    update = Learner.update

    def update_or_fail(self: Any, rollout: Any, step: int, *rest: Any) -> Any:
        if (rank, step) == (1, 1):
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return update(self, rollout, step, *rest)

    Learner.update = update_or_fail  # type: ignore[method-assign]


@pytest.mark.parametrize(("error", "code"), [(torch.OutOfMemoryError, 2), (ValueError, 1)], ids=["memory", "other"])
def test_an_error_of_one_rank_ends_the_others_with_its_exit_code_not_as_a_lost_rank(
    place: Path, tiny_model: Path, tmp_path: Path, error: type[Exception], code: int
) -> None:
    folder = tmp_path / "run"
    own = settings(place, "egspo_sa", "stuck_timeout=20", "reward_timeout=15")
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, own, partial(fail_in_an_update, error))
    # A job script restarts a run whose exit code is 75.
    assert codes == [code] * 2
    assert steps_saved(folder) == [1]
    if code == 2:
        (message,) = said(folder)
        assert message.startswith(
            "MemoryFullError: step 2, update: no memory is left on rank 1 of 2 (CUDA out of memory."
        )
        assert "lower views_per_forward" in message
        assert message.endswith("then add --resume; the checkpoint of step 1 is complete.")


def fail_in_set_up(rank: int) -> None:
    """Run out of memory on the second rank when the weights move to its device; the first rank then waits in the
    first collective of the run."""
    from unmask.trainer import session

    prepare = session.prepare

    def prepare_or_fail(*arguments: Any) -> Any:
        if rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return prepare(*arguments)

    session.prepare = prepare_or_fail


def test_a_rank_without_memory_in_the_set_up_ends_the_run_with_advice(
    place: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    codes = exit_codes_of_two(train_by_command, tiny_model, folder, settings(place), fail_in_set_up)
    assert codes == [MemoryFullError.exit_code] * 2 == [2, 2]
    (message,) = said(folder)
    assert message.startswith("MemoryFullError: set-up: no memory is left on rank 1 of 2 (CUDA out of memory.")
    assert "set reference_offload = true" in message
    assert "precision = bf16" in message
