"""The table of model families: the layout of each release, and the native transformers class that
computes the same function.

The table is data with one entry per family. `unmask convert` uses an entry in both directions, and
`unmask models` prints it. Facts about releases are those of their hub pages; unknown facts are
marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unmask.models.family import Checkpoint, Fact, Family

_SAME = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
_QWEN2_FIELDS = {key: key for key in _SAME}
_QWEN3_FIELDS = _QWEN2_FIELDS | {"head_dim": "head_dim", "attention_bias": "attention_bias"}
_FULL_ATTENTION = {"use_sliding_window": False}
_NO_WINDOW = {"sliding_window": None}
"""Config value without a sliding window. It is not in `fixed`, because released configs state a
width that they do not use."""

_BLOCK = "model.transformer.blocks.{i}."
_LAYER = "model.layers.{i}."
_LLADA = Family(
    title="LLaDA",
    native_class="LlamaForCausalLM",
    native_type="llama",
    paper="arXiv:2502.09992",
    checkpoints=(
        Checkpoint("GSAI-ML/LLaDA-8B-Base", "8.02B", "MIT (its repository)"),
        Checkpoint("GSAI-ML/LLaDA-8B-Instruct", "8.02B", "MIT"),
    ),
    checked="logits of its own code",
    architecture="LLaDAModelLM",
    model_type="llada",
    fields={
        "attention_dropout": "attention_dropout",
        "d_model": "hidden_size",
        "eos_token_id": "eos_token_id",
        "init_std": "initializer_range",
        "mask_token_id": "mask_token_id",
        "max_sequence_length": "max_position_embeddings",
        "mlp_hidden_size": "intermediate_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "pad_token_id": "pad_token_id",
        "rms_norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
        "use_cache": "use_cache",
        "vocab_size": "vocab_size",
        # This key follows vocab_size and overrides it: the embedding may have more rows than there
        # are words.
        "embedding_size": "vocab_size",
        "weight_tying": "tie_word_embeddings",
    },
    fixed={
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_type": "llama",
        "embedding_dropout": 0.0,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "residual_dropout": 0.0,
        "rope": True,
        "scale_logits": False,
    },
    written={
        "alibi_bias_max": 8.0,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "block_group_size": 1,
        "flash_attention": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "precision": "amp_bf16",
        "rope_full_precision": True,
    },
    keys=(
        ("model.transformer.wte.weight", "model.embed_tokens.weight"),
        ("model.transformer.ln_f.weight", "model.norm.weight"),
        ("model.transformer.ff_out.weight", "lm_head.weight"),
        (_BLOCK + "attn_norm.weight", _LAYER + "input_layernorm.weight"),
        (_BLOCK + "q_proj.weight", _LAYER + "self_attn.q_proj.weight"),
        (_BLOCK + "k_proj.weight", _LAYER + "self_attn.k_proj.weight"),
        (_BLOCK + "v_proj.weight", _LAYER + "self_attn.v_proj.weight"),
        (_BLOCK + "attn_out.weight", _LAYER + "self_attn.o_proj.weight"),
        (_BLOCK + "ff_norm.weight", _LAYER + "post_attention_layernorm.weight"),
        (_BLOCK + "ff_proj.weight", _LAYER + "mlp.gate_proj.weight"),
        (_BLOCK + "up_proj.weight", _LAYER + "mlp.up_proj.weight"),
        (_BLOCK + "ff_out.weight", _LAYER + "mlp.down_proj.weight"),
    ),
    tokens={"mask_token": "<|mdm_mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    token_ids={"mask": 126336, "eos": 126081, "pad": 126081},
    notes=(
        "Its own class names the gate ff_proj and the down projection ff_out, which LoRA targets with Llama's names miss.",
        "Before 2025-10-21 its own code became causal with a padded attention mask; the native class never does.",
        "An answer ends with <|eot_id|> (126348) and is padded with <|endoftext|>; the text ends at the first of the two.",
    ),
)
_DREAM = Family(
    title="Dream",
    native_class="Qwen2ForCausalLM",
    native_type="qwen2",
    paper="arXiv:2508.15487",
    checkpoints=(
        Checkpoint("Dream-org/Dream-v0-Base-7B", "7.62B", "unknown"),
        Checkpoint("Dream-org/Dream-v0-Instruct-7B", "7.62B", "Apache-2.0"),
    ),
    checked="logits of its own code",
    architecture="DreamModel",
    model_type="Dream",
    fields=_QWEN2_FIELDS | {"mask_token_id": "mask_token_id"},
    fixed=_FULL_ATTENTION | {"use_mrope": False},
    written=_NO_WINDOW
    | {
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    },
    tokens={"mask_token": "<|mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    token_ids={"mask": 151666, "eos": 151643, "pad": 151643},
    tokenizer_class="Qwen2Tokenizer",
    logit_shift=True,
    notes=(
        "Heads predict the next position. No head predicts position 0, which belongs to a completion only without a prompt.",
        "Its tokenizer config names a class that exists only as remote code; Qwen2Tokenizer reads the same files.",
        "An answer ends with <|im_end|> (151645) and is padded with <|endoftext|>; the text ends at the first of the two.",
    ),
)


def _a2d(
    base: str, title: str, fields: Mapping[str, str], mask: int, hub: str, parameters: Fact, paper: Fact
) -> Family:
    """Build the entry of an autoregressive Qwen model that the project dllm made bidirectional. Its
    tensors keep their names."""
    name = base.capitalize()
    return Family(
        title=title,
        native_class=f"{name}ForCausalLM",
        native_type=base,
        paper=paper,
        checkpoints=(
            Checkpoint(f"dllm-hub/{hub}-diffusion-mdlm-v0.1", parameters, "Apache-2.0"),
            Checkpoint(
                f"dllm-hub/{hub}-diffusion-bd3lm-v0.1", parameters, "Apache-2.0" if base == "qwen2" else "unknown", 32
            ),
        ),
        checked="mini checkpoint",
        architecture=f"A2D{name}LMHeadModel",
        model_type=f"a2d-{base}",
        fields=fields,
        fixed=_FULL_ATTENTION,
        written=_NO_WINDOW
        | {
            "auto_map": {
                "AutoConfig": f"modeling_{base}.A2D{name}Config",
                "AutoModel": f"modeling_{base}.A2D{name}LMHeadModel",
                "AutoModelForMaskedLM": f"modeling_{base}.A2D{name}LMHeadModel",
            }
        },
        tokens={"mask_token": "<|mask|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        token_ids={"mask": mask, "eos": 151645, "pad": 151643},
        tokenizer_class="Qwen2Tokenizer",
        notes=(
            "Only their name identifies the bd3lm checkpoints; in a folder without it they need --block-length 32.",
            "A stored head that is tied to the embedding is dropped if the two are equal, and untied otherwise.",
        ),
    )


FAMILIES: dict[str, Family] = {
    "llada": _LLADA,
    "llada-1.5": replace(
        _LLADA,
        title="LLaDA 1.5",
        checked="as llada",
        paper="arXiv:2505.19223",
        checkpoints=(Checkpoint("GSAI-ML/LLaDA-1.5", "8.02B", "unknown"),),
        notes=("The layout is exactly that of LLaDA, so the checks of LLaDA hold for it.", *_LLADA.notes[1:]),
    ),
    "dream": _DREAM,
    "diffucoder": replace(
        _DREAM,
        title="DiffuCoder",
        checked="as dream",
        paper="arXiv:2506.20639",
        checkpoints=(
            Checkpoint("apple/DiffuCoder-7B-Base", "7.62B", "unknown"),
            Checkpoint("apple/DiffuCoder-7B-Instruct", "7.62B", "unknown"),
            Checkpoint("apple/DiffuCoder-7B-cpGRPO", "7.62B", "unknown"),
        ),
        notes=(
            "The layout is that of Dream, including model_type; the chat template is in a separate file.",
            "Its hub pages give the licence as unknown.",
            *_DREAM.notes,
        ),
    ),
    "a2d-qwen3": _a2d(
        "qwen3", "A2D Qwen3", _QWEN3_FIELDS, 151669, "Qwen3-0.6B", "0.6B (0.75B stored)", "arXiv:2602.22661"
    ),
    "a2d-qwen2": _a2d(
        "qwen2",
        "A2D Qwen2.5-Coder",
        _QWEN2_FIELDS,
        151665,
        "Qwen2.5-Coder-0.5B-Instruct",
        "0.5B (0.63B stored)",
        "arXiv:2602.22661",
    ),
    "modernbert-chat": Family(
        title="ModernBERT chat",
        native_class="ModernBertForMaskedLM",
        native_type="modernbert",
        paper="arXiv:2602.22661",
        checkpoints=(
            Checkpoint("dllm-hub/ModernBERT-base-chat-v0.1", "0.15B", "unknown"),
            Checkpoint("dllm-hub/ModernBERT-large-chat-v0.1", "0.4B", "unknown"),
        ),
        checked="mini checkpoint",
        tokens={"mask_token": "[MASK]", "eos_token": "[PAD]", "pad_token": "[PAD]"},
        chat_template="its tokenizer's own; [Question] and [Answer] marks where it has none",
        template=(
            "{% if messages[0]['role'] == 'system' %}[SYS]\n{{ messages[0]['content'] | trim }}\n[/SYS]\n\n{% endif %}"
            "{% for message in messages %}{% if message['role'] == 'user' %}[Question]\n{{ message['content'] | trim }}\n"
            "[/Question]\n\n{% elif message['role'] == 'assistant' %}[Answer]\n{{ message['content'] | trim }}\n[/Answer]\n\n"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}[Answer]\n{% endif %}"
        ),
        notes=(
            "Already native: conversion only completes the tokenizer. If the tokenizer names no end token, a completion ends "
            "with [PAD], with which the release pads answers.",
        ),
    ),
    "sdar": Family(
        title="SDAR",
        native_class="Qwen3ForCausalLM",
        native_type="qwen3",
        paper="arXiv:2510.06303",
        checkpoints=(
            Checkpoint("JetLM/SDAR-1.7B-Chat", "2.03B", "Apache-2.0", 4),
            Checkpoint("JetLM/SDAR-4B-Chat", "4.4B", "Apache-2.0", 4),
            Checkpoint("JetLM/SDAR-8B-Chat", "8.2B", "unknown", 4),
        ),
        checked="mini checkpoint",
        architecture="SDARForCausalLM",
        model_type="sdar",
        fields=_QWEN3_FIELDS | {"block_size": "block_length", "mask_token_id": "mask_token_id"},
        fixed=_FULL_ATTENTION,
        written=_NO_WINDOW
        | {
            "attn_implementation": "flex_attention",
            "auto_map": {
                "AutoConfig": "configuration_sdar.SDARConfig",
                "AutoModel": "modeling_sdar.SDARModel",
                "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
            },
            "debug": False,
            "ep_size": 1,
            "fuse_cross_entropy": True,
            "micro_forward": False,
            "skip_checkpoint": False,
            "use_deepep": False,
        },
        tokens={"mask_token": "<|MASK|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        token_ids={"mask": 151669, "eos": 151643, "pad": 151643},
        tokenizer_class="Qwen2Tokenizer",
        block_causal=True,
        notes=(
            "Block-causal: a position attends to its own block and earlier ones. Finished blocks are cached, which is exact.",
            "The block length comes from block_size in the config, from the name (-b8 to -b64), or from --block-length.",
            "The mixture of experts, SDAR-30B-A3B, is not in this table.",
        ),
    ),
    "tiny": Family(
        title="tiny GPT-2",
        native_class="GPT2LMHeadModel",
        native_type="gpt2",
        paper="none",
        checkpoints=(),
        checked="mini checkpoint",
        chat_template="none",
        notes=("Models that unmask pretrain builds; native from the start.",),
    ),
}
"""Families by the name that `unmask models` and `unmask convert --to` use."""

UNSUPPORTED: dict[str, str] = {
    "LLaDA2MoeModelLM": "LLaDA2.x is a mixture of experts that is not supported yet. transformers has a native class for its "
    "function, Glm4MoeForCausalLM, but the conversion has to divide and stack tensors, which no entry of the table can describe",
    "LLaDAMoEModelLM": "LLaDA-MoE is a mixture of experts that is not supported yet: no native class has been checked against "
    "its own code, which is not run here",
    "SDARMoeForCausalLM": "SDAR's mixture of experts is not in the table; the dense SDAR models are",
}
"""Known architectures that cannot be read, with the reason."""


def family_of(config: Mapping[str, Any]) -> str | None:
    """Return the name of the family whose original or native layout a config.json has, or None.

    A native config may name its family. Other configs are recognised by class, shift and blocks.
    """
    architecture = (config.get("architectures") or [""])[0]
    recorded = config.get("diffusion_family")
    if recorded in FAMILIES and FAMILIES[recorded].native_class == architecture:
        return str(recorded)
    for name, family in FAMILIES.items():
        if family.architecture and (
            architecture == family.architecture or config.get("model_type") == family.model_type
        ):
            return name
    for name, family in FAMILIES.items():
        same_kind = family.block_causal == bool(config.get("block_length"))
        same_head = family.logit_shift == bool(config.get("logit_shift"))
        if architecture == family.native_class and same_kind and same_head:
            return name
    return None
