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


def _fast_dllm(folder: Path) -> None:
    config = QWEN | {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "model_type": "Fast_dLLM_Qwen",
        "auto_map": {
            "AutoConfig": "configuration.Fast_dLLM_QwenConfig",
            "AutoModel": "modeling.Fast_dLLM_QwenForCausalLM",
            "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
        },
        "bd_size": 4,
        "eos_token_id": 122,
        "tie_word_embeddings": True,
    }
    shapes = _dense_shapes(config, head_dim=16) | {"model.embed_tokens.weight": (VOCAB_SIZE, 64)}
    for i in range(2):
        shapes |= {f"model.layers.{i}.self_attn.{x}_proj.bias": (32 * (1 + (x == "q")),) for x in "qkv"}
    _write_release(folder, config, shapes)
    _qwen_tokenizer(folder, mask="|<MASK>|", declared=False)


def _illada(folder: Path) -> None:
    config = {
        "architectures": ["ILLaDAForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_illada.ILLaDAConfig",
            "AutoModel": "modeling_illada.ILLaDAForCausalLM",
            "AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM",
        },
        "bos_token_id": 120,
        "eos_token_id": 122,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.01,
        "intermediate_size": 160,
        "layer_norm_eps": None,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "illada",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 121,
        "resid_pdrop": 0.1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": VOCAB_SIZE,
    }
    _write_release(folder, config, _dense_shapes(config, head_dim=16))
    _byte_tokenizer(["<bos>", "<pad>", "<eos>", "<unk>", "<sep>", "<[MASK]>"]).save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "pad_token": "<pad>", "eos_token": "<eos>", "chat_template": CHATML}
    _write(folder / "tokenizer_config.json", names | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _llada2(folder: Path) -> None:
    config: dict[str, Any] = {
        "architectures": ["LLaDA2MoeModelLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
        "embedding_dropout": 0.0,
        "eos_token_id": 121,
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "model_type": "llada2_moe",
        "moe_intermediate_size": 24,
        "moe_router_enable_expert_bias": True,
        "n_group": 4,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_shared_experts": 1,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "pad_token_id": 121,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 600000,
        "routed_scaling_factor": 2.5,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 2,
        "torch_dtype": "bfloat16",
        "use_bias": False,
        "use_cache": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    }
    d, shapes = 64, {"model.word_embeddings.weight": (VOCAB_SIZE, 64), "model.norm.weight": (64,)}
    shapes["lm_head.weight"] = (VOCAB_SIZE, d)
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}attention.{name}_layernorm.weight": (32,) for name in ("query", "key")}
        shapes |= {f"{layer}attention.query_key_value.weight": (8 * 32, d), f"{layer}attention.dense.weight": (d, 128)}
    shapes |= _mlp_shapes("model.layers.0.mlp.", d, 96)
    mixture = "model.layers.1.mlp."
    shapes |= {f"{mixture}gate.weight": (8, d), f"{mixture}gate.expert_bias": (8,)}
    shapes |= _mlp_shapes(f"{mixture}shared_experts.", d, 24)
    for expert in range(8):
        shapes |= _mlp_shapes(f"{mixture}experts.{expert}.", d, 24)
    _write_release(folder, config, shapes)
    _bailing_tokenizer(folder)


def _sdar_moe(folder: Path) -> None:
    config = QWEN | {
        "architectures": ["SDARMoeForCausalLM"],
        "attention_bias": False,
        "auto_map": {
            "AutoConfig": "configuration_sdar_moe.SDARMoeConfig",
            "AutoModel": "modeling_sdar_moe.SDARMoeModel",
            "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM",
        },
        "block_size": 4,
        "decoder_sparse_step": 1,
        "head_dim": 32,
        "mask_token_id": 123,
        "mlp_only_layers": [],
        "model_type": "sdar_moe",
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    }
    _write_release(folder, config, _mixture_shapes(config, head_dim=32, width=24, experts=8))
    _qwen_tokenizer(folder, mask="<|MASK|>", declared=False)


def _llada_moe(folder: Path) -> None:
    config: dict[str, Any] = {
        "architectures": ["LLaDAMoEModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_lladamoe.LLaDAMoEConfig",
            "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
            "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM",
        },
        "clip_qkv": None,
        "dense_intermediate_size": 96,
        "eos_token_id": 121,
        "expert_intermediate_size": 24,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "max_position_embeddings": 256,
        "model_type": "llada",
        "moe_layer_freq": [1, 1],
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_attention_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "pad_token_id": 121,
        "partial_rotary_factor": 1.0,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "router_aux_loss_coef": 0.01,
        "router_num_group": None,
        "router_topk_group": None,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": VOCAB_SIZE,
    }
    _write_release(folder, config, _mixture_shapes(config, head_dim=16, width=24, experts=8))
    _bailing_tokenizer(folder)


def _mlp_shapes(prefix: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    sizes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    return {f"{prefix}{name}.weight": size for name, size in sizes.items()}


def _attention_shapes(config: dict[str, Any], head_dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes outside the MLPs, by the names of Llama."""
    d, heads, keys = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB_SIZE, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB_SIZE, d)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        for name, count in (("q", heads), ("k", keys), ("v", keys)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (count * head_dim, d)
        shapes[f"{layer}self_attn.o_proj.weight"] = (d, heads * head_dim)
    return shapes


def _dense_shapes(config: dict[str, Any], head_dim: int) -> dict[str, tuple[int, ...]]:
    shapes = _attention_shapes(config, head_dim)
    for i in range(config["num_hidden_layers"]):
        shapes |= _mlp_shapes(f"model.layers.{i}.mlp.", config["hidden_size"], config["intermediate_size"])
    return shapes


def _mixture_shapes(config: dict[str, Any], head_dim: int, width: int, experts: int) -> dict[str, tuple[int, ...]]:
    shapes, d = _attention_shapes(config, head_dim), config["hidden_size"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{x}_norm.weight": (head_dim,) for x in "qk"}
        shapes[f"{layer}mlp.gate.weight"] = (experts, d)
        for expert in range(experts):
            shapes |= _mlp_shapes(f"{layer}mlp.experts.{expert}.", d, width)
    return shapes


def _write_release(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a config and random tensors, which are so large that logits depend on everything."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        is_norm, is_bias = "norm" in name, name.endswith("bias")
        tensors[name] = 1 + 0.1 * values if is_norm else 0.1 * values if is_bias else 0.15 * values
    _write(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


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
    "illada": _illada,
    "dream": _dream,
    "diffucoder": _diffucoder,
    "dream-coder": _dream,
    "a2d-qwen3": lambda folder: _a2d(folder, "qwen3"),
    "a2d-qwen2": lambda folder: _a2d(folder, "qwen2"),
    "modernbert-chat": _modernbert,
    "sdar": _sdar,
    "fast-dllm-v2": _fast_dllm,
    "llada2": _llada2,
    "sdar-moe": _sdar_moe,
    "llada-moe": _llada_moe,
    "tiny": _tiny,
}
"""How each family's mini is written."""

UNSTATED: dict[str, int] = {"llada2": 4}
"""Block lengths that the configs of a family's releases do not state, so that the conversion of a mini is given them."""


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


def _bailing_tokenizer(folder: Path) -> None:
    """The tokenizer files of LLaDA2 and LLaDA-MoE, which do not declare their mask token."""
    special = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mask|>", "<|role_end|>"]
    _byte_tokenizer(special).save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<role>{{ 'HUMAN' if message['role'] == 'user' else message['role'] | upper }}</role>"
        "{{ message['content'] }}<|role_end|>{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
    )
    config = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config |= {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(folder / "tokenizer_config.json", config)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
