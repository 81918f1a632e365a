"""Mixtures of experts: LLaDA2, SDAR's mixture and LLaDA-MoE.

Releases store each expert by itself, and the native classes stack the experts of a layer.
"""

from __future__ import annotations

from unmask.models.family import Checkpoint, Family, Regrouped
from unmask.models.releases.fields import EXPERTS, FULL_ATTENTION, NO_WINDOW, QWEN3_FIELDS, SAME

_LAYER = "model.layers.{i}."
_IN_LAYERS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "mlp.gate.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "mlp.shared_experts.gate_proj.weight",
    "mlp.shared_experts.up_proj.weight",
    "mlp.shared_experts.down_proj.weight",
)
_EDITS = (
    "it inserts and deletes tokens while it decodes, and chooses its experts for whole blocks (LLaDA2.2), which no native "
    "class does"
)
_LLADA2 = Family(
    title="LLaDA2",
    native_class="Glm4MoeForCausalLM",
    native_type="glm4_moe",
    paper="arXiv:2512.15745, arXiv:2602.08676",
    checkpoints=(
        Checkpoint("inclusionAI/LLaDA2.0-mini", "16.3B, 1.4B active", "Apache-2.0", 32),
        Checkpoint("inclusionAI/LLaDA2.1-mini", "16.3B, 1.4B active", "unknown", 32),
    ),
    checked="logits of independent code",
    architecture="LLaDA2MoeModelLM",
    model_type="llada2_moe",
    fields={
        key: key
        for key in (
            "attention_dropout",
            "eos_token_id",
            "first_k_dense_replace",
            "head_dim",
            "hidden_act",
            "hidden_size",
            "initializer_range",
            "intermediate_size",
            "mask_token_id",
            "max_position_embeddings",
            "moe_intermediate_size",
            "n_group",
            "num_attention_heads",
            "num_experts_per_tok",
            "num_hidden_layers",
            "num_key_value_heads",
            "output_router_logits",
            "pad_token_id",
            "partial_rotary_factor",
            "rms_norm_eps",
            "rope_theta",
            "routed_scaling_factor",
            "tie_word_embeddings",
            "topk_group",
            "use_cache",
            "use_qk_norm",
            "vocab_size",
        )
    }
    | {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"},
    defaults={
        "first_k_dense_replace": 0,
        "n_group": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 0,
        "partial_rotary_factor": 0.5,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
        "use_qk_norm": True,
    },
    constants={"num_nextn_predict_layers": 0},
    fixed={
        "norm_head": False,
        "norm_topk_prob": True,
        "rope_scaling": None,
        "score_function": "sigmoid",
        "use_bias": False,
        "use_qkv_bias": False,
        "use_sliding_window": False,
    },
    refused={
        "num_nextn_predict_layers": "layers that predict the next tokens have no place in the native class",
        "delete_token_id": _EDITS,
        "split_token_id": _EDITS,
    },
    refused_names={"LLaDA2.2": _EDITS},
    written={
        "auto_map": {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
        "embedding_dropout": 0.0,
        "moe_router_enable_expert_bias": True,
        "output_dropout": 0.0,
        "router_dtype": "fp32",
    },
    keys=(
        ("model.word_embeddings.weight", "model.embed_tokens.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        (_LAYER + "attention.dense.weight", _LAYER + "self_attn.o_proj.weight"),
        (_LAYER + "attention.query_layernorm.weight", _LAYER + "self_attn.q_norm.weight"),
        (_LAYER + "attention.key_layernorm.weight", _LAYER + "self_attn.k_norm.weight"),
        (_LAYER + "mlp.gate.expert_bias", _LAYER + "mlp.gate.e_score_correction_bias"),
        *((_LAYER + name, _LAYER + name) for name in _IN_LAYERS),
    ),
    regrouped=(
        Regrouped(
            (_LAYER + "attention.query_key_value.weight",),
            tuple(f"{_LAYER}self_attn.{name}_proj.weight" for name in "qkv"),
        ),
        *EXPERTS,
    ),
    tokens={"mask_token": "<|mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    token_ids={"mask": 156895, "eos": 156892, "pad": 156892},
    block_causal=True,
    notes=(
        "Block-causal with blocks of 32. Finished blocks are cached, which is exact.",
        "LLaDA2.1 is read as a block diffusion model that commits each token once. Its token editing, in which decoding "
        "changes committed tokens, is not supported.",
        "LLaDA2.2 is refused: its editing and its routing by block have no native class.",
        "In evaluation mode its own code computes experts without gradients; the native class gives gradients in every mode.",
    ),
)
_SDAR_MOE = Family(
    title="SDAR mixture of experts",
    native_class="Qwen3MoeForCausalLM",
    native_type="qwen3_moe",
    paper="arXiv:2510.06303",
    checkpoints=(Checkpoint("JetLM/SDAR-30B-A3B-Chat", "30.5B, 3.3B active", "unknown", 4),),
    checked="logits of independent code",
    architecture="SDARMoeForCausalLM",
    model_type="sdar_moe",
    fields=QWEN3_FIELDS
    | {
        "block_size": "block_length",
        "decoder_sparse_step": "decoder_sparse_step",
        "mask_token_id": "mask_token_id",
        "mlp_only_layers": "mlp_only_layers",
        "moe_intermediate_size": "moe_intermediate_size",
        "norm_topk_prob": "norm_topk_prob",
        "num_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "output_router_logits": "output_router_logits",
        "router_aux_loss_coef": "router_aux_loss_coef",
    },
    fixed=FULL_ATTENTION,
    written=NO_WINDOW
    | {
        "auto_map": {
            "AutoConfig": "configuration_sdar_moe.SDARMoeConfig",
            "AutoModel": "modeling_sdar_moe.SDARMoeModel",
            "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM",
        }
    },
    regrouped=EXPERTS,
    tokens={"mask_token": "<|MASK|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    token_ids={"mask": 151669, "eos": 151643, "pad": 151643},
    tokenizer_class="Qwen2Tokenizer",
    block_causal=True,
    notes=(
        "Block-causal: a position attends to its own block and earlier ones. Finished blocks are cached, which is exact.",
        "The block length comes from block_size in the config, from the name (-b8 to -b64), or from --block-length.",
    ),
)
_LLADA_MOE = Family(
    title="LLaDA-MoE",
    native_class="Qwen3MoeForCausalLM",
    native_type="qwen3_moe",
    paper="arXiv:2509.24389",
    checkpoints=(
        Checkpoint("inclusionAI/LLaDA-MoE-7B-A1B-Base", "7.36B, 1.4B active", "unknown"),
        Checkpoint("inclusionAI/LLaDA-MoE-7B-A1B-Instruct", "7.36B, 1.4B active", "unknown"),
    ),
    checked="logits of independent code",
    architecture="LLaDAMoEModelLM",
    other_architectures=("LLaDAMoEModel",),
    # Releases state the type of the dense LLaDA, so the class identifies the family.
    model_type="llada",
    fields={key: key for key in SAME if key not in ("bos_token_id", "intermediate_size", "max_window_layers")}
    | {
        "attention_bias": "attention_bias",
        "dense_intermediate_size": "intermediate_size",
        "expert_intermediate_size": "moe_intermediate_size",
        "mask_token_id": "mask_token_id",
        "moe_layer_freq": "moe_layer_freq",
        "num_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "output_router_logits": "output_router_logits",
        "router_aux_loss_coef": "router_aux_loss_coef",
    },
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 50000.0},
    constants={"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False},
    fixed={
        "clip_qkv": None,
        "moe_layer_freq": (1, None),
        "moe_router_enable_expert_bias": (False, None),
        "moe_router_score_function": "softmax",
        "norm_topk_prob": (None, False),
        "partial_rotary_factor": (1.0, None),
        "qk_layernorm": True,
        "routed_scaling_factor": (1, None),
        "router_num_group": None,
        "router_topk_group": None,
        "shared_expert_intermediate_size": None,
    },
    written={
        "auto_map": {
            "AutoConfig": "configuration_lladamoe.LLaDAMoEConfig",
            "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
            "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM",
        }
    },
    regrouped=EXPERTS,
    tokens={"mask_token": "<|mask|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    token_ids={"mask": 156895, "eos": 156892, "pad": 156892},
    notes=(
        "Its weights of the chosen experts are probabilities among all experts and are not normalised again.",
        "Converted only where the native class computes the same: every layer a mixture, no expert bias, no clipping, no "
        "shared expert, whole rotary positions. Other configs are refused with the key.",
    ),
)

MIXTURES: dict[str, Family] = {"llada2": _LLADA2, "sdar-moe": _SDAR_MOE, "llada-moe": _LLADA_MOE}
"""Families by name."""
