"""Which tokens of a finished completion are scored, and which are shown while they are."""

from __future__ import annotations

from torch import Tensor


def until_eos(is_eos: Tensor) -> Tensor:
    """The positions of a completion up to and including its first EOS; all of them where there is none.

    Not `Trajectory.is_text`, which leaves the EOS out: when to stop is a decision of the policy, and it is trained too.

    Args:
        is_eos: [..., L] bool.

    Returns:
        [..., L] bool.

    Example:
        >>> import torch
        >>> until_eos(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]]) == 1).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    return is_eos.cumsum(dim=-1) - is_eos.int() == 0


def token_mean_weight(num_tokens: Tensor) -> Tensor:
    """The weight of a completion's token sum with which the mean over completions is the mean over all of their tokens.

    B / Σ_b n_b for each of the B completions. The number of tokens is an outcome of the path, so where a path can end early this
    is a bias: a completion's gradient is divided by the length of the others and of itself. It is what GRPO's "token mean" does.

    Args:
        num_tokens: [B] int, n_b >= 0.

    Returns:
        [B] float32, all equal; finite even where no completion has a token.

    Example:
        >>> import torch
        >>> token_mean_weight(torch.tensor([3, 1]))
        tensor([0.5000, 0.5000])
    """
    return (len(num_tokens) / num_tokens.sum().clamp(min=1)).expand(len(num_tokens))
