"""A tiny config of every native class, with the ids of a character tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import transformers

from unmask.models import char_tokenizer

TOKENIZER = char_tokenizer("01234567")
PAD, MASK, EOS = TOKENIZER.pad_token_id, TOKENIZER.mask_token_id, TOKENIZER.eos_token_id
V = len(TOKENIZER) + 1  # transformers gives the tokenizer of a Qwen2 an unknown token
COMMON = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
# Grouped matrix products in bfloat16 need rows of whole 16 bytes.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPED = COMMON | {"num_key_value_heads": 1}
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "GPT2LMHeadModel": lambda: transformers.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32, pad_token_id=PAD, eos_token_id=EOS
    ),
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "Qwen2ForCausalLM": lambda: transformers.Qwen2Config(**GROUPED),
    "Qwen3ForCausalLM": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "Qwen3MoeForCausalLM": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, **EXPERTS, head_dim=8, num_experts=4, norm_topk_prob=True
    ),
    # A dense layer, then a mixture with a shared expert.
    "Glm4MoeForCausalLM": lambda: transformers.Glm4MoeConfig(
        **GROUPED,
        **EXPERTS,
        head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=1.5,
        use_qk_norm=True,
        num_nextn_predict_layers=0,
    ),
    # Local attention over four tokens in one layer, global in the other.
    "ModernBertForMaskedLM": lambda: transformers.ModernBertConfig(
        **COMMON, local_attention=4, global_attn_every_n_layers=2, cls_token_id=None, sep_token_id=None
    ),
    "BertForMaskedLM": lambda: transformers.BertConfig(**COMMON, hidden_dropout_prob=0.1),
}
