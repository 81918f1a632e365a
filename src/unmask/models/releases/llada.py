"""LLaDA and the dense models of its authors: bidirectional transformers that were trained from
scratch."""

from __future__ import annotations

from dataclasses import replace

from unmask.models.family import Checkpoint, Family
from unmask.models.releases.fields import SAME

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
_ILLADA = Family(
    title="iLLaDA",
    native_class="LlamaForCausalLM",
    native_type="llama",
    paper="arXiv:2606.25331",
    checkpoints=(
        Checkpoint("GSAI-ML/iLLaDA-8B-Base", "7.62B", "Apache-2.0"),
        Checkpoint("GSAI-ML/iLLaDA-8B-Instruct", "7.62B", "Apache-2.0"),
    ),
    checked="logits of independent code",
    architecture="ILLaDAForCausalLM",
    model_type="illada",
    fields={key: key for key in SAME if key != "max_window_layers"}
    | {
        "attention_bias": "attention_bias",
        "mask_token_id": "mask_token_id",
        "mlp_bias": "mlp_bias",
        "resid_pdrop": "resid_pdrop",
    },
    defaults={"tie_word_embeddings": True},
    fixed={"layer_norm_eps": None},
    written={
        "auto_map": {
            "AutoConfig": "configuration_illada.ILLaDAConfig",
            "AutoModel": "modeling_illada.ILLaDAForCausalLM",
            "AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM",
        },
    },
    tokens={"mask_token": "<[MASK]>"},
    token_ids={"mask": 5},
    notes=(
        "The head is tied to the embeddings, so the file holds it once.",
        "Its tokenizer contains the mask token but does not declare it; the end token is the one that the tokenizer declares.",
        "Dropout after attention and MLP (resid_pdrop), which its own code has in training mode, is not applied.",
    ),
)

LLADA: dict[str, Family] = {
    "llada": _LLADA,
    "llada-1.5": replace(
        _LLADA,
        title="LLaDA 1.5",
        checked="as llada",
        paper="arXiv:2505.19223",
        checkpoints=(Checkpoint("GSAI-ML/LLaDA-1.5", "8.02B", "unknown"),),
        notes=("The layout is exactly that of LLaDA, so the checks of LLaDA hold for it.", *_LLADA.notes[1:]),
    ),
    "illada": _ILLADA,
}
"""Families by name."""
