"""Tests of the table of families: complete, consistent with the native classes, and shown by the
command line."""

from __future__ import annotations

import re

import pytest
import torch
import transformers

from tests.helpers.minis import UNSTATED, mini_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.runs import unmask
from unmask.core.errors import ModelError
from unmask.models import convert
from unmask.models.families import FAMILIES, UNSUPPORTED, family_of
from unmask.models.layout import native_config, original_config, renamed
from unmask.models.native import NATIVE_CLASSES
from unmask.models.source import read_json

GUIDE = (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_lora_targets_are_the_linear_layers_of_the_blocks(name, tmp_path):
    convert(mini_checkpoint(name, tmp_path / "original"), tmp_path / "native", block_length=UNSTATED.get(name))
    family = FAMILIES[name]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "native")
    with torch.device("meta"):
        model = getattr(transformers, family.native_class)(config)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"}
    hit = {n for n in linear if any(n.endswith(f".{target}") for target in family.lora_targets)}
    of_mixture = NATIVE_CLASSES[family.native_class].experts is not None
    assert hit == {n for n in linear if re.search(r"\.\d+\.self_attn\." if of_mixture else r"\.\d+\.", n)}
    assert all(any(n.endswith(f".{target}") for n in hit) for target in family.lora_targets)


@pytest.mark.parametrize("name", NATIVE_CLASSES)
def test_every_native_class_is_transformers_own(name):
    assert getattr(transformers, name).__module__.startswith("transformers.models.")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.keys])
def test_tensor_names_convert_both_ways(name):
    family = FAMILIES[name]
    originals, natives = zip(*family.keys, strict=True)
    assert len(set(originals)) == len(set(natives)) == len(family.keys)
    for original, native in family.keys:
        original, native = original.replace("{i}", "17"), native.replace("{i}", "17")
        assert renamed(original, family) == native
        assert renamed(native, family, back=True) == original


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_family_is_recognised_by_its_own_and_by_its_native_config(name, tmp_path):
    convert(mini_checkpoint(name, tmp_path / "original"), tmp_path / "native", block_length=UNSTATED.get(name))
    # Three families share the layout of another one, and are recognised as that one.
    same = {"llada-1.5": "llada", "diffucoder": "dream", "dream-coder": "dream"}.get(name, name)
    native = read_json(tmp_path / "native" / "config.json")
    assert family_of(read_json(tmp_path / "original" / "config.json")) == same
    assert family_of(native) == same
    # A native iLLaDA that does not say so is a native LLaDA.
    unnamed = {key: value for key, value in native.items() if key != "diffusion_family"}
    assert family_of(unnamed) == {"illada": "llada"}.get(same, same)


def test_a_shift_and_blocks_are_not_confused_with_another_family():
    qwen = {"architectures": ["Qwen3ForCausalLM"], "is_causal": False}
    assert family_of(qwen) == "a2d-qwen3"
    assert family_of(qwen | {"block_length": 4}) == "sdar"
    assert family_of(qwen | {"logit_shift": True}) is None
    mixture = {"architectures": ["Qwen3MoeForCausalLM"], "is_causal": False}
    assert family_of(mixture) == "llada-moe"
    assert family_of(mixture | {"block_length": 4}) == "sdar-moe"
    # Releases of LLaDA-MoE state the model type of LLaDA.
    assert family_of({"architectures": ["LLaDAMoEModel"], "model_type": "llada"}) == "llada-moe"
    assert family_of({}) is None


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}])
def test_rotary_settings_convert_both_ways(scaling, tmp_path):
    source = mini_checkpoint("dream", tmp_path / "original")
    raw = read_json(source / "config.json") | {"rope_theta": 12345.0, "rope_scaling": scaling}
    config = native_config(raw, "dream", FAMILIES["dream"])
    assert config.rope_parameters["rope_theta"] == 12345.0
    assert config.rope_parameters.get("factor") == (scaling or {}).get("factor")
    back = original_config(config.to_diff_dict(), FAMILIES["dream"])
    assert (back["rope_theta"], back["rope_scaling"]) == (12345.0, scaling)


YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 12345.0}


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        # The forms of transformers 5, of late versions of 4, and of early ones.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}, "default"),
        ({"rope_parameters": YARN | {"rope_type": "yarn"}}, "yarn"),
        ({"rope_theta": 12345.0, "rope_scaling": YARN | {"rope_type": "yarn"}}, "yarn"),
        ({"rope_theta": 12345.0, "rope_scaling": YARN | {"type": "yarn"}}, "yarn"),
    ],
)
@pytest.mark.parametrize("name", ["dream", "a2d-qwen3", "sdar"])
def test_rotary_settings_are_read_in_every_form(name, written, kind, tmp_path):
    raw = read_json(mini_checkpoint(name, tmp_path / "original") / "config.json")
    raw = {key: value for key, value in raw.items() if key not in ("rope_theta", "rope_scaling")} | written
    found = native_config(raw, name, FAMILIES[name]).rope_parameters
    assert (found["rope_type"], found["rope_theta"]) == (kind, 12345.0)
    assert found.get("factor") == (4.0 if kind == "yarn" else None)
    assert "type" not in found


@pytest.mark.parametrize("name", ["dream", "a2d-qwen2", "a2d-qwen3", "sdar"])
def test_an_unused_attention_window_is_ignored_and_a_used_one_is_refused(name, tmp_path):
    raw = read_json(mini_checkpoint(name, tmp_path / "original") / "config.json")
    full = {"layer_types": ["full_attention", "full_attention"]}
    config = native_config(raw | {"sliding_window": 4096} | full, name, FAMILIES[name])
    assert config.sliding_window is None
    assert config.layer_types == full["layer_types"]
    for change in ({"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]}):
        with pytest.raises(ModelError, match=f"has {next(iter(change))}.*cannot be converted"):
            native_config(raw | change, name, FAMILIES[name])


@pytest.mark.parametrize(("rows", "size"), [(192, 192), (None, 128)])
def test_lladas_embedding_may_have_more_rows_than_there_are_words(rows, size, tmp_path):
    raw = read_json(mini_checkpoint("llada", tmp_path / "original") / "config.json")
    assert native_config(raw | {"embedding_size": rows}, "llada", FAMILIES["llada"]).vocab_size == size


def test_the_list_names_every_family_and_checkpoint(capsys):
    assert unmask("models") == 0
    shown = capsys.readouterr().out
    for name, family in FAMILIES.items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(family.title)}.*{family.native_class}", shown, re.MULTILINE)
        for checkpoint in family.checkpoints:
            line = next(line for line in shown.splitlines() if line.startswith(f"{checkpoint.hub_id} "))
            assert line.split()[1] == name
            assert line.rstrip().endswith(checkpoint.licence)


def test_the_page_of_a_family_shows_its_facts(capsys):
    assert unmask("models", "dream") == 0
    shown = capsys.readouterr().out
    for part in (
        "mask 151666",
        "shifted",
        "DreamModel, model_type Dream",
        "down_proj",
        "Dream-org/Dream-v0-Instruct-7B",
    ):
        assert part in shown
    assert unmask("models", "drem") == 2
    assert 'unknown family "drem". Did you mean "dream"?' in capsys.readouterr().err


def test_the_guide_has_every_family_with_its_class_and_check():
    for name, family in FAMILIES.items():
        row = next(line for line in GUIDE.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{family.native_class}`" in row
        assert ("**next**" in row) == family.logit_shift
        assert row.replace("`", "").endswith(f"| {family.checked} |")
    assert all(name.removesuffix("ForBlockDiffusion") in GUIDE for name in UNSUPPORTED)


def test_the_command_converts_and_reports_the_result(tmp_path, capsys):
    source = mini_checkpoint("llada", tmp_path / "a folder")
    assert unmask("convert", source, tmp_path / "native", "--dtype", "bfloat16") == 0
    assert f"LLaDA as LlamaForCausalLM: {tmp_path / 'native'}" in capsys.readouterr().out
    assert unmask("convert", tmp_path / "native", tmp_path / "back", "--to", "original") == 0
    assert "copy the .py files of the release into this folder" in capsys.readouterr().out
    assert unmask("eval", source, "--task", "sudoku") == 2
    said = capsys.readouterr().err
    assert f"unmask convert '{source}' 'a folder-native'" in said
    assert "Traceback" not in said
