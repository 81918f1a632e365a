"""Tests of LoRA: adapted modules, initial values, switching off, saving, merging, and the
reference."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.adapters import EVERYWHERE, IDS, LORA, build, train_by_hand
from tests.helpers.messages import raises
from tests.helpers.native_configs import CONFIGS, EOS, MASK, PAD, TOKENIZER
from tests.helpers.runs import unmask
from unmask.core.config import LoraConfig
from unmask.core.errors import ConfigError, ModelError
from unmask.models import Denoiser, load_model, save_model
from unmask.models.adapter_folders import merge_adapter, save_adapted
from unmask.models.adapters import REFERENCE, Adapters, target_modules
from unmask.models.native import NATIVE_CLASSES

LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
LINEARS = {
    "GPT2LMHeadModel": ["c_attn", "c_fc", "c_proj"],
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "Qwen3MoeForCausalLM": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "Glm4MoeForCausalLM": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "ModernBertForMaskedLM": ["Wi", "Wo", "Wqkv"],
    "BertForMaskedLM": ["dense", "key", "query", "value"],
}


@torch.no_grad()
def logits(denoiser: Denoiser) -> Tensor:
    return denoiser(IDS, None, EVERYWHERE)


def test_this_file_adapts_every_family() -> None:
    assert CONFIGS.keys() == NATIVE_CLASSES.keys() == LINEARS.keys()


# --- which modules ---


@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_all_linear_adapts_every_linear_layer_of_the_trunk_but_not_the_head(name: str) -> None:
    denoiser = build(name)
    found = target_modules(denoiser, LORA)
    assert sorted({target.rpartition(".")[2] for target in found}) == LINEARS[name]
    trunk = denoiser.backbone.base_model
    matrices = [
        parameter
        for module_name, module in trunk.named_modules()
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 2 and not isinstance(module, torch.nn.Embedding)
        # In a mixture only the attention; see `target_modules`.
        if not (NATIVE_CLASSES[name].experts and ".mlp." in module_name)
    ]
    assert len(found) == len(matrices)
    Adapters(denoiser, LORA)
    trained = [key for key, parameter in denoiser.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(found)
    assert all(
        ".lora_" in key and key.startswith(f"backbone.{denoiser.backbone.base_model_prefix}.") for key in trained
    )


def test_named_targets_adapt_only_these_modules() -> None:
    denoiser = build()
    adapters = Adapters(denoiser, LoraConfig(r=3, targets=("q_proj", "layers.1.mlp.up_proj")))
    assert sorted({key.split(".lora_")[0] for key, _ in adapters.parameters()}) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]


@pytest.mark.parametrize("targets", [("ff_out",), ("q_proj", "ff_out"), ("proj",), ("embed_tokens",)], ids=str)
def test_a_target_that_matches_no_linear_module_is_an_error_that_lists_the_modules(targets: tuple[str, ...]) -> None:
    # LLaDA's own name of its attention output, which peft accepts silently beside names that match.
    with pytest.raises(ConfigError) as caught:
        Adapters(build(), LoraConfig(targets=targets))
    assert f'"{targets[-1]}"' in str(caught.value)
    assert all(name in str(caught.value) for name in LLAMA)


def test_a_tied_head_cannot_be_adapted_apart_from_the_embeddings() -> None:
    with raises(ConfigError, "shares its weights with the embeddings"):
        Adapters(build("LlamaForCausalLM"), LoraConfig(targets=("lm_head",)))
    untied = Adapters(build("Qwen2ForCausalLM"), LoraConfig(targets=("lm_head",)))
    assert [key for key, _ in untied.parameters()] == [
        "lm_head.lora_A.default.weight",
        "lm_head.lora_B.default.weight",
    ]


# --- what it computes ---


@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_nothing_changes_until_the_adapters_are_trained(name: str) -> None:
    denoiser = build(name)
    before = logits(denoiser)
    adapters = Adapters(denoiser, LORA)
    assert torch.equal(logits(denoiser), before)
    train_by_hand(adapters)
    changed = logits(denoiser)
    assert (changed - before).abs().max() > 0.1
    with adapters.off():
        assert torch.equal(logits(denoiser), before)
    assert torch.equal(logits(denoiser), changed)


def test_the_seed_determines_the_initial_weights_without_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (
        dict(Adapters(build(), LORA, seed).parameters())["model.layers.0.mlp.up_proj.lora_A.default.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_continues_with_the_same_weights_after_a_pass_without_adapters() -> None:
    denoiser = build()
    adapters = Adapters(denoiser, LORA)
    adapters.add_reference()
    trained = {key for key, parameter in denoiser.named_parameters() if parameter.requires_grad}
    assert trained == {f"backbone.{key}" for key, _ in adapters.parameters()}
    for context in (adapters.off, adapters.as_reference):
        with context():
            pass
        assert {key for key, parameter in denoiser.named_parameters() if parameter.requires_grad} == trained


def test_adapters_compute_in_the_precision_of_the_model() -> None:
    denoiser = build(dtype=torch.bfloat16)
    adapters = Adapters(denoiser, LORA)
    adapters.add_reference()
    assert {parameter.dtype for _, parameter in adapters.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for _, parameter in adapters.parameters(REFERENCE)} == {torch.bfloat16}

    def converted_inputs() -> int:
        """Count the conversions to float32 that come before the head, beyond those of the bare model."""
        with torch.no_grad(), _Conversions() as seen:
            logits(denoiser)
        return seen.count

    with adapters.off():
        bare = converted_inputs()
    assert converted_inputs() == bare
    # Negative control: adapters as peft makes them convert the input of each adapted layer.
    for _, parameter in adapters.parameters():
        parameter.data = parameter.data.float()
    assert converted_inputs() > bare + 2 * 4


class _Conversions(TorchDispatchMode):
    """Counts the tensors that are converted from bfloat16 to float32."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **kwargs or {})
        if function is torch.ops.aten._to_copy.default and made.dtype == torch.float32:
            self.count += args[0].dtype == torch.bfloat16
        return made


# --- the reference ---


def test_the_reference_stays_where_the_policy_was() -> None:
    denoiser = build()
    adapters = Adapters(denoiser, LORA)
    train_by_hand(adapters)
    start = logits(denoiser)
    adapters.add_reference()
    with adapters.as_reference():
        assert torch.equal(logits(denoiser), start)
    train_by_hand(adapters, seed=2)
    with adapters.as_reference():
        assert torch.equal(logits(denoiser), start)
    assert (logits(denoiser) - start).abs().max() > 0.1


# --- on disk ---


@pytest.mark.parametrize("name", NATIVE_CLASSES)
@pytest.mark.slow
def test_final_is_a_plain_checkpoint_and_peft_finds_the_adapter_in_it(name: str, tmp_path: Path) -> None:
    denoiser = build(name)
    save_model(denoiser, TOKENIZER, tmp_path / "base")
    adapters = Adapters(denoiser, LORA, base=str(tmp_path / "base"))
    train_by_hand(adapters)
    wanted = logits(denoiser)
    save_adapted(denoiser, TOKENIZER, adapters, tmp_path / "final")
    assert torch.equal(logits(denoiser), wanted)

    plain, _ = load_model(tmp_path / "final")
    assert not any("lora" in key for key in plain.state_dict())
    torch.testing.assert_close(logits(plain), wanted, rtol=0, atol=1e-4)
    auto = getattr(transformers, NATIVE_CLASSES[name].auto_class).from_pretrained(tmp_path / "final").eval()
    torch.testing.assert_close(logits(Denoiser(auto, MASK, EOS, PAD)), wanted, rtol=0, atol=1e-4)

    base, _ = load_model(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base.backbone, tmp_path / "final" / "adapter")
    assert torch.equal(logits(base), wanted)
    facts = json.loads((tmp_path / "final" / "adapter" / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"]) == (3, 6.0)
    assert facts["base_model_name_or_path"] == str(tmp_path / "base")
    # The result of peft's own merge.
    theirs = adapted.merge_and_unload().state_dict()
    ours = plain.backbone.state_dict()
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_an_adapter_is_merged_into_its_base_model_or_a_given_one(tmp_path: Path) -> None:
    denoiser = build()
    save_model(denoiser, TOKENIZER, tmp_path / "base")
    adapters = Adapters(denoiser, LORA, base=str(tmp_path / "base"))
    train_by_hand(adapters)
    wanted = logits(denoiser)
    adapters.save(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")[0]), wanted, rtol=0, atol=1e-4)
    # The adapter itself stands for the same model.
    assert torch.equal(logits(load_model(tmp_path / "adapter")[0]), logits(load_model(tmp_path / "merged")[0]))
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    merge_adapter(tmp_path / "adapter", tmp_path / "again", str(tmp_path / "elsewhere"))
    torch.testing.assert_close(logits(load_model(tmp_path / "again")[0]), wanted, rtol=0, atol=1e-4)
    with raises(ModelError, "no folder") as moved:
        merge_adapter(tmp_path / "adapter", tmp_path / "third")
    assert moved.value.__notes__ == [
        f"{tmp_path / 'base'} is the model that the adapter names. If the model has moved, name it with --base."
    ]
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with raises(ModelError, "cannot be read as JSON", snapshot=False):
        merge_adapter(tmp_path / "adapter", tmp_path / "third")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    Adapters(build("GPT2LMHeadModel"), LORA).save(tmp_path / "adapter")
    with raises(ModelError, "does not fit", snapshot=False):
        Adapters.load(build(), tmp_path / "adapter")
    with raises(ModelError, "holds no adapter"):
        Adapters.load(build(), tmp_path)


def test_a_saved_adapter_loads_bit_for_bit(tmp_path: Path) -> None:
    denoiser, other = build(), build()
    adapters = Adapters(denoiser, LORA)
    train_by_hand(adapters)
    adapters.save(tmp_path)
    assert not torch.equal(logits(other), logits(denoiser))
    loaded = Adapters.load(other, tmp_path)
    assert torch.equal(logits(other), logits(denoiser))
    for (name, a), (same, b) in zip(adapters.parameters(), loaded.parameters(), strict=True):
        assert name == same
        assert torch.equal(a, b)


def test_the_global_generator_is_not_used(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    adapters = Adapters(build(), LORA)
    adapters.add_reference()
    adapters.save(tmp_path)
    Adapters.load(build(), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transposed_and_a_plain_layer_merge_each_in_its_own_way(tmp_path: Path) -> None:
    denoiser = build("GPT2LMHeadModel")
    denoiser.backbone.lm_head.weight = torch.nn.Parameter(denoiser.backbone.lm_head.weight.detach().clone())
    denoiser.backbone.config.tie_word_embeddings = False
    adapters = Adapters(denoiser, LORA.model_copy(update={"targets": ["c_attn", "lm_head"]}))
    train_by_hand(adapters)
    wanted = logits(denoiser)
    save_adapted(denoiser, TOKENIZER, adapters, tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path)[0]), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_adapter_with_more_than_two_matrices_is_refused(options: dict, tmp_path: Path) -> None:
    theirs = peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | options))
    peft.PeftModel(build("Qwen2ForCausalLM").backbone, theirs).save_pretrained(tmp_path)
    with raises(ModelError, "other than LoRA's two matrices, such as", "merge_and_unload"):
        Adapters.load(build("Qwen2ForCausalLM"), tmp_path)


def test_peft_adapters_of_other_scales_and_ranks_are_merged_as_peft_runs_them(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 9}}
    theirs = peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "v_proj"], **patterns)
    source = build("Qwen2ForCausalLM")
    save_model(source, TOKENIZER, tmp_path / "base")
    adapted = peft.PeftModel(source.backbone, theirs)
    with torch.no_grad():
        for parameter in source.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    wanted = logits(source)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")[0]), wanted, rtol=0, atol=1e-4)


def small_update(adapters: Adapters, size: float) -> None:
    """Set B to random numbers, so that the entries of the update have the standard deviation `size`."""
    pairs = iter(parameter for _, parameter in adapters.parameters())
    generator = torch.Generator().manual_seed(2)
    for a, b in zip(pairs, pairs, strict=True):
        b.data.copy_(torch.randn(b.shape, generator=generator))
        b.data.mul_(size / (2.0 * b @ a).float().std())


@torch.no_grad()
def kept(merged: dict[str, Tensor], before: dict[str, Tensor], adapters: Adapters) -> float:
    """Return the share of the adapter's update that merged weights hold: the projection of their
    change on the update."""
    inner = square = 0.0
    for key, a in adapters.parameters():
        if ".lora_A." in key:
            stem = key.partition(".lora_A.")[0]
            b = adapters.backbone.get_parameter(key.replace("lora_A", "lora_B"))
            update = 2.0 * b.double() @ a.double()
            change = merged[f"{stem}.weight"].double() - before[f"{stem}.weight"].double()
            inner, square = inner + float((change * update).sum()), square + float((update**2).sum())
    return inner / square


@pytest.mark.slow
def test_a_saved_model_in_bfloat16_keeps_an_update_below_the_spacing_of_its_weights(tmp_path: Path) -> None:
    denoiser = build(dtype=torch.bfloat16)
    save_model(denoiser, TOKENIZER, tmp_path / "base")
    before = {name: value.clone() for name, value in denoiser.backbone.state_dict().items()}
    adapters = Adapters(denoiser, LORA, base=str(tmp_path / "base"))
    small_update(adapters, 1e-4)  # the weights are as large as .4, where the spacing is 2e-3
    # The weights that rollouts and evaluations read.
    own = dict(denoiser.backbone.named_parameters(remove_duplicate=False))
    evaluated = dict(adapters.merging(own, torch.Tensor.detach))
    save_adapted(denoiser, TOKENIZER, adapters, tmp_path / "final")
    merge_adapter(tmp_path / "final" / "adapter", tmp_path / "merged")
    for folder in ("final", "merged"):
        saved = load_model(tmp_path / folder)[0].backbone.state_dict()
        assert all(torch.equal(saved[name], value) for name, value in evaluated.items())
        assert kept(saved, before, adapters) == pytest.approx(1.0, abs=0.3)
    # Negative control: rounding to nearest drops most of it.
    nearest = dict(adapters.merging(own, torch.Tensor.detach, at_random=False))
    assert kept(nearest, before, adapters) < 0.5


def test_merging_rounds_the_float32_sum_once() -> None:
    denoiser = build(dtype=torch.bfloat16)
    name = "model.layers.0.mlp.up_proj"
    before = denoiser.backbone.get_submodule(name).weight.detach().double()
    adapters = Adapters(denoiser, LORA)
    train_by_hand(adapters)
    a, b = (dict(adapters.parameters())[f"{name}.lora_{x}.default.weight"].detach().double() for x in "AB")
    total = before + 2.0 * (b @ a)
    merged = adapters.merged()[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    # One of the two neighbours of the sum, not always the nearer one.
    spacing = 2.0 ** (total.abs().log2().floor() - 7)
    assert ((merged.double() - total).abs() < spacing * (1 + 1e-4)).all()
    assert not torch.equal(merged, total.float().bfloat16())
    # A master copy in float32 of what computes in bfloat16 gives the same bits.
    masters = {key: p.detach().float() * (1 + 1e-4) for key, p in adapters.parameters()}
    again = adapters.merged(
        {f"backbone.{key}": value for key, value in (denoiser.backbone.state_dict() | masters).items()}
    )
    assert all(torch.equal(again[key], value) for key, value in adapters.merged().items())


# --- the command ---


@pytest.mark.slow
def test_merge_takes_an_adapter_a_model_folder_or_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    denoiser = build()
    save_model(denoiser, TOKENIZER, tmp_path / "base")
    adapters = Adapters(denoiser, LORA, base=str(tmp_path / "base"))
    train_by_hand(adapters)
    wanted = logits(denoiser)
    save_adapted(denoiser, TOKENIZER, adapters, tmp_path / "run" / "final")
    for i, source in enumerate(("run", "run/final", "run/final/adapter")):
        assert unmask("merge", tmp_path / source, tmp_path / f"out-{i}") == 0
        assert "merged into" in capsys.readouterr().out
        torch.testing.assert_close(logits(load_model(tmp_path / f"out-{i}")[0]), wanted, rtol=0, atol=1e-4)
    assert unmask("merge", tmp_path / "run", tmp_path / "out-0") == 2
    assert "exists already" in capsys.readouterr().err
    assert unmask("merge", tmp_path / "run", tmp_path / "x", "--base", tmp_path / "nowhere") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_merge_describes_a_folder_without_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(build(), TOKENIZER, tmp_path / "plain")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for source, said in {
        "plain": "a plain checkpoint without an adapter",
        "begun": "a run that has not ended",
        "empty": "holds no adapter",
        "nothing": "there is no folder",
    }.items():
        assert unmask("merge", tmp_path / source, tmp_path / "out") == 2
        assert said in capsys.readouterr().err
