"""The transformers classes that a denoiser can use, and the ways in which they differ after
attention is made bidirectional.

Only native classes are used: no remote code, no patched globals. `config.is_causal = False` makes
the mask functions of transformers bidirectional, and is saved with the model. `config.logit_shift =
True` marks a head that predicts the *next* position (Dream, DiffuCoder), so that no method has to
shift logits. `config.block_length` makes attention block-causal (SDAR, LLaDA2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from torch import Tensor

from unmask.models.last_layer import LayerNames

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class NativeClass:
    """Description of how to run one transformers class as a denoiser."""

    auto_class: Literal["AutoModelForCausalLM", "AutoModelForMaskedLM"]
    """Name of the native auto class that loads this class."""
    transform: Callable[[PreTrainedModel], Transform]
    """Function that returns the map from hidden states [..., D] to the inputs [..., D] of the last
    layer, which is the model's output embedding."""
    linear: tuple[str, ...]
    """Names, or ends of names, of the weight matrices in the blocks of the model, which LoRA adapts
    with `all-linear`; see `target_modules`."""
    last: LayerNames
    """Names of the modules at which the last layer is cut to the columns that are read."""
    has_cache: bool = True
    """True if the attention of the class takes a cache of keys and values."""
    router: str | None = None
    """Name, within a layer, of the module that chooses the experts of a token; None if the class has
    no mixtures of experts."""
    experts: str | None = None
    """Name, within a layer, of the module whose parameters hold the weights of all experts."""


def _no_transform(_model: PreTrainedModel) -> Transform:
    return lambda hidden: hidden


def _modernbert_transform(model: PreTrainedModel) -> Transform:
    return cast(Transform, model.head)


def _bert_transform(model: PreTrainedModel) -> Transform:
    return cast(Transform, model.cls.predictions.transform)  # type: ignore[union-attr]


_LLAMA_LIKE = NativeClass(
    "AutoModelForCausalLM",
    _no_transform,
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    LayerNames("layers", "input_layernorm", "self_attn.o_proj", "norm"),
)

_MIXTURE = replace(
    _LLAMA_LIKE, linear=("q_proj", "k_proj", "v_proj", "o_proj"), router="mlp.gate", experts="mlp.experts"
)

NATIVE_CLASSES: dict[str, NativeClass] = {
    "GPT2LMHeadModel": NativeClass(
        "AutoModelForCausalLM",
        _no_transform,
        ("c_attn", "c_proj", "c_fc"),
        LayerNames("h", "ln_1", "attn.c_proj", "ln_f"),
    ),
    "LlamaForCausalLM": _LLAMA_LIKE,
    "Qwen2ForCausalLM": _LLAMA_LIKE,
    "Qwen3ForCausalLM": _LLAMA_LIKE,
    "Qwen3MoeForCausalLM": _MIXTURE,
    "Glm4MoeForCausalLM": _MIXTURE,
    "ModernBertForMaskedLM": NativeClass(
        "AutoModelForMaskedLM",
        _modernbert_transform,
        ("Wqkv", "Wo", "Wi"),
        LayerNames("layers", "attn_norm", "attn.Wo", "final_norm"),
        has_cache=False,
    ),
    "BertForMaskedLM": NativeClass(
        "AutoModelForMaskedLM",
        _bert_transform,
        ("query", "key", "value", "output.dense", "intermediate.dense"),
        LayerNames("encoder.layer", "attention.self", "attention.output.dense", None),
    ),
}
"""Native classes by their name in `config.architectures`."""


def twins_of(model: PreTrainedModel) -> dict[str, str]:
    """Return the second names of parameters that have two names, each with the first name of the
    same parameter."""
    first: dict[int, str] = {}
    twins = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            twins[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return twins
