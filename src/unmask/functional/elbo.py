"""The masked-diffusion bound on log p(x) (MDLM, arXiv:2406.07524; LLaDA, arXiv:2502.09992): times, masks, weights.

With the linear schedule a position is masked with probability t, t uniform on (0, 1), and

    log p(x) ≥ ELBO(x) = E_t E_{x_t} [ (1/t) Σ_{i masked} log p_θ(x_i | x_t) ].

Departure from the papers: times are stratified and start at a small positive value, because the weight 1/t has no
bound.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_times(count: int, low: float, generator: torch.Generator) -> Tensor:
    """Diffusion times of a batch: one uniform draw in each of `count` equal strata of [low, 1), in random order.

    Each entry alone is uniform on [low, 1); together they cover it evenly, which lowers the variance of a batch's
    ELBO (the low-discrepancy sampler of VDM, arXiv:2107.00630, with a jitter of its own for each stratum).

    Args:
        count: how many.
        low: in (0, 1), the least time: an ELBO term is at most 1/low times its log-probability.
        generator: the source of randomness; its device is the result's.

    Returns:
        [count] float32 in [low, 1).

    Raises:
        ValueError: count below 1, or low out of range.

    Example:
        >>> times = stratified_times(4, 0.2, torch.Generator().manual_seed(0))
        >>> ((times.sort().values - 0.2) / 0.2).floor()
        tensor([0., 1., 2., 3.])
    """
    if count < 1 or not 0 < low < 1:
        raise ValueError(f"stratified_times: needs count >= 1 and 0 < low < 1; got count = {count}, low = {low}")
    device = generator.device
    jitter = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    stratum = torch.randperm(count, generator=generator, device=device)
    times = (low + (1 - low) * (stratum + jitter) / count).float()
    return times.clamp(max=1 - 2**-24)  # rounding to float32 can reach 1


def mask_at_times(times: Tensor, is_maskable: Tensor, generator: torch.Generator) -> Tensor:
    """The forward process q(x_t | x): each maskable position is masked, independently, with probability t.

    Args:
        times: [B] in [0, 1].
        is_maskable: [B, L] bool; a prompt or padding position is not.
        generator: the source of randomness.

    Returns:
        [B, L] bool. A row may come out without a mask; its ELBO term is 0, as the expectation wants.

    Raises:
        ValueError: the two disagree on B.

    Example:
        >>> is_maskable = torch.tensor([[False, True, True], [True, True, True]])
        >>> mask_at_times(torch.tensor([1.0, 0.0]), is_maskable, torch.Generator().manual_seed(0)).int()
        tensor([[0, 1, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    if times.shape != is_maskable.shape[:1]:
        raise ValueError(
            "mask_at_times: times [B] and is_maskable [B, L] must agree on B; "
            f"got {tuple(times.shape)}, {tuple(is_maskable.shape)}"
        )
    uniform = torch.rand(is_maskable.shape, generator=generator, device=generator.device).to(is_maskable.device)
    return (uniform < times.to(is_maskable.device).unsqueeze(-1)) & is_maskable


def elbo(logprob: Tensor, is_masked: Tensor, times: Tensor) -> Tensor:
    """One-sample estimate of the ELBO, (1/t) Σ_{i masked} log p_θ(x_i | x_t).

    An estimate of a lower bound of log p(x); never a log-probability. Unbiased for t uniform on (0, 1); with t from
    [low, 1) it estimates the mean over those times.

    Args:
        logprob: [B, L] nats, of the true token at each position given the masked sequence; unmasked positions are
            ignored.
        is_masked: [B, L] bool.
        times: [B] in (0, 1], the probability with which positions were masked.

    Returns:
        [B] float32 (float64 for float64), nats, <= 0.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> logprob = torch.tensor([[-1.0, -2.0, -3.0]])
        >>> elbo(logprob, torch.tensor([[True, False, True]]), torch.tensor([0.5]))
        tensor([-8.])
    """
    if logprob.shape != is_masked.shape or times.shape != logprob.shape[:1]:
        raise ValueError(
            "elbo: logprob [B, L], is_masked [B, L] and times [B] must agree on B and L; "
            f"got {tuple(logprob.shape)}, {tuple(is_masked.shape)}, {tuple(times.shape)}"
        )
    logprob = logprob.to(torch.promote_types(logprob.dtype, torch.float32))
    return logprob.masked_fill(~is_masked, 0.0).sum(dim=-1) / times.to(logprob.dtype)
