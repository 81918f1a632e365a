"""Diffusion models that grew out of dense Qwen models: Dream, DiffuCoder, A2D, SDAR and Fast-dLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from unmask.models.family import Checkpoint, Fact, Family
from unmask.models.releases.fields import FULL_ATTENTION, NO_WINDOW, QWEN2_FIELDS, QWEN3_FIELDS

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
    fields=QWEN2_FIELDS | {"mask_token_id": "mask_token_id"},
    fixed=FULL_ATTENTION | {"use_mrope": False},
    written=NO_WINDOW
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
        fixed=FULL_ATTENTION,
        written=NO_WINDOW
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


QWEN: dict[str, Family] = {
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
    "dream-coder": replace(
        _DREAM,
        title="Dream-Coder",
        checked="as dream",
        paper="arXiv:2509.01142",
        checkpoints=(
            Checkpoint("Dream-org/Dream-Coder-v0-Base-7B", "7.62B", "unknown"),
            Checkpoint("Dream-org/Dream-Coder-v0-Instruct-7B", "7.62B", "unknown"),
        ),
        notes=("The layout is that of Dream, including model_type, so the checks of Dream hold for it.", *_DREAM.notes),
    ),
    "a2d-qwen3": _a2d(
        "qwen3", "A2D Qwen3", QWEN3_FIELDS, 151669, "Qwen3-0.6B", "0.6B (0.75B stored)", "arXiv:2602.22661"
    ),
    "a2d-qwen2": _a2d(
        "qwen2",
        "A2D Qwen2.5-Coder",
        QWEN2_FIELDS,
        151665,
        "Qwen2.5-Coder-0.5B-Instruct",
        "0.5B (0.63B stored)",
        "arXiv:2602.22661",
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
        fields=QWEN3_FIELDS | {"block_size": "block_length", "mask_token_id": "mask_token_id"},
        fixed=FULL_ATTENTION,
        written=NO_WINDOW
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
        ),
    ),
    "fast-dllm-v2": Family(
        title="Fast-dLLM v2",
        native_class="Qwen2ForCausalLM",
        native_type="qwen2",
        paper="arXiv:2509.26328",
        checkpoints=(
            Checkpoint("Efficient-Large-Model/Fast_dLLM_v2_1.5B", "1.54B", "unknown", 32),
            Checkpoint("Efficient-Large-Model/Fast_dLLM_v2_7B", "7.62B", "unknown", 32),
        ),
        checked="logits of independent code",
        architecture="Fast_dLLM_QwenForCausalLM",
        model_type="Fast_dLLM_Qwen",
        fields=QWEN2_FIELDS | {"bd_size": "block_length", "mask_token_id": "mask_token_id"},
        defaults={"bd_size": 32},
        fixed=FULL_ATTENTION,
        written=NO_WINDOW
        | {
            "auto_map": {
                "AutoConfig": "configuration.Fast_dLLM_QwenConfig",
                "AutoModel": "modeling.Fast_dLLM_QwenForCausalLM",
                "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
            }
        },
        tokens={"mask_token": "|<MASK>|", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        token_ids={"mask": 151665, "eos": 151645, "pad": 151643},
        tokenizer_class="Qwen2Tokenizer",
        logit_shift=True,
        block_causal=True,
        notes=(
            "Block-causal with a shifted head: the last position of a block predicts the first one of the next block.",
            "Its own decoding commits that first position before the other positions of a block; here the order decides.",
            "Its small blocks of 8 are a setting of decoding: sampler.block_length=8.",
        ),
    ),
}
"""Families by name."""
