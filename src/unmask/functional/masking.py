"""Masks of completions, token weights, and a likelihood bound from several masked views of a
completion."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from unmask.functional.elbo import masks_of_counts


def compact_columns(mask: Bool[Tensor, "B L"]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Return the indices of the True columns of each row in ascending order. The result is as wide
    as the row with the most True columns.

    Args:
        mask: [B, L] bool.

    Returns:
        [B, n] int64 columns, n at least 1, and [B, n] bool, False at columns that only pad the
        width.

    Example:
        >>> compact_columns(torch.tensor([[False, True, True], [False, False, True]]))
        (tensor([[1, 2],
                [2, 0]]), tensor([[ True,  True],
                [ True, False]]))
    """
    width = max(1, int(mask.sum(-1).max()))
    columns = (~mask).int().argsort(dim=-1, stable=True)[:, :width]
    return columns, mask.gather(1, columns)


def trim_left_padding(
    ids: Int[Tensor, "B P"], mask: Bool[Tensor, "B P"]
) -> tuple[Int[Tensor, "B p"], Bool[Tensor, "B p"]]:
    """Remove the leading columns that are padding in every row, so that the longest row begins at
    the first column.

    Args:
        ids: [B, P] int64 tokens, padded on the left.
        mask: [B, P] bool, False at padding.

    Returns:
        [B, p] tokens and [B, p] bool, where p is the length of the longest row.

    Example:
        >>> ids = torch.tensor([[0, 0, 7], [0, 5, 6]])
        >>> trim_left_padding(ids, ids > 0)[0]
        tensor([[0, 7],
                [5, 6]])
    """
    first = mask.shape[1] - int(mask.sum(-1).max())
    return ids[:, first:], mask[:, first:]


def until_eos(is_eos: Bool[Tensor, "*batch L"]) -> Bool[Tensor, "*batch L"]:
    """Return the positions of a completion up to and including its first EOS; all positions if
    there is none.

    Unlike `Trajectory.is_text`, the result includes the EOS: the policy decides when to stop, and
    that decision is trained too.

    Args:
        is_eos: [..., L] bool.

    Returns:
        [..., L] bool.

    Example:
        >>> until_eos(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]]) == 1).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    return is_eos.cumsum(dim=-1) - is_eos.int() == 0


def token_mean_weight(num_tokens: Real[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Compute the weight that turns the mean of the completions' token sums into the mean over all
    tokens.

    The weight is B / Σ_b n_b for each of the B completions. The number of tokens is an outcome of
    the path, so the weight biases the gradient if paths can end early: the gradient of a completion
    is divided by a sum that contains its own length. GRPO's "token mean" does the same.

    Args:
        num_tokens: [B] int, number n_b >= 0 of tokens of each completion.

    Returns:
        [B] float32, all equal; finite even if no completion has a token.

    Example:
        >>> token_mean_weight(torch.tensor([3, 1]))
        tensor([0.5000, 0.5000])
    """
    return (len(num_tokens) / num_tokens.sum().clamp(min=1)).expand(len(num_tokens))


def block_masks(
    is_maskable: Bool[Tensor, "B L"], block_length: int, num_draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw states of a block-by-block sampler: a random block is partly masked, later blocks are
    fully masked.

    In the chosen block, the number of masked positions is uniform on {1..n}, where n is the number
    of its maskable positions. The choices of a row are the start of a random permutation of all
    blocks, modulo the number of blocks that have maskable positions, as in the release of SPG
    (arXiv:2510.09541). A block may therefore be chosen twice, and earlier blocks are more likely if
    the second number does not divide the first. A row with more draws than blocks continues with
    another permutation.

    Args:
        is_maskable: [B, L] bool.
        block_length: block length of the sampler.
        num_draws: number of draws M >= 1.
        generator: source of randomness.

    Returns:
        Two [B, M, L] bool: the masked positions, and the maskable positions of the blocks before
        the chosen one.

    Raises:
        ValueError: block_length or num_draws is below 1.

    Example:
        >>> is_maskable = torch.tensor([[True, True, True, True, False, False]])
        >>> masks, before = block_masks(is_maskable, 2, 3, torch.Generator().manual_seed(0))
        >>> before[0].int()
        tensor([[0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0]], dtype=torch.int32)
        >>> bool(masks[0, :2, 2:4].all()), bool((masks & before).any())
        (True, False)
    """
    if block_length < 1 or num_draws < 1:
        raise ValueError(f"block_masks: needs block_length >= 1 and num_draws >= 1; got {block_length} and {num_draws}")
    num_rows, length = is_maskable.shape
    block = torch.arange(length, device=is_maskable.device) // block_length
    total = -(-length // block_length)
    num_held = (block + 1).masked_fill(~is_maskable, 0).amax(-1, keepdim=True).clamp(min=1)
    rounds = -(-num_draws // total)
    order = torch.rand(num_rows, rounds, total, generator=generator).argsort(-1).flatten(1)[:, :num_draws]
    picked = (order.to(block.device) % num_held).unsqueeze(-1)
    inside = is_maskable.unsqueeze(1) & (block == picked)
    most = inside.sum(-1)
    draw = torch.rand(num_rows, num_draws, generator=generator).to(block.device)
    count = torch.minimum(1 + (draw * most).long(), most).view(-1, 1)
    masked = masks_of_counts(count, inside.flatten(0, 1), generator).view(inside.shape)
    later, before = (is_maskable.unsqueeze(1) & side for side in (block > picked, block < picked))
    return masked | later, before


def strata(
    is_maskable: Bool[Tensor, "B L"], num_strata: int, generator: torch.Generator
) -> Bool[Tensor, "B {num_strata} L"]:
    """Divide the maskable positions of each row at random into strata of nearly equal size.

    If each stratum is masked alone, every token is predicted once, with the tokens of all other
    strata as context (DACA-GRPO, arXiv:2605.16342). One stratum is the mean field of d1, and as many
    strata as positions give the pseudo-likelihood.

    Args:
        is_maskable: [B, L] bool, True at n positions.
        num_strata: number of strata S >= 1.
        generator: source of randomness.

    Returns:
        [B, S, L] bool. Each maskable position is in one stratum, and the sizes of two strata of a
        row differ by at most one; strata are empty if n < S.

    Raises:
        ValueError: num_strata is below 1.

    Example:
        >>> masks = strata(torch.ones(1, 5, dtype=torch.bool), 2, torch.Generator().manual_seed(0))
        >>> masks.sum(-1), masks.sum(1)
        (tensor([[3, 2]]), tensor([[1, 1, 1, 1, 1]]))
    """
    if num_strata < 1:
        raise ValueError(f"strata: num_strata must be at least 1; got {num_strata}")
    noise = torch.rand(is_maskable.shape, generator=generator, dtype=torch.float64).to(is_maskable.device)
    rank = noise.masked_fill(~is_maskable, 2.0).argsort(-1).argsort(-1)
    number = rank * num_strata // is_maskable.sum(-1, keepdim=True).clamp(min=1)
    return (number.unsqueeze(1) == torch.arange(num_strata, device=rank.device).unsqueeze(-1)) & is_maskable.unsqueeze(
        1
    )


def masks_by_block(
    masks: Bool[Tensor, "B M L"], is_maskable: Bool[Tensor, "B L"], block_length: int
) -> tuple[Bool[Tensor, "B K L"], Bool[Tensor, "B K L"]]:
    """Divide masks into those of single blocks, for a model that predicts each block from the
    finished blocks before it.

    Args:
        masks: [B, M, L] bool, subsets of is_maskable.
        is_maskable: [B, L] bool.
        block_length: block length of the sampler.

    Returns:
        Two [B, K, L] bool, where K is M times the number of blocks, and the blocks of a mask are
        adjacent: the part of each mask in one block, and the maskable positions of the later
        blocks.

    Raises:
        ValueError: block_length is below 1.

    Example:
        >>> is_maskable = torch.ones(1, 4, dtype=torch.bool)
        >>> part, later = masks_by_block(torch.tensor([[[True, False, True, True]]]), is_maskable, 2)
        >>> part[0].int(), later[0].int()
        (tensor([[1, 0, 0, 0],
                [0, 0, 1, 1]], dtype=torch.int32), tensor([[0, 0, 1, 1],
                [0, 0, 0, 0]], dtype=torch.int32))
    """
    if block_length < 1:
        raise ValueError(f"masks_by_block: block_length must be at least 1; got {block_length}")
    length = is_maskable.shape[1]
    block = torch.arange(length, device=masks.device) // block_length
    number = torch.arange(-(-length // block_length), device=masks.device).unsqueeze(-1)
    part = (masks.unsqueeze(2) & (block == number)).flatten(1, 2)
    later = (is_maskable.unsqueeze(1) & (block > number)).repeat(1, masks.shape[1], 1)
    return part, later


def evidence_upper_bound(
    logprob: Float[Tensor, "B M L"], is_masked: Bool[Tensor, "B M L"], num_tokens: Real[Tensor, "B"], power: float
) -> Float[Tensor, "B"]:
    """Estimate SPG's upper bound on the mean log-probability of a token, from M masked views of a
    completion.

    The bound is the mean over tokens k of (1/β) log (1/M) Σ_m 1[k masked in m] p_θ(x_k | view m)^β
    / t_m, where t_m is the share of tokens that view m masks (arXiv:2510.09541, in the form of its
    release, which pools each token separately). Over all masks and times, the weights of the inner
    mean sum to 1. By Jensen's inequality the bound is therefore at least the ELBO per token, and it
    grows with β. If β is at least the number of tokens n, the bound is at least log π(x) / n under
    random order, by Hölder's inequality; for a smaller β the bound may be lower. An estimate from a
    few views is biased downwards, because it takes the logarithm of a mean.

    Args:
        logprob: [B, M, L] nats, differentiable; ignored at unmasked positions.
        is_masked: [B, M, L] bool.
        num_tokens: [B] real, number n of tokens; the views mask only these.
        power: exponent β > 0.

    Returns:
        [B] nats per token, mean over the tokens that some view masks; 0 if there is none.

    Raises:
        ValueError: power is not above 0, or the shapes disagree.

    Example:
        >>> logprob = torch.tensor([[[0.5, 0.5], [0.125, 0.5]]]).log()
        >>> is_masked = torch.ones(1, 2, 2, dtype=torch.bool)
        >>> evidence_upper_bound(logprob, is_masked, torch.tensor([2]), 1.0).exp()     # (0.3125 · 0.5)^(1/2)
        tensor([0.3953])
    """
    if power <= 0 or logprob.shape != is_masked.shape or num_tokens.shape != logprob.shape[:1]:
        raise ValueError(
            "evidence_upper_bound: needs power > 0, logprob and is_masked [B, M, L] and num_tokens [B]; got power = "
            f"{power}, {tuple(logprob.shape)}, {tuple(is_masked.shape)}, {tuple(num_tokens.shape)}"
        )
    share = is_masked.sum(-1, keepdim=True).clamp(min=1) / num_tokens.clamp(min=1).to(logprob.dtype).view(-1, 1, 1)
    is_read = is_masked.any(1)
    # A token that no view masks is excluded after the logarithm, which must be finite.
    pooled = (power * logprob - share.log()).masked_fill(~is_masked & is_read.unsqueeze(1), -torch.inf)
    each = (pooled.logsumexp(1) - math.log(logprob.shape[1])) / power
    return each.masked_fill(~is_read, 0.0).sum(-1) / is_read.sum(-1).clamp(min=1)
