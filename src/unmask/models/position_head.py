"""The position head: a small network on a model's hidden states that scores masked positions, so that
the order `learned` can draw the positions that a denoising step commits.

It follows the unmasking policy module of DCoLT (arXiv:2505.10446). docs/orders.md describes the
differences. The head is a module of the backbone, so adapters, checkpoints and shards treat its
weights as those of the model. In a model folder or an adapter folder it has a file of its own, which
leaves the other files as transformers writes and reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unmask.core.errors import ModelError, reason
from unmask.functional.noise import named_generator
from unmask.models.logit_head import LogitHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITION_HEAD = "position_head"
"""Name of the head in the backbone, and of the entry of config.json that says that there is one."""
HEAD_FILE = "position_head.safetensors"
"""Name of the head's file in a model folder or an adapter folder."""
_PREFIX = f"{POSITION_HEAD}."


class PositionHead(nn.Module):
    """Scores positions by their hidden states, s_i = v · gelu(W norm(h_i) + b).

    Args:
        width: size D of a hidden state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.hidden = nn.Linear(width, width)
        # No bias: a number added to all scores changes no probability.
        self.last = LogitHead(width, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [...] scores of [..., D] hidden states; float32 for bfloat16 weights."""
        score: Tensor = self.last(nn.functional.gelu(self.hidden(self.norm(hidden)))).squeeze(-1)
        return score


@torch.no_grad()
def add_position_head(backbone: PreTrainedModel, seed: int) -> PositionHead:
    """Add a new head to a backbone, in the precision and on the device of its weights.

    The weights W are random and v is 0, so the scores of a new head are 0.

    Args:
        backbone: model of transformers.
        seed: seed of W.
    """
    width = int(backbone.config.hidden_size)
    head = PositionHead(width)
    head.hidden.weight.normal_(std=width**-0.5, generator=named_generator(seed, "position head"))
    head.hidden.bias.zero_()
    head.last.weight.zero_()
    set_position_head(backbone, head)
    return head


def set_position_head(backbone: PreTrainedModel, head: PositionHead | None) -> None:
    """Give a backbone a head, converted to the precision and the device of its weights, in place of
    the one that it has; None removes that one."""
    if head is None:
        backbone._modules.pop(POSITION_HEAD, None)
        vars(backbone.config).pop(POSITION_HEAD, None)
        return
    setattr(backbone, POSITION_HEAD, head.to(device=backbone.device, dtype=backbone.dtype).train(backbone.training))
    setattr(backbone.config, POSITION_HEAD, True)


def head_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide the tensors of a backbone by name into those of the backbone itself and those of its
    head, the latter under their names in the head."""
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
    return own, {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name not in own}


def is_of_position_head(name: str) -> bool:
    """Return True if a parameter of a denoiser belongs to its position head."""
    return name.startswith(f"backbone.{_PREFIX}")


def save_position_head(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of a head into a folder, under their names in the head."""
    from safetensors.torch import save_file

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / HEAD_FILE, metadata={"format": "pt"})


def read_position_head(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors that `save_position_head` wrote, from a folder or a model on the hub.

    Raises:
        ModelError: there is no file of a head, or it is damaged.
    """
    from safetensors.torch import load_file

    try:
        if Path(source).is_dir():
            return load_file(Path(source) / HEAD_FILE)
        from huggingface_hub import hf_hub_download

        return load_file(hf_hub_download(str(source), HEAD_FILE))
    except Exception as error:  # a damaged file can make safetensors raise any error
        raise ModelError(
            f"{source} has a position head, whose file {HEAD_FILE} cannot be read: {reason(error)}. Copy the folder again."
        ) from error


def restore_position_head(
    backbone: PreTrainedModel, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Give a backbone a head with stored weights.

    Raises:
        ModelError: the tensors are not those of a head of this model.
    """
    head = PositionHead(int(backbone.config.hidden_size))
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ModelError(
            f"the position head of {source} does not fit the model: {wrong[0]} is missing, unknown or of another shape. Copy the "
            "folder again."
        )
    head.load_state_dict(dict(tensors))
    set_position_head(backbone, head)
