"""Tests of conversion: logits of the fixtures, exact conversion both ways, and faults reported
before writing."""

from __future__ import annotations

import builtins
import json
import resource
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.messages import raises
from tests.helpers.minis import DATA, MINIS, UNSTATED, mini_checkpoint
from tests.helpers.plain_models import plain_logits
from unmask.core.errors import ModelError
from unmask.models import convert, load_model, save_model
from unmask.models.families import FAMILIES, UNSUPPORTED, family_of
from unmask.models.layout import native_config, renamed
from unmask.models.tokenizers import complete_tokenizer
from unmask.runs.environment import environment

OWN_LAYOUT = [name for name, family in FAMILIES.items() if family.architecture]
FIXTURES = {"llada": "llada-mini", "dream": "dream-mini"}


@pytest.fixture(scope="module", params=MINIS)
def mini(request, tmp_path_factory):
    """Yield the name of each family, its mini in the original layout, and the converted mini."""
    folder = tmp_path_factory.mktemp(request.param)
    source = mini_checkpoint(request.param, folder / "original")
    convert(source, folder / "native", block_length=UNSTATED.get(request.param))
    return request.param, source, folder / "native"


@pytest.fixture
def llada(tmp_path):
    """Return a LLaDA mini for a test to damage."""
    return mini_checkpoint("llada", tmp_path / "llada")


def edit(path, **changes):
    """Change a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def read(path):
    return json.loads(path.read_text())


def logits(denoiser, ids):
    with torch.no_grad():
        return denoiser(ids, None, torch.arange(ids.shape[1]).expand(len(ids), -1))


IDS = torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(0))


# Logits of the releases' own code


@pytest.mark.parametrize("family", FIXTURES)
def test_the_logits_equal_those_of_the_familys_own_code(family, tmp_path):
    expected = load_file(DATA / FIXTURES[family] / "expected.safetensors")
    source = mini_checkpoint(family, tmp_path / "original")
    shutil.copy(DATA / FIXTURES[family] / "model.safetensors", source)
    convert(source, tmp_path / "native")
    denoiser, _ = load_model(tmp_path / "native")
    ids, theirs = expected["input_ids"], expected["logits"]
    assert theirs.std() > 0.1
    everywhere = torch.arange(ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad():
        if denoiser.logit_shift:
            # Its head at i predicts i + 1, so position 0 is not compared.
            ours, theirs = denoiser(ids, None, everywhere[:, 1:]), theirs[:, :-1]
        else:
            ours = denoiser(ids, None, everywhere)
        assert denoiser.logit_shift == FAMILIES[family].logit_shift == (family == "dream")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


INDEPENDENT = [name for name, family in FAMILIES.items() if family.checked == "logits of independent code"]


@pytest.mark.parametrize("name", [*INDEPENDENT, "dream-coder"])
def test_the_logits_equal_those_of_code_written_from_the_description(name, tmp_path):
    source = mini_checkpoint(name, tmp_path / "original")
    convert(source, tmp_path / "native", block_length=UNSTATED.get(name))
    denoiser, _ = load_model(tmp_path / "native")
    expected = plain_logits(source, IDS, denoiser.block_length)
    # A shifted head at i - 1 predicts position i.
    positions = torch.arange(int(denoiser.logit_shift), IDS.shape[1]).expand(len(IDS), -1)
    with torch.no_grad():
        found = denoiser(IDS, None, positions).double()
    expected = expected[:, : found.shape[1]]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # Negative control: without the blocks, or with a token changed, the difference is seen.
    other = plain_logits(source, IDS, None) if denoiser.block_length else plain_logits(source, IDS.flip(1))
    assert (other[:, : found.shape[1]] - found).abs().max() > 0.01


def test_a_causal_llama_gives_other_logits(tmp_path):
    expected = load_file(DATA / "llada-mini" / "expected.safetensors")
    convert(mini_checkpoint("llada", tmp_path / "original"), tmp_path / "native")
    edit(tmp_path / "native" / "config.json", is_causal=True)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "native").eval()
    with torch.no_grad():
        assert (causal(input_ids=expected["input_ids"]).logits - expected["logits"]).abs().max() > 0.01


# Every family, both ways


def test_a_mini_of_every_family_is_converted():
    assert MINIS.keys() == FAMILIES.keys()


@pytest.mark.slow
def test_a_converted_mini_loads_saves_and_loads_with_the_same_logits(mini, tmp_path):
    name, _, native = mini
    denoiser, tokenizer = load_model(native)
    assert type(denoiser.backbone).__name__ == FAMILIES[name].native_class
    first = logits(denoiser, IDS)
    assert first.std() > 0.02
    save_model(denoiser, tokenizer, tmp_path / "saved")
    again, _ = load_model(tmp_path / "saved")
    assert torch.equal(logits(again, IDS), first)
    # The names are those of the class; a loader that renames would have restored the original
    # names.
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == load_file(native / "model.safetensors").keys()
    assert family_of(read(tmp_path / "saved" / "config.json")) == family_of(read(native / "config.json"))


@pytest.mark.slow
def test_converting_back_restores_names_values_and_config(mini, tmp_path):
    name, source, native = mini
    if name not in OWN_LAYOUT:
        with raises(ModelError, "has no layout other than the native one"):
            convert(native, tmp_path / "back", to="original")
        return
    convert(native, tmp_path / "back", to="original")
    one, two = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    was, now = read(source / "config.json"), read(tmp_path / "back" / "config.json")
    # The minis declare bfloat16 and hold float32, like the fixtures; the other keys name the
    # library that wrote the file.
    ignored = {"torch_dtype", "transformers_version", "_name_or_path", "pad_token_id"}
    assert {k: v for k, v in now.items() if k not in ignored} == {k: v for k, v in was.items() if k not in ignored}
    assert now["torch_dtype"] == "float32"
    convert(tmp_path / "back", tmp_path / "again", block_length=UNSTATED.get(name))
    weights = [load_file(folder / "model.safetensors") for folder in (native, tmp_path / "again")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slow
def test_code_of_a_checkpoint_is_never_run_offered_or_copied(mini, tmp_path, monkeypatch, capfd):
    name, source, native = mini
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    convert(source, tmp_path / "native", block_length=UNSTATED.get(name))
    load_model(tmp_path / "native")
    assert "Do you wish to run" not in "".join(capfd.readouterr())
    assert not any(name.startswith("transformers_modules") for name in sys.modules)
    assert {path.suffix for path in native.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in read(native / name)


def test_the_code_in_a_mini_would_be_noticed(tmp_path):
    folder = mini_checkpoint("llada", tmp_path)
    with pytest.raises(SystemExit, match="remote code ran"):
        exec((folder / "modeling_llada.py").read_text())


@pytest.mark.parametrize("name", OWN_LAYOUT)
def test_an_original_layout_is_refused_by_load_with_the_command_that_converts_it(name, tmp_path):
    source = mini_checkpoint(name, tmp_path / "original")
    command = rf"unmask convert {source} original-native$"
    with pytest.raises(ModelError, match=f"refers to its own code.*unmask runs no remote code.*{command}"):
        load_model(source)
    edit(source / "config.json", auto_map=None)
    with pytest.raises(ModelError, match=f"is not in a native layout.*{command}"):
        load_model(source)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_of_another_kind_is_refused_with_the_reason(llada, name, tmp_path):
    edit(llada / "config.json", architectures=[name], model_type="other")
    for use in (load_model, lambda folder: convert(folder, tmp_path / "native")):
        with raises(ModelError, "has no mask token"):
            use(llada)


# Mixtures of experts


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llada2", {"use_bias": True}, ("use_bias: True", "Glm4MoeForCausalLM", "only with False")),
        ("llada2", {"use_qkv_bias": True}, ("use_qkv_bias: True",)),
        ("llada2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, ("rope_scaling", "'yarn'")),
        ("llada2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ("rope_parameters", "unscaled")),
        ("llada2", {"num_nextn_predict_layers": 1}, ("num_nextn_predict_layers: 1", "predict the next tokens")),
        ("llada2", {"delete_token_id": 120}, ("delete_token_id: 120", "inserts and deletes")),
        ("llada2", {"score_function": "softmax"}, ("score_function: 'softmax'", "only with 'sigmoid'")),
        ("llada-moe", {"moe_layer_freq": [0, 1]}, ("moe_layer_freq: [0, 1]", "only with 1")),
        ("llada-moe", {"moe_router_enable_expert_bias": True}, ("moe_router_enable_expert_bias: True",)),
        ("llada-moe", {"clip_qkv": 8.0}, ("clip_qkv: 8.0",)),
        ("llada-moe", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor: 0.5", "only with 1.0")),
        ("llada-moe", {"norm_topk_prob": True}, ("norm_topk_prob: True",)),
        ("llada-moe", {"shared_expert_intermediate_size": 24}, ("shared_expert_intermediate_size: 24",)),
        ("illada", {"layer_norm_eps": 1e-6}, ("layer_norm_eps: 1e-06", "only with None")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_release_that_the_native_class_does_not_compute_is_refused_with_the_reason(name, change, words, tmp_path):
    source = mini_checkpoint(name, tmp_path / "original")
    edit(source / "config.json", **change)
    with raises(ModelError, "It cannot be converted", *words):
        convert(source, tmp_path / "native", block_length=UNSTATED.get(name))


def test_a_release_whose_name_says_that_it_is_another_model_is_refused(tmp_path):
    source = mini_checkpoint("llada2", tmp_path / "LLaDA2.2-mini")
    with raises(ModelError, "inserts and deletes tokens"):
        convert(source, tmp_path / "native", block_length=4)


def test_values_that_a_release_leaves_out_are_those_of_its_own_code(tmp_path):
    source = mini_checkpoint("llada2", tmp_path / "original")
    left_out = ("n_group", "topk_group", "routed_scaling_factor", "partial_rotary_factor", "first_k_dense_replace")
    edit(source / "config.json", **dict.fromkeys(left_out))
    config = native_config(read(source / "config.json"), "llada2", FAMILIES["llada2"], 4)
    assert (config.n_group, config.topk_group, config.routed_scaling_factor) == (8, 4, 2.5)
    assert (config.rope_parameters["partial_rotary_factor"], config.first_k_dense_replace) == (0.5, 0)


@pytest.mark.parametrize("name", ["llada2", "sdar-moe", "llada-moe"])
def test_native_experts_may_be_stored_one_by_one(name, tmp_path):
    # As transformers itself writes them.
    convert(mini_checkpoint(name, tmp_path / "original"), tmp_path / "native", block_length=UNSTATED.get(name))
    denoiser, tokenizer = load_model(tmp_path / "native")
    denoiser.backbone._weight_conversions = None  # as if it was not loaded from stacked experts
    denoiser.backbone.save_pretrained(tmp_path / "separate")
    tokenizer.save_pretrained(tmp_path / "separate")
    separate = load_file(tmp_path / "separate" / "model.safetensors")
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in separate
    assert torch.equal(logits(load_model(tmp_path / "separate")[0], IDS), logits(denoiser, IDS))
    convert(tmp_path / "separate", tmp_path / "stacked")
    convert(tmp_path / "separate", tmp_path / "back", to="original")
    for folder, same in (("stacked", "native"), ("back", "original")):
        one, two = (load_file(tmp_path / each / "model.safetensors") for each in (folder, same))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("lost", ["mlp.experts.3.up_proj.weight", "mlp.experts.7.down_proj.weight", "mlp.gate.weight"])
def test_a_release_that_lacks_a_part_of_an_expert_is_refused_with_its_name(lost, tmp_path):
    source = mini_checkpoint("sdar-moe", tmp_path / "original")
    weights = load_file(source / "model.safetensors")
    del weights[f"model.layers.1.{lost}"]
    save_file(weights, source / "model.safetensors")
    with raises(ModelError, "model.layers.1.mlp."):
        convert(source, tmp_path / "native")


def transposed(weights, expert):
    weights[f"{expert}.down_proj.weight"] = weights[f"{expert}.down_proj.weight"].T.contiguous()


def wider(weights, expert):
    weights[f"{expert}.down_proj.weight"] = torch.nn.functional.pad(weights[f"{expert}.down_proj.weight"], (0, 1))


def with_another_border(weights, expert):
    """Move 8 rows from up to gate, so that the two together have the right shape."""
    gate, up = weights[f"{expert}.gate_proj.weight"], weights[f"{expert}.up_proj.weight"]
    weights[f"{expert}.gate_proj.weight"] = torch.cat([gate, up[:8]])
    weights[f"{expert}.up_proj.weight"] = up[8:].clone()


@pytest.mark.parametrize(
    ("damage", "experts", "words"),
    [
        (transposed, [1], "experts.1.down_proj"),
        (wider, [1], "experts.1.down_proj"),
        (with_another_border, [1], "experts.1.gate_proj"),
        (with_another_border, range(8), "experts.0.up_proj"),
    ],
)
def test_a_release_whose_experts_have_other_shapes_is_refused(damage, experts, words, tmp_path):
    source = mini_checkpoint("sdar-moe", tmp_path / "original")
    weights = load_file(source / "model.safetensors")
    for expert in experts:
        damage(weights, f"model.layers.1.mlp.experts.{expert}")
    save_file(weights, source / "model.safetensors")
    with raises(ModelError, f"model.layers.1.mlp.{words}.weight has the shape"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


def test_a_cast_leaves_the_biases_of_routers_in_float32(tmp_path):
    source = mini_checkpoint("llada2", tmp_path / "original")
    convert(source, tmp_path / "native", dtype="bfloat16", block_length=4)
    weights = load_file(tmp_path / "native" / "model.safetensors")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert {key for key, value in weights.items() if value.dtype == torch.float32} == {bias}
    assert torch.equal(weights[bias], load_file(source / "model.safetensors")["model.layers.1.mlp.gate.expert_bias"])
    assert read(tmp_path / "native" / "config.json")["dtype"] == "bfloat16"
    denoiser, _ = load_model(tmp_path / "native")
    assert denoiser.backbone.dtype == torch.bfloat16
    assert denoiser.backbone.get_buffer(bias).dtype == torch.float32


def test_experts_in_several_files_are_stacked(tmp_path):
    source = mini_checkpoint("llada2", tmp_path / "original")
    convert(source, tmp_path / "native", block_length=4)
    convert(tmp_path / "native", tmp_path / "back", to="original", shard_bytes=30_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 5
    convert(tmp_path / "back", tmp_path / "again", block_length=4)
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("native", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


# Tensors: dtype, shards, tied heads


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tensors_are_cast_and_the_config_says_so(llada, dtype, tmp_path):
    convert(llada, tmp_path / "native", dtype=dtype)
    weights = load_file(tmp_path / "native" / "model.safetensors")
    wanted = getattr(torch, dtype)
    assert {value.dtype for value in weights.values()} == {wanted}
    original = load_file(llada / "model.safetensors")
    assert all(
        torch.equal(original[renamed(key, FAMILIES["llada"], back=True)].to(wanted), weights[key]) for key in weights
    )
    assert read(tmp_path / "native" / "config.json")["dtype"] == dtype
    assert next(load_model(tmp_path / "native")[0].parameters()).dtype == wanted


def test_shards_are_read_and_written_through_their_index(llada, tmp_path):
    convert(llada, tmp_path / "whole")
    said = []
    convert(llada, tmp_path / "sharded", shard_bytes=100_000, tell=said.append)
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 3
    assert [line.split()[1].rstrip(",") for line in said] == [shard.name for shard in shards]
    assert all(shard.stat().st_size < 110_000 for shard in shards)
    index = read(tmp_path / "sharded" / "model.safetensors.index.json")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    assert torch.equal(logits(load_model(tmp_path / "sharded")[0], IDS), logits(load_model(tmp_path / "whole")[0], IDS))
    convert(tmp_path / "sharded", tmp_path / "back", to="original")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == load_file(llada / "model.safetensors").keys()
    shards[0].unlink()
    with pytest.raises(ModelError, match=r"lacks model-00001-of-000\d\d\.safetensors, which its index names"):
        convert(tmp_path / "sharded", tmp_path / "lost", to="original")


@pytest.mark.parametrize("same", [True, False])
def test_a_stored_head_is_dropped_where_it_repeats_the_embedding_and_untied_where_not(same, tmp_path):
    source = mini_checkpoint("a2d-qwen3", tmp_path / "original")
    weights = load_file(source / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone() if same else weights["model.embed_tokens.weight"] * 2
    save_file(weights | {"lm_head.weight": head}, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "native")
    assert ("lm_head.weight" in load_file(tmp_path / "native" / "model.safetensors")) != same
    assert read(tmp_path / "native" / "config.json")["tie_word_embeddings"] == same
    denoiser, _ = load_model(tmp_path / "native")
    assert torch.equal(denoiser.backbone.lm_head.weight, head)


# Options


@pytest.mark.parametrize(
    ("name", "stated", "option", "expected"),
    [
        ("sdar", 8, None, 8),
        ("sdar", 8, 16, 16),
        ("sdar", None, 16, 16),
        ("SDAR-4B-Chat-b8", None, None, 8),
        ("SDAR-4B-Chat-b8-mine", None, None, 8),
        ("SDAR-4B-Chat-b8", 8, None, 8),
        ("SDAR-4B-Chat-b8", 4, 4, 4),
        ("SDAR-4B-Chat", None, None, 4),
    ],
)
def test_the_block_length_comes_from_the_option_the_config_or_the_name(name, stated, option, expected, tmp_path):
    source = mini_checkpoint("sdar", tmp_path / name)
    edit(source / "config.json", block_size=stated)
    convert(source, tmp_path / "native", block_length=option)
    assert read(tmp_path / "native" / "config.json")["block_length"] == expected


@pytest.mark.parametrize(
    ("family", "name", "stated", "words"),
    [
        ("sdar", "mine", None, ("neither its config.json nor its name", "--block-length")),
        ("sdar", "sdar-b8b16", None, ("neither its config.json nor its name",)),
        ("sdar", "SDAR-4B-Chat-b8", 4, ("blocks of 4", "blocks of 8", "--block-length")),
        ("a2d-qwen3", "my-bd3lm", None, ("block diffusion model", "--block-length")),
    ],
)
def test_a_block_length_that_nothing_states_is_asked_for(family, name, stated, words, tmp_path):
    source = mini_checkpoint(family, tmp_path / name)
    edit(source / "config.json", block_size=stated)
    with raises(ModelError, *words):
        convert(source, tmp_path / "native")


@pytest.mark.parametrize(("kind", "option", "expected"), [("mdlm", None, None), ("bd3lm", None, 32), ("bd3lm", 8, 8)])
def test_the_block_length_of_a_release_can_come_from_its_name(kind, option, expected, tmp_path):
    source = mini_checkpoint("a2d-qwen3", tmp_path / f"Qwen3-0.6B-diffusion-{kind}-v0.1")
    convert(source, tmp_path / "native", block_length=option)
    assert read(tmp_path / "native" / "config.json").get("block_length") == expected


def test_a_name_with_the_form_of_a_block_length_gives_a_bidirectional_model_no_blocks(tmp_path):
    convert(mini_checkpoint("llada", tmp_path / "llada-b8"), tmp_path / "native")
    assert "block_length" not in read(tmp_path / "native" / "config.json")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_commit_of_a_download_is_kept_in_the_folder_and_in_the_models_trained_from_it(tmp_path, monkeypatch):
    import huggingface_hub

    cached = tmp_path / "models--GSAI-ML--LLaDA-1.5" / "snapshots" / COMMIT
    mini_checkpoint("llada", cached)
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, revision, allow_patterns: asked.append(revision) or str(cached),
    )
    convert("GSAI-ML/LLaDA-1.5", tmp_path / "native", revision="v1")
    origin = {"source": "GSAI-ML/LLaDA-1.5", "revision": COMMIT}
    assert asked == ["v1"]
    assert read(tmp_path / "native" / "config.json")["converted_from"] == origin
    denoiser, tokenizer = load_model(tmp_path / "native")
    save_model(denoiser, tokenizer, tmp_path / "trained")
    assert environment(load_model(tmp_path / "trained")[0])["origin"] == origin
    convert(tmp_path / "trained", tmp_path / "cast", dtype="bfloat16")
    assert read(tmp_path / "cast" / "config.json")["converted_from"] == origin
    convert(tmp_path / "trained", tmp_path / "back", to="original")
    assert "converted_from" not in read(tmp_path / "back" / "config.json")


def test_the_commit_of_a_downloaded_folder_is_kept_and_a_folder_without_one_has_none(llada, tmp_path):
    convert(llada, tmp_path / "unknown")
    assert "converted_from" not in read(tmp_path / "unknown" / "config.json")
    assert environment(load_model(tmp_path / "unknown")[0])["origin"] is None
    record = llada / ".cache" / "huggingface" / "download" / "config.json.metadata"
    record.parent.mkdir(parents=True)
    # As `hf download --local-dir` writes it: commit, hash of the file, time.
    record.write_text(f"{COMMIT}\n{'1' * 40}\n1764400000.0\n")
    convert(llada, tmp_path / "known")
    assert read(tmp_path / "known" / "config.json")["converted_from"] == {"source": "llada", "revision": COMMIT}


def test_a_revision_of_a_folder_is_refused(llada, tmp_path):
    with raises(ModelError, "--revision main", "is a folder here"):
        convert(llada, tmp_path / "native", revision="main")


def test_files_of_another_size_than_the_index_says_are_refused(llada, tmp_path):
    convert(llada, tmp_path / "sharded", shard_bytes=100_000)
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    total = read(index)["metadata"]["total_size"]
    # One shard of a checkpoint in half precision has tensors of the right names and shapes.
    shard = sorted((tmp_path / "sharded").glob("*.safetensors"))[0]
    save_file({key: value.half() for key, value in load_file(shard).items()}, shard, {"format": "pt"})
    with raises(ModelError, f"have {total} bytes", "Download it again", "remove total_size"):
        convert(tmp_path / "sharded", tmp_path / "native")
    edit(index, metadata={})
    convert(tmp_path / "sharded", tmp_path / "native")


def test_the_real_config_of_an_8b_llada_gives_the_known_shape():
    real = {
        "d_model": 4096,
        "embedding_size": 126464,
        "mlp_hidden_size": 12288,
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "max_sequence_length": 4096,
        "mask_token_id": 126336,
        "vocab_size": 126464,
        "flash_attention": True,
    }
    raw = read(DATA / "llada-mini" / "config.json") | real
    config = native_config(raw, "llada", FAMILIES["llada"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 8_015_581_184
    assert (config.is_causal, config.rope_parameters["rope_theta"], config.mask_token_id) == (False, 500000.0, 126336)


# Tokenizers


@pytest.mark.slow
def test_dreams_real_tokenizer_works_natively(tmp_path):
    tokenizer = complete_tokenizer(DATA / "dream-tokenizer", FAMILIES["dream"], {"mask_token_id": 151666})
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)):
        assert (one.mask_token_id, one.eos_token_id, one.pad_token_id, one.padding_side) == (
            151666,
            151643,
            151643,
            "left",
        )
        chat = [{"role": "user", "content": "What is 12 + 30?"}]
        text = one.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert text.endswith("<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n")
        ids = one.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ids[0] == 151644
        assert one.decode(ids) == text
        # Qwen's own numbers: a space opens the word, and each digit is a token.
        assert one(" hello 12", add_special_tokens=False).input_ids == [23811, 220, 16, 17]
        assert one.decode([9707, 151666, 151643]) == "Hello<|mask|><|endoftext|>"


@pytest.mark.slow
def test_lladas_real_tokenizer_config_is_read_and_its_mask_declared(tmp_path):
    """The vocabulary is a substitute, but the special tokens have their real ids."""
    from tokenizers import AddedToken, Tokenizer, models

    for file in (DATA / "llada-tokenizer-config").iterdir():
        shutil.copy(file, tmp_path)
    added = read(tmp_path / "tokenizer_config.json")["added_tokens_decoder"]
    words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(126080)}, unk_token="word0"))
    words.add_special_tokens([AddedToken(added[key]["content"], normalized=False) for key in sorted(added, key=int)])
    words.save(str(tmp_path / "tokenizer.json"))
    family = FAMILIES["llada"]
    tokenizer = complete_tokenizer(tmp_path, family, {"mask_token_id": 126336})
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == tuple(family.token_ids.values())
    assert len(tokenizer) == 126349
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "word7"}], return_dict=False)
    header = [126346, 0, 126347]
    assert ids[:4] == [126080, *header]
    assert 126348 in ids


def test_lladas_real_tokenizer_config_without_its_vocabulary_is_a_clear_message(llada, tmp_path):
    (llada / "tokenizer.json").unlink()
    shutil.copy(DATA / "llada-tokenizer-config" / "tokenizer_config.json", llada)
    with pytest.raises(
        ModelError,
        match=r"neither tokenizer\.json nor vocab\.json.*GSAI-ML/LLaDA-8B-Base on the hub has it.*--tokenizer",
    ):
        convert(llada, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    other = mini_checkpoint("llada", tmp_path / "other")
    # A folder with only tokenizer files is enough.
    (other / "config.json").unlink()
    convert(llada, tmp_path / "native", tokenizer=other)
    _, tokenizer = load_model(tmp_path / "native")
    assert tokenizer.mask_token == "<|mdm_mask|>"


def test_lladas_real_template_is_carried(llada, tmp_path):
    convert(llada, tmp_path / "native")
    _, tokenizer = load_model(tmp_path / "native")
    assert tokenizer.chat_template == read(DATA / "llada-tokenizer-config" / "tokenizer_config.json")["chat_template"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": " 1+1 "}], tokenize=False)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert text == "<|startoftext|>" + header.format("user") + "1+1<|eot_id|>" + header.format("assistant")


def test_a_tokenizer_of_another_model_is_refused(llada, tmp_path):
    edit(llada / "config.json", mask_token_id=7)
    with raises(ModelError, "mask_token_id: 7, but the tokenizer", "has <|mdm_mask|> at 126"):
        convert(llada, tmp_path / "native")
    other = mini_checkpoint("a2d-qwen3", tmp_path / "other")
    with pytest.raises(ModelError, match=r"declares no eos_token|mask_token_id: 7"):
        convert(llada, tmp_path / "native", tokenizer=other)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    source = mini_checkpoint("a2d-qwen2", tmp_path / "original")
    content = read(source / "tokenizer.json")
    content["model"]["vocab"] |= {f"<more{i}>": 124 + i for i in range(9)}
    (source / "tokenizer.json").write_text(json.dumps(content))
    with raises(ModelError, "tokenizer has 133 tokens and the model only 128"):
        convert(source, tmp_path / "native")


# Faults: one message each, and no files left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_type": "sequential"}, r"has block_type: 'sequential', but LlamaForCausalLM .* only with 'llama'"),
        ({"alibi": True}, "has alibi: True"),
        ({"d_model": 32}, r"differs in shape: .* is \[128, 64\], not \[128, 32\]"),
        ({"n_layers": 3}, r"lacks model\.layers\.2"),
        ({"n_layers": 1}, r"has, beyond the native class, model\.layers\.1"),
        (
            {"architectures": ["FooLM"], "model_type": "foo"},
            "FooLM, which belongs to no known family. Known: llada, .*`unmask models`",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(llada, change, message, tmp_path):
    edit(llada / "config.json", **change)
    with pytest.raises(ModelError, match=message):
        convert(llada, tmp_path / "native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llada"]


@pytest.mark.parametrize("name", ["tiny", "a2d-qwen3"])
def test_conversion_refuses_an_autoregressive_model(name, tmp_path):
    convert(mini_checkpoint(name, tmp_path / "original"), tmp_path / "native")
    edit(tmp_path / "native" / "config.json", is_causal=None)
    with raises(ModelError, "is an autoregressive", "Conversion does not turn it into a diffusion model"):
        convert(tmp_path / "native", tmp_path / "again")


def test_a_tensor_that_the_layout_does_not_know_is_named(llada, tmp_path):
    weights = load_file(llada / "model.safetensors")
    save_file(weights | {"model.transformer.wpe.weight": torch.zeros(2)}, llada / "model.safetensors")
    with raises(ModelError, "model.transformer.wpe.weight is not a tensor of LLaDA's own layout"):
        convert(llada, tmp_path / "native")


def test_other_tensors_beside_the_model_are_ignored(llada, tmp_path):
    save_file({"output.weight": torch.ones(2)}, llada / "consolidated.safetensors")
    convert(llada, tmp_path / "native")
    denoiser, _ = load_model(tmp_path / "native")
    assert torch.equal(
        denoiser.backbone.lm_head.weight, load_file(llada / "model.safetensors")["model.transformer.ff_out.weight"]
    )


def test_an_index_that_names_no_files_is_refused(llada, tmp_path):
    (llada / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with raises(ModelError, "has no weight_map"):
        convert(llada, tmp_path / "native")


def test_frequencies_that_older_files_hold_are_left_out(llada, tmp_path):
    tensors = load_file(llada / "model.safetensors")
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    save_file(tensors | extra, llada / "model.safetensors")
    convert(llada, tmp_path / "native")
    assert len(load_file(tmp_path / "native" / "model.safetensors")) == len(tensors)


def test_pickled_weights_are_refused_with_a_remedy(llada, tmp_path):
    weights = load_file(llada / "model.safetensors")
    (llada / "model.safetensors").unlink()
    with raises(ModelError, "holds no weights"):
        convert(llada, tmp_path / "native")
    torch.save(weights, llada / "pytorch_model.bin")
    with raises(ModelError, "pickled weights (pytorch_model.bin)", "only safetensors", "save_pretrained"):
        convert(llada, tmp_path / "native")


def test_a_truncated_file_is_refused(llada, tmp_path):
    file = llada / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with raises(ModelError, "model.safetensors cannot be read as safetensors", snapshot=False):
        convert(llada, tmp_path / "native")


def test_a_destination_that_exists_is_not_overwritten(llada, tmp_path):
    (tmp_path / "native").mkdir()
    with raises(ModelError, "native exists already"):
        convert(llada, tmp_path / "native")


def test_a_full_disk_is_noticed_before_and_while_writing(llada, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
        with raises(ModelError, "writes 0.00 GB, but", "has only 0.00 GB free. Free some space"):
            convert(llada, tmp_path / "native")

    # Imitates a disk that fills up during writing: no file may grow beyond this.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with raises(ModelError, "native could not be written:", "File too large", "Nothing was left behind"):
            convert(llada, tmp_path / "native")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llada"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, 'unknown dtype "int8". Available: float32, float16, bfloat16'),
        ({"to": "original"}, "is already in the layout of LLaDA"),
        ({"to": "dream"}, "is a LLaDA, which cannot be written as Dream"),
        ({"to": "gguf"}, '--to "gguf" is neither native nor original nor a family. Families: llada, '),
    ],
)
def test_options_that_do_not_fit_are_refused(llada, options, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        convert(llada, tmp_path / "native", **options)


def test_a_missing_path_and_an_unreachable_hub_have_different_messages(tmp_path, monkeypatch):
    import huggingface_hub

    asked, said = {}, []

    def offline(repo, revision, allow_patterns):
        asked[repo] = allow_patterns
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with raises(ModelError, "there is no folder"):
        convert(tmp_path / "a" / "b", tmp_path / "native")
    with raises(
        ModelError,
        "GSAI-ML/LLaDA-1.5 is not a folder here",
        "no network",
        "hf download GSAI-ML/LLaDA-1.5",
        snapshot=False,
    ):
        convert("GSAI-ML/LLaDA-1.5", tmp_path / "native", tell=said.append)
    assert said == ["downloading GSAI-ML/LLaDA-1.5 from the hub, unless it is in the cache"]
    assert not any("py" in pattern or "bin" in pattern for pattern in asked["GSAI-ML/LLaDA-1.5"])
