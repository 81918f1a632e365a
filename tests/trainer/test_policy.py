"""The policy of a run: its trained weights, its reference, and its precision."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.adapters import train_by_hand
from tests.helpers.runs import metrics, pretrain_recipe, train_recipe, unmask, weights
from unmask.core.errors import ConfigError, RunError
from unmask.core.records import Rollout
from unmask.models import Denoiser, char_tokenizer, load_model, save_model
from unmask.recipes.load import load_recipe
from unmask.rewards import per_completion
from unmask.tasks import Sudoku
from unmask.trainer import Trainer
from unmask.trainer.distributed.masters import add_masters, master_of
from unmask.trainer.learn import Learner
from unmask.trainer.optimizer import trainable
from unmask.trainer.policy import make_policy
from unmask.trainer.pretrain import pretrain
from unmask.trainer.reference import FrozenCopy, SecondAdapter, WithoutAdapters

LORA = ("lora.r=3", "lora.alpha=6", "method.beta=0.04")
TRAINING = ("optim.learning_rate=1e-2", "optim.warmup_steps=0", "num_iterations=1", "evaluation.eval_steps=0")
CPU = torch.device("cpu")


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    """Return a reward that differs between any two completions of an untrained model."""
    return [text.count("1") + 0.1 * len(text) for text in completions]


@pytest.fixture
def model(lively: Denoiser, tmp_path: Path) -> Path:
    """Return the folder of a model whose predictions depend on its whole input."""
    save_model(lively, char_tokenizer(Sudoku().alphabet), tmp_path / "model")
    return tmp_path / "model"


def logged(folder: Path, key: str) -> list[float]:
    return [line[key] for line in metrics(folder) if key in line]


# --- adapters ---


def test_with_adapters_only_they_are_trained_and_the_reference_takes_no_memory(model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(model, tmp_path / "run", *LORA)
    policy = make_policy(recipe, CPU)
    assert policy.adapters is not None
    held = {id(p) for group in policy.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for _, p in policy.adapters.parameters()} == {id(p) for p in trainable(policy.denoiser)}
    assert isinstance(policy.reference, WithoutAdapters)
    assert (policy.reference.modules(), policy.reference.tensors()) == ([], {})
    # Negative control: without adapters everything is trained, beside a copy of it.
    plain = make_policy(train_recipe(model, tmp_path / "run", "method.beta=0.04"), CPU)
    assert len(trainable(plain.denoiser)) == len(list(plain.denoiser.parameters()))
    assert isinstance(plain.reference, FrozenCopy)
    assert not trainable(plain.reference.denoiser)


def test_the_model_without_adapters_predicts_as_a_copy_of_the_initial_model(model: Path, tmp_path: Path) -> None:
    policy = make_policy(train_recipe(model, tmp_path / "run", *LORA), CPU)
    start, _ = load_model(model)
    train_by_hand(policy.adapters)
    ids, where = torch.randint(3, 9, (2, 8)), torch.arange(8).expand(2, 8)
    assert policy.reference is not None
    with policy.reference.acting(policy.denoiser) as acting, torch.no_grad():
        assert torch.equal(acting(ids, None, where), start(ids, None, where))
        assert acting is policy.denoiser
    assert not torch.equal(policy.denoiser(ids, None, where), start(ids, None, where))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.slow
def test_a_run_with_adapters_begins_at_ratio_one_whatever_the_dropout(
    model: Path, tmp_path: Path, dropout: float
) -> None:
    recipe = train_recipe(model, tmp_path / "run", *LORA, *TRAINING, f"lora.dropout={dropout}")
    folder = Trainer(recipe, [ones]).train()
    # At every step's first and only update the policy is the one that rolled out, though B is no
    # longer 0.
    assert logged(folder, "policy/ratio_max") == [1.0] * 6
    assert max(logged(folder, "diffusion/mismatch_max")) < 1e-4
    kl = logged(folder, "kl")
    assert kl[0] == 0.0
    assert min(kl[1:]) > 0.0
    start, _ = load_model(model)
    final, _ = load_model(folder / "final")
    changed = {
        key.removeprefix("backbone.")
        for key, value in final.state_dict().items()
        if not torch.equal(value, start.state_dict()[key])
    }
    assert changed
    assert all(key.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and key.endswith("weight") for key in changed)


@pytest.mark.slow
def test_demonstrations_train_adapters_with_active_dropout(model: Path, tmp_path: Path) -> None:
    losses = {}
    for dropout in (0.0, 0.5):
        recipe = pretrain_recipe(
            tmp_path / f"sft-{dropout}",
            f"model={model}",
            "lora.r=3",
            f"lora.dropout={dropout}",
            "muon_learning_rate=0",
            "optim.learning_rate=1e-2",
        )
        folder = pretrain(recipe)
        losses[dropout] = logged(folder, "loss")
        assert (folder / "final" / "adapter" / "adapter_model.safetensors").exists()
        load_model(folder / "final")
        # What dropout drops is a function of the step, so a run that was cut off ends as one that
        # was not.
        lines, final = metrics(folder), weights(folder)
        cut_off(folder, 4)
        pretrain(recipe, resume=True)
        assert (metrics(folder), weights(folder)) == (lines, final)
    # B is 0 before the first update, so dropout shows from the second on.
    assert losses[0.0][0] == losses[0.5][0]
    assert losses[0.0][2] != losses[0.5][2]


def test_four_bits_want_the_package_and_a_device_that_it_supports(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train_recipe(model, tmp_path / "run", *LORA, "lora.quantize=4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cuda"}, __version__="1"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="does not work on cpu: bitsandbytes 1 supports cuda"):
        make_policy(recipe, CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        make_policy(recipe, CPU)


@pytest.mark.slow
def test_adapters_on_four_bit_weights_are_trained_saved_merged_and_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    tokenizer = char_tokenizer(Sudoku().alphabet)
    # bitsandbytes quantizes blocks of 64 numbers.
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    config.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = LlamaForCausalLM(config)
        for parameter in backbone.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    special = tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    save_model(Denoiser(backbone, *special), tokenizer, tmp_path / "base")
    recipe = train_recipe(
        tmp_path / "base", tmp_path / "run", *LORA, "lora.quantize=4bit", "precision=bf16", *TRAINING, "max_steps=3"
    )
    trainer = Trainer(recipe, [ones])
    folder = trainer.train()
    quantized = {name for name, p in trainer.denoiser.named_parameters() if p.dtype == torch.uint8}
    assert len(quantized) == 2 * 7
    adapter = load_file(folder / "final" / "adapter" / "adapter_model.safetensors")
    matrices = {name: value for name, value in adapter.items() if "lora_B" in name}
    assert len(matrices) == 2 * 7
    assert min(float(value.abs().max()) for value in matrices.values()) > 1e-3
    # The adapter is merged into the weights of the file, not into those of 4 bits.
    final, base = (load_file(path / "model.safetensors") for path in (folder / "final", tmp_path / "base"))
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(final[f"{name}.weight"], base[f"{name}.weight"] + 2.0 * b @ a)
    assert unmask("merge", folder / "final" / "adapter", tmp_path / "merged") == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(merged[key], value) for key, value in final.items())
    # The merged model predicts as the policy that was trained, up to the error of 4 bits.
    ids, at = torch.randint(3, 9, (4, 12), generator=torch.Generator().manual_seed(0)), torch.arange(12).expand(4, -1)
    with torch.no_grad():
        ours, theirs, before = (
            each(ids, None, at).float()
            for each in (
                trainer.denoiser,
                load_model(folder / "final").denoiser,
                load_model(tmp_path / "base").denoiser,
            )
        )
    assert (ours - theirs).norm() < 0.5 * (ours - before).norm()
    # If the base model cannot be loaded, the adapter is saved alone, and stands for the model later.
    (tmp_path / "base").rename(tmp_path / "moved")
    trainer.policy.save(tmp_path / "late", adapter=folder / "final" / "adapter")
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["adapter"]
    assert "without its base model, which cannot be loaded" in caplog.text
    (tmp_path / "moved").rename(tmp_path / "base")
    late = load_model(tmp_path / "late").denoiser.backbone.state_dict()
    assert all(torch.equal(late[key], value) for key, value in final.items())


# --- the reference ---


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), LORA], ids=["all weights", "adapters"])
def test_a_moving_reference_is_the_policy_at_its_last_move(
    model: Path, tmp_path: Path, adapters: tuple[str, ...]
) -> None:
    settings = ("method.beta=0.04", *adapters, *TRAINING)
    still = Trainer(train_recipe(model, tmp_path / "still", *settings), [ones]).train()
    moving = Trainer(
        train_recipe(model, tmp_path / "moving", *settings, "sync_ref_model=true", "ref_model_sync_steps=2"), [ones]
    ).train()
    # The KL before each step's update: from the start of the run, or from where step 2, then step 4
    # ended.
    kl, followed = logged(still, "kl"), logged(moving, "kl")
    assert kl[0] == followed[0] == 0.0
    assert kl[1] == followed[1] > 0.0
    assert (followed[2], followed[4]) == (0.0, 0.0)
    assert min(followed[3], followed[5], *kl[2:]) > 0.0


def test_a_copy_moves_by_alpha(lively: Denoiser) -> None:
    reference = FrozenCopy.of(lively, CPU)
    before = [p.clone() for p in lively.parameters()]
    with torch.no_grad():
        for parameter in lively.parameters():
            parameter.add_(1.0)
    reference.move(lively, 0.25)
    for its, was in zip(reference.denoiser.parameters(), before, strict=True):
        torch.testing.assert_close(its, was + 0.25, rtol=0, atol=1e-5)
    reference.move(lively, 1.0)
    for its, policys in zip(reference.denoiser.parameters(), lively.parameters(), strict=True):
        assert torch.equal(its, policys)


@pytest.mark.parametrize("adapters", [("method.beta=0.04",), LORA], ids=["all weights", "adapters"])
def test_a_reference_in_bf16_follows_by_a_small_alpha(model: Path, tmp_path: Path, adapters: tuple[str, ...]) -> None:
    settings = (*adapters, "precision=bf16", "sync_ref_model=true", "ref_model_mixup_alpha=0.01")
    policy = make_policy(train_recipe(model, tmp_path / "run", *settings), CPU)
    reference = policy.reference
    assert reference is not None
    add_masters(policy.denoiser, policy.optimizers)
    weights = trainable(policy.denoiser)
    own = [value for name, value in reference.tensors().items() if not name.endswith(".float32")]
    before = [value.float() for value in own]
    steps = []
    with torch.no_grad():
        for weight in weights:
            # A hundredth of the move is below half the spacing of most of the weights.
            steps.append(weight.abs().float().clamp(min=1e-3) / 16)
            master_of(weight).add_(steps[-1])
            weight.copy_(master_of(weight))
        for _ in range(100):
            reference.move(policy.denoiser, 0.01)
    moved = sum(((value.float() - was) * step).sum() for value, was, step in zip(own, before, steps, strict=True))
    share = float(moved / sum(step.square().sum() for step in steps))
    assert share == pytest.approx(1 - 0.99**100, abs=0.02)
    # The copies are saved beside the weights, which are the rounded copies.
    tensors = reference.tensors()
    assert all(
        torch.equal(tensors[f"{name}.float32"].bfloat16(), value) for name, value in zip(tensors, own, strict=False)
    )
    # At α = 1 nothing is lost, so there are no copies.
    whole = make_policy(train_recipe(model, tmp_path / "run", *settings, "ref_model_mixup_alpha=1"), CPU).reference
    assert whole is not None
    assert {value.dtype for value in whole.tensors().values()} == {torch.bfloat16}


def test_the_model_without_adapters_cannot_move_and_a_second_adapter_can(model: Path, tmp_path: Path) -> None:
    fixed = make_policy(train_recipe(model, tmp_path / "run", *LORA), CPU)
    assert fixed.reference is not None
    with pytest.raises(NotImplementedError):
        fixed.reference.move(fixed.denoiser, 1.0)
    moving = make_policy(train_recipe(model, tmp_path / "run", *LORA, "sync_ref_model=true"), CPU)
    assert isinstance(moving.reference, SecondAdapter)
    # Frozen, so no optimizer has it.
    assert len(moving.reference.tensors()) == len(trainable(moving.denoiser))


def test_an_offloaded_copy_is_on_the_device_for_its_pass_only(lively: Denoiser) -> None:
    # The device is the CPU here too, so what tells its tensors from those at home is where they
    # lie.
    home = [p.data_ptr() for p in lively.parameters()]
    values = [p.detach().clone() for p in lively.parameters()]
    reference = FrozenCopy(lively, CPU, offload=True)

    def places() -> list[int]:
        assert all(torch.equal(p, value) for p, value in zip(lively.parameters(), values, strict=True))
        return [p.data_ptr() for p in lively.parameters()]

    assert places() == home
    with reference.acting(lively) as acting:
        assert acting is lively
        assert not {*places()} & {*home}
    assert places() == home
    with pytest.raises(KeyError), reference.acting(lively):
        raise KeyError
    assert places() == home
    # A checkpoint reads the tensors at home in place, whenever it took hold of them.
    kept = reference.tensors()
    with reference.acting(lively):
        pass
    kept["backbone.lm_head.weight"].zero_()
    assert float(lively.backbone.lm_head.weight.abs().sum()) == 0.0
    with FrozenCopy(lively, CPU).acting(lively):
        assert [p.data_ptr() for p in lively.parameters()] == home


@pytest.mark.slow
def test_offloading_does_not_change_the_training(model: Path, tmp_path: Path) -> None:
    runs = [
        Trainer(train_recipe(model, tmp_path / name, "method.beta=0.04", *TRAINING, *more), [ones]).train()
        for name, more in (("on", ()), ("off", ("reference_offload=true",)))
    ]
    assert metrics(runs[0]) == metrics(runs[1])


# --- checkpoints ---


def cut_off(folder: Path, step: int) -> None:
    """Remove the later checkpoints, as if the run had been killed after a step."""
    shutil.rmtree(folder / "final")
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), LORA], ids=["all weights", "adapters"])
def test_a_reference_that_moves_is_resumed_bit_for_bit(model: Path, tmp_path: Path, adapters: tuple[str, ...]) -> None:
    # Between the move after step 1 and the next one, the reference is neither the start nor the
    # policy.
    moving = ("sync_ref_model=true", "ref_model_sync_steps=3", "ref_model_mixup_alpha=0.5", "save_steps=1")
    recipe = train_recipe(
        model, tmp_path / "run", "method.beta=0.5", *adapters, *TRAINING, *moving, "save_total_limit=9"
    )
    folder = Trainer(recipe, [ones]).train()
    lines, final = metrics(folder), weights(folder)
    assert lines[4]["kl"] > 0
    cut_off(folder, 4)
    Trainer(recipe, [ones], resume=True).train()
    assert metrics(folder) == lines
    assert weights(folder) == final


@pytest.mark.slow
def test_a_checkpoint_of_adapters_holds_only_trained_tensors(model: Path, tmp_path: Path) -> None:
    trainer = Trainer(train_recipe(model, tmp_path / "run", *LORA, *TRAINING), [ones])
    folder = trainer.train()
    held = load_file(next((folder / "checkpoints").glob("*6/state-00000.safetensors")))
    parameters = {name for name in held if name.startswith("weight:")}
    assert parameters == {f"weight:backbone.{name}" for name, _ in trainer.policy.adapters.parameters()}  # type: ignore[union-attr]
    rest = {name for name in held if not name.startswith(("weight:", "optimizer:"))}
    assert rest == {f"extra:{name}" for name in trainer.policy.mark}


@pytest.mark.slow
def test_adapters_are_not_resumed_on_another_model(model: Path, tmp_path: Path, lively: Denoiser) -> None:
    recipe = train_recipe(model, tmp_path / "run", *LORA, *TRAINING)
    folder = Trainer(recipe, [ones]).train()
    cut_off(folder, 4)
    with torch.no_grad():
        lively.backbone.transformer.h[1].mlp.c_fc.weight.mul_(1.01)
    save_model(lively, char_tokenizer(Sudoku().alphabet), model)
    with pytest.raises(RunError, match="another model: only one of the two has extra:base model"):
        Trainer(recipe, [ones], resume=True).train()


# --- precision ---


@pytest.mark.parametrize("adapters", [(), LORA], ids=["all weights", "adapters"])
@pytest.mark.slow
def test_bf16_computes_in_bfloat16_with_log_probabilities_and_master_weights_in_float32(
    model: Path, tmp_path: Path, adapters: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train_recipe(model, tmp_path / "run", "method.beta=0.04", "precision=bf16", *adapters, *TRAINING)
    trainer = Trainer(recipe, [ones])
    denoiser, paths = trainer.denoiser, []
    assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}
    update = Learner.update

    def noted(learner: Learner, rollout: Rollout, *rest: Any) -> Any:
        paths.append(rollout.trajectory)
        return update(learner, rollout, *rest)

    monkeypatch.setattr(Learner, "update", noted)
    folder = trainer.train()
    assert {(path.logprob.dtype, path.entropy.dtype) for path in paths} == {(torch.float32, torch.float32)}
    # float32 numbers: few of them are ones that bfloat16 could hold.
    logprob = torch.cat([path.logprob[path.logprob != 0] for path in paths])
    assert (logprob == logprob.bfloat16().float()).float().mean() < 0.1
    assert logged(folder, "policy/ratio_max") == [1.0] * 6
    # The rounding of bfloat16 in batches of another shape, and no more.
    assert max(logged(folder, "diffusion/mismatch_max")) < 0.1
    # The reference computes in the same precision: before the first update there is nothing between
    # the two.
    assert logged(folder, "kl")[0] == 0.0
    trained = dict(denoiser.named_parameters() if not adapters else trainer.policy.adapters.parameters())
    masters = {name: master_of(p) for name, p in trained.items()}
    assert all(torch.equal(masters[name].bfloat16(), p) for name, p in trained.items())
    assert max(float((m.detach() - m.bfloat16().float()).abs().max()) for m in masters.values()) > 1e-5
    # A checkpoint and a saved adapter hold the master copies, a model the weights that compute.
    prefix = "backbone." if adapters else ""
    saved = {key.removeprefix("weight:" + prefix): value for key, value in weights_of_checkpoint(folder).items()}
    assert all(torch.equal(saved[name], master) for name, master in masters.items())
    final, _ = load_model(folder / "final")
    assert final.backbone.dtype == torch.bfloat16
    if adapters:
        adapter = load_file(folder / "final" / "adapter" / "adapter_model.safetensors")
        assert {value.dtype for value in adapter.values()} == {torch.float32}
    else:
        assert all(torch.equal(a, b) for a, b in zip(final.parameters(), denoiser.parameters(), strict=True))


def weights_of_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = [load_file(path) for path in sorted(newest.glob("state-*.safetensors"))]
    return {key: value for file in files for key, value in file.items() if key.startswith("weight:")}


MOVING = ("sync_ref_model=true", "ref_model_sync_steps=1", "ref_model_mixup_alpha=0.1")


@pytest.mark.parametrize(
    "adapters",
    [(), (*LORA, *MOVING), ("method.beta=0.04", *MOVING)],
    ids=["all weights", "adapters and a moving reference", "all weights and a moving reference"],
)
@pytest.mark.slow
def test_a_run_in_bf16_resumes_bit_for_bit(model: Path, tmp_path: Path, adapters: tuple[str, ...]) -> None:
    recipe = train_recipe(model, tmp_path / "run", "precision=bf16", *adapters, *TRAINING)
    folder = Trainer(recipe, [ones]).train()
    whole = weights_of_checkpoint(folder)
    cut_off(folder, 4)
    Trainer(recipe, [ones], resume=True).train()
    again = weights_of_checkpoint(folder)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_the_precision_of_a_device_is_recorded_in_the_run(model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(model, tmp_path / "run", "precision=auto")
    assert Trainer(recipe, [ones]).recipe.precision == "float32"
    assert load_recipe(tmp_path / "run" / "config.yaml").precision == "float32"


def test_the_first_update_says_how_far_its_ratios_are_from_one(model: Path, tmp_path: Path) -> None:
    found = {}
    for name, more in (("one", ()), ("two", ("num_iterations=2", "views_per_forward=3"))):
        folder = Trainer(train_recipe(model, tmp_path / name, *TRAINING, "max_steps=1", *more), [ones]).train()
        found[name] = logged(folder, "policy/first_log_ratio_max"), logged(folder, "policy/ratio_max")
    # A single update takes both sides of its ratios from one pass.
    assert found["one"] == ([], [1.0])
    (first,), (largest,) = found["two"]
    assert 0 <= first < 1e-5
    # Negative control: the second update does change the ratios.
    assert largest > 1.001


@pytest.mark.usefixtures("plain_kernels")
def test_a_deterministic_run_gets_deterministic_kernels(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    Trainer(train_recipe(model, tmp_path / "plain"), [ones])
    assert not torch.are_deterministic_algorithms_enabled()
    Trainer(train_recipe(model, tmp_path / "run", "deterministic=true"), [ones])
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    # The next run of the same process has its own setting.
    Trainer(train_recipe(model, tmp_path / "after"), [ones])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def plain_kernels() -> Iterator[None]:
    """Turn torch's deterministic mode off after a test."""
    yield
    torch.use_deterministic_algorithms(False)


# --- compilation ---


@pytest.mark.slow
def test_compiled_layers_give_the_same_logits_and_gradients_under_the_same_names(model: Path, tmp_path: Path) -> None:
    # Traces and guards as any backend; inductor would take half a minute to write code for the same
    # graphs.
    counter = CompileCounter()
    found = []
    for compiled in (False, True):
        policy = make_policy(train_recipe(model, tmp_path / "run", *LORA, "gradient_checkpointing=true"), CPU)
        assert policy.adapters is not None
        train_by_hand(policy.adapters)
        if compiled:
            policy.denoiser.compile_layers(counter)
            breaks = sum(counters["graph_break"].values())
        rows = []
        for batch, width in ((2, 8), (3, 11)):
            ids = torch.randint(3, 9, (batch, width), generator=torch.Generator().manual_seed(width))
            logits = policy.denoiser(ids, None, torch.arange(width).expand(batch, width))
            logits.sum().backward()
            rows.append(logits.detach())
        with policy.adapters.off(), torch.no_grad():
            rows.append(policy.denoiser(ids, None, torch.arange(width).expand(batch, width)))
        found.append((rows, [p.grad for p in trainable(policy.denoiser)], list(policy.denoiser.state_dict())))
    (rows, gradients, names), (again, gradients_again, names_again) = found
    assert names == names_again
    # With a graph for each shape there would be one for every row that ends, and with one for each
    # layer twice as many.
    assert 1 <= counter.frame_count <= 4
    # Checkpointing does not break the graphs, as it does in a graph of the whole trunk.
    assert sum(counters["graph_break"].values()) == breaks
    for one, other in zip([*rows, *gradients], [*again, *gradients_again], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_settings_of_the_recipe_reach_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Denoiser, "compile_layers", lambda self: asked.append("compile"))
    make_policy(train_recipe(model, tmp_path / "run"), CPU)
    assert asked == []
    policy = make_policy(train_recipe(model, tmp_path / "run", "compile=true", "gradient_checkpointing=true"), CPU)
    assert asked == ["compile"]
    assert len(policy.denoiser._checkpointed) == 2


@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_training(model: Path, tmp_path: Path) -> None:
    kept, again = (
        Trainer(train_recipe(model, tmp_path / name, *TRAINING, *more), [ones]).train()
        for name, more in (("kept", ()), ("again", ("gradient_checkpointing=true",)))
    )
    assert logged(kept, "reward") == logged(again, "reward")
    assert logged(kept, "grad_norm") == pytest.approx(logged(again, "grad_norm"), rel=1e-4)
