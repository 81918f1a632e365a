"""Builders for records: a test names the values that it is about, and the rest has plain defaults."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, Trajectory


def make_trajectory(tokens, **changes):
    """Return a trajectory; by default every step commits one token, from left to right.

    Args:
        tokens: [B, L] tokens of the completions, a tensor or lists.
        **changes: other fields of `Trajectory`. `unmask_step` may be lists.
    """
    tokens = torch.as_tensor(tokens)
    num_rows, length = tokens.shape
    fields = {
        "prompt_ids": torch.zeros(num_rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(num_rows, 1, dtype=torch.bool),
        "tokens": tokens,
        "unmask_step": torch.arange(length, dtype=torch.int32).repeat(num_rows, 1),
        "logprob": torch.full((num_rows, length), -1.0),
        "entropy": torch.ones(num_rows, length),
        "seed": torch.arange(num_rows),
        "sampler": SamplerConfig(max_completion_length=length, num_steps=length, order="random"),
        "mask_id": 0,
        "eos_id": 2,
    } | changes
    if isinstance(fields["unmask_step"], list):
        fields["unmask_step"] = torch.tensor(fields["unmask_step"], dtype=torch.int32)
    return Trajectory(**fields)


def make_inputs(new, **changes):
    """Return the inputs of a loss; by default each view reads its own completion, with weight and advantage 1.

    Values that are lists become tensors of the dtype of `new`. The default of `old` is `new` without its graph.

    Args:
        new: [N, L] log-probabilities under the policy that is trained. Lists become a leaf that records its gradient.
        **changes: other fields of `LossInputs`. A single number stands for the same weight or advantage of every view.
    """
    new = new if isinstance(new, Tensor) else torch.tensor(new, requires_grad=True)
    num_views = len(new)
    fields = {
        "new": new,
        "old": new.detach(),
        "reference": None,
        "exact_kl": None,
        "row": torch.arange(num_views),
        "target": torch.ones(num_views, new.shape[-1], dtype=torch.bool),
        "weight": 1.0,
        "advantage": 1.0,
    } | changes
    for name in ("weight", "advantage"):
        if isinstance(fields[name], float):
            fields[name] = [fields[name]] * num_views
    dtypes = {"row": torch.long, "target": torch.bool}
    return LossInputs(
        **{
            name: torch.tensor(value, dtype=dtypes.get(name, new.dtype)) if isinstance(value, list) else value
            for name, value in fields.items()
        }
    )
