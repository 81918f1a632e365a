"""Mini checkpoints: every family at 0.1M parameters, in the layout in which its own release is published.

Config keys, tensor names, tokenizer files and the `auto_map` to code are as on the hub; the code itself is replaced by a line
that ends the process, so that a test notices if anything runs it. Tokens are the 96 printable characters and the family's
special ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.paths import DATA
from unmask.models import TinyConfig, char_tokenizer, save_model, tiny_denoiser

VOCAB_SIZE = 128
CHARACTERS = [*map(chr, range(32, 127)), "\n"]
POISON = "raise SystemExit('remote code ran')\n"
"""Stands in every file of code that a mini's config points to."""

FIRST_ADDED = 120
"""Id of the first special token; ids between the characters and it are taken by tokens that no text has."""


def mini_checkpoint(family: str, folder: Path) -> Path:
    """Write a tiny random checkpoint of a family into `folder`, in its original layout, and return the folder.

    Args:
        family: a key of `MINIS`.
        folder: where to; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    MINIS[family](folder)
    for file in {name.split(".")[0] for name in _code_names(folder)}:
        (folder / f"{file}.py").write_text(POISON)
    return folder


def _code_names(folder: Path) -> list[str]:
    """What `auto_map` of the config and of the tokenizer's config name."""
    names = []
    for file in ("config.json", "tokenizer_config.json"):
        for value in _read(folder / file).get("auto_map", {}).values():
            names += [value] if isinstance(value, str) else [v for v in value if v]
    return names


def _llada(folder: Path) -> None:
    shutil.copy(DATA / "llada-mini" / "model.safetensors", folder)
    _write(folder / "config.json", _read(DATA / "llada-mini" / "config.json") | {"max_sequence_length": 256})
    real = _read(DATA / "llada-tokenizer-config" / "tokenizer_config.json")
    special = ["<|startoftext|>", "[CLS]", "[gMASK]", "<|start_header_id|>", "<|end_header_id|>", "<|endoftext|>"]
    special += ["<|mdm_mask|>", "<|eot_id|>"]
    tokenizer = _byte_tokenizer(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    keep = ("add_bos_token", "bos_token", "chat_template", "clean_up_tokenization_spaces", "cls_token", "eos_token")
    keep += ("pad_token", "tokenizer_class", "model_max_length", "trust_remote_code", "gmask_token", "fast_tokenizer")
    _write(folder / "tokenizer_config.json", {key: real[key] for key in keep})
    shutil.copy(DATA / "llada-tokenizer-config" / "special_tokens_map.json", folder)
    names = _read(folder / "special_tokens_map.json")
    # The real ones are in the real vocabulary; here they would be appended beyond the embedding.
    _write(folder / "special_tokens_map.json", {k: v for k, v in names.items() if k != "additional_special_tokens"})


def _dream(folder: Path) -> None:
    shutil.copy(DATA / "dream-mini" / "model.safetensors", folder)
    _write(folder / "config.json", _read(DATA / "dream-mini" / "config.json") | {"max_position_embeddings": 256})
    special = ["<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|endoftext|>", "<|mask|>"]
    first = 125 - special.index("<|endoftext|>")
    _write(folder / "vocab.json", _vocabulary(first))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {first + i: token for i, token in enumerate(special)}
    config = _read(DATA / "dream-tokenizer" / "tokenizer_config.json")
    config["added_tokens_decoder"] = {
        str(i): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, t in added.items()
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "added_tokens.json", {t: i for i, t in added.items()})
    shutil.copy(DATA / "dream-tokenizer" / "special_tokens_map.json", folder)


def _diffucoder(folder: Path) -> None:
    """Dream's layout, with the chat template in a file of its own."""
    _dream(folder)
    config = _read(folder / "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text(config.pop("chat_template"))
    _write(folder / "tokenizer_config.json", config)


QWEN: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 120,
    "eos_token_id": 122,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB_SIZE,
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _a2d(folder: Path, base: str) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    # Tied, as both releases are: the file has no head.
    config = QWEN | {"tie_word_embeddings": True}
    if base == "qwen3":
        config |= {"head_dim": 16, "attention_bias": False}
        model = _random(lambda: Qwen3ForCausalLM(Qwen3Config(**config)))
    else:
        model = _random(lambda: Qwen2ForCausalLM(Qwen2Config(**config)))
    name = base.capitalize()
    config |= {
        "architectures": [f"A2D{name}LMHeadModel"],
        "model_type": f"a2d-{base}",
        "auto_map": {
            "AutoConfig": f"modeling_{base}.A2D{name}Config",
            "AutoModel": f"modeling_{base}.A2D{name}LMHeadModel",
            "AutoModelForMaskedLM": f"modeling_{base}.A2D{name}LMHeadModel",
        },
    }
    _write(folder / "config.json", config)
    weights = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _qwen_tokenizer(folder, mask="<|mask|>")


def _sdar(folder: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = QWEN | {"tie_word_embeddings": False, "head_dim": 16, "attention_bias": False}
    model = _random(lambda: Qwen3ForCausalLM(Qwen3Config(**config)))
    config |= {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "auto_map": {
            "AutoConfig": "configuration_sdar.SDARConfig",
            "AutoModel": "modeling_sdar.SDARModel",
            "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
        },
        "attn_implementation": "flex_attention",
        "block_size": 4,
        "debug": False,
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "mask_token_id": 123,
        "micro_forward": False,
        "skip_checkpoint": False,
        "use_deepep": False,
    }
    _write(folder / "config.json", config)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    _qwen_tokenizer(folder, mask="<|MASK|>", declared=False)


def _modernbert(folder: Path) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    ids = {token: FIRST_ADDED + i for i, token in enumerate(special)}
    config: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        "pad_token_id": ids["[PAD]"],
        "bos_token_id": ids["[CLS]"],
        "eos_token_id": ids["[SEP]"],
        "cls_token_id": ids["[CLS]"],
        "sep_token_id": ids["[SEP]"],
    }
    model = _random(lambda: ModernBertForMaskedLM(ModernBertConfig(**config)))
    model.save_pretrained(folder)
    _byte_tokenizer(special).save(str(folder / "tokenizer.json"))
    names = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    _write(
        folder / "tokenizer_config.json",
        names | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256},
    )


def _tiny(folder: Path) -> None:
    tokenizer = char_tokenizer("".join(CHARACTERS))
    shape = TinyConfig(num_layers=2, width=32, num_heads=2, max_length=256)
    save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, folder)


MINIS = {
    "llada": _llada,
    "llada-1.5": _llada,
    "dream": _dream,
    "diffucoder": _diffucoder,
    "a2d-qwen3": lambda folder: _a2d(folder, "qwen3"),
    "a2d-qwen2": lambda folder: _a2d(folder, "qwen2"),
    "modernbert-chat": _modernbert,
    "sdar": _sdar,
    "tiny": _tiny,
}
"""How each family's mini is written."""


def _random(build: Any) -> Any:
    """A model with weights so large that its answers depend on everything it sees; the same in every process."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.15 * torch.randn_like(parameter))
    return model


def _vocabulary(size: int) -> dict[str, int]:
    """The characters as byte-level BPE writes them, and fillers up to `size`."""
    written = {" ": "Ġ", "\n": "Ċ"}
    tokens = [written.get(c, c) for c in CHARACTERS]
    tokens += [f"<reserved{i}>" for i in range(len(tokens), size)]
    return {token: i for i, token in enumerate(tokens)}


def _byte_tokenizer(special: list[str]) -> Any:
    """A byte-level BPE tokenizer of single characters, the special tokens from id `FIRST_ADDED` on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(FIRST_ADDED), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _qwen_tokenizer(folder: Path, mask: str, declared: bool = True) -> None:
    """Qwen's tokenizer files; `declared`: the mask token is named as such, not only in the vocabulary."""
    _byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", mask]).save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": None,
        "chat_template": CHATML,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 131072,
    }
    _write(folder / "tokenizer_config.json", config | ({"mask_token": mask} if declared else {}))


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
