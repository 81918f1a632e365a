"""The experts of a mixture on fake tensors, in any precision.

torch knows the shapes of a grouped matrix product in bfloat16 only. transformers has an operation with
the same result for other dtypes, which it uses where the product is missing; here it is used on
purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "unmask_estimate"
"""Name in transformers' table of implementations of experts."""


def use_fake_experts(backbone: PreTrainedModel) -> None:
    """Let the mixtures of a model, if it has any, run on fake tensors in any precision."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not backbone._can_set_experts_implementation():
        return
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    backbone.config._experts_implementation = _NAME


def _forward(experts: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute tensors of the right shapes: [n, D] from [n, D] states and the [n, k] experts of each
    token with their weights."""
    product = torch.ops.transformers.grouped_mm_fallback
    ends = torch.zeros(experts.num_experts, dtype=torch.int32, device=hidden.device)
    tokens = hidden[index.flatten() // experts.num_experts]
    inner = experts._apply_gate(product(tokens, experts.gate_up_proj.transpose(-2, -1), ends))
    outer = product(inner, experts.down_proj.transpose(-2, -1), ends) * weights.flatten().unsqueeze(-1)
    summed: Tensor = outer.view(*index.shape, -1).sum(1).to(hidden.dtype)
    return summed
