"""Tests of loading and saving in transformers' folder format, and of one message for each fault."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedModel

from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from unmask.core.errors import ModelError
from unmask.models import Denoiser, TinyConfig, char_tokenizer, convert, load_model, save_model, tiny_denoiser

ALPHABET = "01234="


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Return a copy of a valid folder for a test to damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(path, **changes):
    """Change a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@torch.no_grad()
def test_a_saved_model_loads_unchanged(lively, tmp_path):
    save_model(lively, char_tokenizer(ALPHABET), tmp_path / "model")
    again, tokenizer = load_model(tmp_path / "model")
    ids = torch.randint(0, 9, (3, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).expand(3, -1)
    logits = lively(ids, None, positions)
    assert logits.std() > 0.3
    assert torch.equal(again(ids, None, positions), logits)
    assert not again.training
    assert (again.mask_id, again.eos_id, again.pad_id) == (1, 2, 0)
    assert tokenizer.padding_side == "left"
    assert tokenizer("12=").input_ids == char_tokenizer(ALPHABET)("12=").input_ids


@torch.no_grad()
def test_a_second_save_and_load_changes_nothing_and_leaves_no_pickle(tiny_model, tmp_path):
    denoiser, tokenizer = load_model(tiny_model)
    save_model(denoiser, tokenizer, tmp_path / "again")
    assert {p.suffix for p in (tmp_path / "again").iterdir()} == {".json", ".safetensors"}
    one, two = (load_file(p / "model.safetensors") for p in (tiny_model, tmp_path / "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@torch.no_grad()
def test_a_tied_head_is_written_once_from_weights_that_are_copies(tmp_path):
    convert(mini_checkpoint("a2d-qwen3", tmp_path / "original"), tmp_path / "native")
    denoiser, tokenizer = load_model(tmp_path / "native")
    copies = {f"backbone.{key}": value.clone() for key, value in denoiser.backbone.state_dict().items()}
    assert "backbone.lm_head.weight" in copies
    save_model(denoiser, tokenizer, tmp_path / "saved", copies)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == load_file(tmp_path / "native" / "model.safetensors").keys()
    again, _ = load_model(tmp_path / "saved")
    for key, value in denoiser.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_transformers_alone_reads_the_folder(tiny_model):
    denoiser, tokenizer = load_model(tiny_model)
    native = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = AutoTokenizer.from_pretrained(tiny_model)("0123=", return_tensors="pt").input_ids
    torch.testing.assert_close(
        native(input_ids=ids).logits, denoiser(ids, None, torch.arange(5).view(1, -1)), rtol=0, atol=1e-6
    )
    assert tokenizer.decode(ids[0]) == "0123="


def test_logit_shift_survives_the_folder(folder):
    edit(folder / "config.json", logit_shift=True)
    denoiser, tokenizer = load_model(folder)
    assert denoiser.logit_shift
    save_model(denoiser, tokenizer, folder / "again")
    assert load_model(folder / "again")[0].logit_shift


def test_a_folder_without_a_config_is_refused(tmp_path):
    with raises(ModelError, "is not a model, because it has no config.json"):
        load_model(tmp_path)


def test_a_missing_path_is_refused(tmp_path):
    with raises(ModelError, "there is no folder", "/nothing/here. Set model to a folder or a hub id"):
        load_model(tmp_path / "nothing" / "here")


def test_a_config_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with raises(ModelError, "no model at", snapshot=False):
        load_model(folder)


@pytest.mark.parametrize("is_causal", [True, None])
def test_a_causal_model_is_refused_by_its_config(folder, is_causal):
    edit(folder / "config.json", is_causal=is_causal)
    with raises(ModelError, "does not say is_causal: false"):
        load_model(folder)


def test_a_causal_masked_lm_is_refused_by_its_outputs(tmp_path):
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, is_decoder=True
    )
    tokenizer = char_tokenizer(ALPHABET)
    save_model(Denoiser(BertForMaskedLM(config), 1, 2, 0), tokenizer, tmp_path)
    with raises(ModelError, "BertForMaskedLM is causal"):
        load_model(tmp_path)


@pytest.mark.parametrize("architectures", [["FooForCausalLM"], None])
def test_an_unknown_architecture_is_refused_with_a_list_of_the_known_ones(folder, architectures):
    edit(folder / "config.json", architectures=architectures)
    with raises(ModelError, "not a known class. Known:", "LlamaForCausalLM", "BertForMaskedLM"):
        load_model(folder)


@pytest.mark.parametrize("model_type", ["gpt2", "brand_new"])
def test_code_in_the_folder_is_never_run_or_offered(folder, model_type, monkeypatch, capfd):
    (folder / "theirs.py").write_text("raise SystemExit('their code ran')")
    edit(
        folder / "config.json",
        model_type=model_type,
        auto_map={"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with raises(ModelError, "refers to its own code", "unmask runs no remote code"):
        load_model(folder)
    assert "Do you wish to run" not in "".join(capfd.readouterr())


def test_code_of_the_tokenizers_own_is_not_run(folder, monkeypatch):
    (folder / "theirs.py").write_text("raise SystemExit('their code ran')")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["theirs.T", None]}, tokenizer_class="T")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    _, tokenizer = load_model(folder)
    assert tokenizer("12").input_ids == char_tokenizer(ALPHABET)("12").input_ids
    assert not any("theirs" in name for name in sys.modules)


def test_missing_weights_are_refused_and_named(folder):
    file = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if "ln_f" not in name}
    save_file(weights, file, {"format": "pt"})
    with raises(ModelError, "lacks weights", "ln_f.bias, transformer.ln_f.weight"):
        load_model(folder)


def test_weights_of_another_shape_are_refused_and_named(folder):
    edit(folder / "config.json", vocab_size=12)
    with raises(ModelError, "another shape: lm_head.weight, transformer.wte.weight"):
        load_model(folder)


def test_a_truncated_file_of_weights_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with raises(ModelError, "could not be loaded", snapshot=False):
        load_model(folder)


def test_pickled_weights_are_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with raises(ModelError, "pickled weights", "reads only"):
        load_model(folder)


@pytest.mark.parametrize("token", ["mask_token", "eos_token"])
def test_a_tokenizer_without_a_mask_or_an_end_is_refused(folder, token):
    edit(folder / "tokenizer_config.json", **{token: None})
    with pytest.raises(ModelError, match=f"has no {token}. Set it in its tokenizer_config.json"):
        load_model(folder)


def test_a_tokenizer_without_padding_pads_with_the_end(folder):
    edit(folder / "tokenizer_config.json", pad_token=None)
    denoiser, _ = load_model(folder)
    assert denoiser.pad_id == denoiser.eos_id == 2


def test_a_tokenizer_of_another_model_is_refused(folder):
    char_tokenizer("0123456789abcdef").save_pretrained(folder)
    with raises(ModelError, "has 19 tokens and the model only 9"):
        load_model(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with raises(ModelError, "tokenizer", snapshot=False):
        load_model(folder)


def test_loading_uses_the_saved_weights(tmp_path):
    tokenizer = char_tokenizer(ALPHABET)
    denoiser = tiny_denoiser(TinyConfig(num_layers=1, width=8, num_heads=2), tokenizer, seed=5)
    save_model(denoiser, tokenizer, tmp_path)
    loaded = load_model(tmp_path)[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("config", "word"),
    [("{}", "--base"), ('{"base_model_name_or_path": "ADAPTER"}', "names itself")],
)
def test_an_adapter_without_a_base_model_is_refused(tmp_path, config, word):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(config.replace("ADAPTER", str(adapter)))
    with raises(ModelError, "adapter", word):
        load_model(adapter)


def test_models_that_load_in_several_threads_leave_transformers_as_it_was(tiny_model):
    tie_weights = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_model, [tiny_model] * 8))
    assert PreTrainedModel.tie_weights is tie_weights
