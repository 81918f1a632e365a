"""The table of model families: what differs between transformers classes once attention is bidirectional.

Adding a family is one entry. Native classes only: no remote code, no patched globals. `config.is_causal = False` makes
transformers' own mask functions bidirectional and survives saving; `config.logit_shift = True` marks a head that predicts
the *next* position (Dream, DiffuCoder), so that no method ever slices logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """How to run one transformers class as a denoiser."""

    auto_class: Literal["AutoModelForCausalLM", "AutoModelForMaskedLM"]
    """The loader; both are native."""
    head: Callable[[PreTrainedModel], Head]
    """The map from hidden states [..., D] to logits [..., V]."""


def _output_embeddings(model: PreTrainedModel) -> Head:
    return cast(Head, model.get_output_embeddings())


def _modernbert_head(model: PreTrainedModel) -> Head:
    head, decoder = cast(Head, model.head), cast(Head, model.decoder)
    return lambda hidden: decoder(head(hidden))


def _bert_head(model: PreTrainedModel) -> Head:
    return cast(Head, model.cls)


_CAUSAL_CLASS = Family("AutoModelForCausalLM", _output_embeddings)

FAMILIES: dict[str, Family] = {
    "GPT2LMHeadModel": _CAUSAL_CLASS,
    "LlamaForCausalLM": _CAUSAL_CLASS,
    "Qwen2ForCausalLM": _CAUSAL_CLASS,
    "Qwen3ForCausalLM": _CAUSAL_CLASS,
    "ModernBertForMaskedLM": Family("AutoModelForMaskedLM", _modernbert_head),
    "BertForMaskedLM": Family("AutoModelForMaskedLM", _bert_head),
}
"""By the class name in `config.architectures`."""
