"""Config keys that several families share."""

from __future__ import annotations

from unmask.models.family import Regrouped

SAME = (
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
QWEN2_FIELDS = {key: key for key in SAME}
QWEN3_FIELDS = QWEN2_FIELDS | {"head_dim": "head_dim", "attention_bias": "attention_bias"}
FULL_ATTENTION = {"use_sliding_window": False}
NO_WINDOW = {"sliding_window": None}
"""Config value without a sliding window. It is not in `fixed`, because released configs state a
width that they do not use."""

EXPERT_KEYS = (
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
)
EXPERTS = (
    Regrouped(EXPERT_KEYS[:2], ("model.layers.{i}.mlp.experts.gate_up_proj",)),
    Regrouped(EXPERT_KEYS[2:], ("model.layers.{i}.mlp.experts.down_proj",)),
)
"""Separate experts, and the stacks of all experts of a layer: the rows of the gate, then those of the
up projection."""
