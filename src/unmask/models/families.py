"""The table of model families: the layout of each release, and the native transformers class that
computes the same function.

The table is data with one entry per family. `unmask convert` uses an entry in both directions, and
`unmask models` prints it. Facts about releases are those of their hub pages; unknown facts are
marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.models.family import Checkpoint, Family
from unmask.models.releases.llada import LLADA
from unmask.models.releases.mixtures import MIXTURES
from unmask.models.releases.qwen import QWEN

FAMILIES: dict[str, Family] = {
    **LLADA,
    **QWEN,
    **MIXTURES,
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
    "DiffusionGemmaForBlockDiffusion": "DiffusionGemma starts from uniformly random tokens and has no mask token, so it is no "
    "masked diffusion model",
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
    if (name := original_family_of(config)) is not None:
        return name
    for name, family in FAMILIES.items():
        same_kind = family.block_causal == bool(config.get("block_length"))
        same_head = family.logit_shift == bool(config.get("logit_shift"))
        if architecture == family.native_class and same_kind and same_head:
            return name
    return None


def original_family_of(config: Mapping[str, Any]) -> str | None:
    """Return the name of the family whose own layout a config.json has, or None.

    The class counts before the model type, which releases of two families share.
    """
    architecture = (config.get("architectures") or [""])[0]
    for name, family in FAMILIES.items():
        if architecture in family.architectures:
            return name
    for name, family in FAMILIES.items():
        if family.architecture and config.get("model_type") == family.model_type:
            return name
    return None
