"""Times, masks and weights of the masked-diffusion bound on log p(x) (MDLM, arXiv:2406.07524;
LLaDA, arXiv:2502.09992).

Under the linear schedule each position is masked with probability t, where t is uniform on (0, 1),
and

    log p(x) ≥ ELBO(x) = E_t E_{x_t} [ (1/t) Σ_{i masked} log p_θ(x_i | x_t) ].

Averaged over t, a set of l masked positions out of L has weight 1 / (l C(L, l)), so the same bound
is a mean over the number l of masked positions:

    ELBO(x) = E_{l ~ U{1..L}} E_{S, |S| = l} [ (L/l) Σ_{i ∈ S} log p_θ(x_i | x without S) ].

Every estimate in this module is unbiased, except at the fixed times of a quadrature, which has an
error of its own.

Two things differ from the papers. Times and counts (numbers of masked positions) are stratified.
Random times start at a small positive value, because the weight 1/t is unbounded.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def stratified_times(count: int, low: float, generator: torch.Generator) -> Float[Tensor, "{count}"]:
    """Draw the diffusion times of a batch: one uniform number in each of `count` equal strata of
    [low, 1), in random order.

    Each entry alone is uniform on [low, 1). Together the entries cover the range evenly, which
    lowers the variance of a batch's ELBO (the low-discrepancy sampler of VDM, arXiv:2107.00630,
    with independent jitter in each stratum).

    Args:
        count: number of times.
        low: smallest time, in (0, 1): an ELBO term is at most 1/low times its log-probability.
        generator: source of randomness; the result is on its device.

    Returns:
        [count] float32 in [low, 1).

    Raises:
        ValueError: count is below 1, or low is out of range.

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


def mask_at_times(
    times: Float[Tensor, "B"], is_maskable: Bool[Tensor, "B L"], generator: torch.Generator
) -> Bool[Tensor, "B L"]:
    """Apply the forward process q(x_t | x): mask each maskable position independently with
    probability t.

    Args:
        times: [B] in [0, 1].
        is_maskable: [B, L] bool, False at prompt and padding positions.
        generator: source of randomness.

    Returns:
        [B, L] bool. A row without a mask is possible; its ELBO term is 0, which is correct in
        expectation.

    Raises:
        ValueError: the arguments disagree on B.

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


def elbo(
    logprob: Float[Tensor, "B L"], is_masked: Bool[Tensor, "B L"], times: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Estimate the ELBO from one sample, (1/t) Σ_{i masked} log p_θ(x_i | x_t).

    The result estimates a lower bound of log p(x); it is not a log-probability. It is unbiased for
    t uniform on (0, 1); with t from [low, 1) it estimates the mean over those times.

    Args:
        logprob: [B, L] nats, log-probability of the true token at each position given the masked
            sequence; unmasked positions are ignored.
        is_masked: [B, L] bool, True at masked positions.
        times: [B] in (0, 1], probability with which positions were masked.

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


def stratified_counts(
    num_positions: Int[Tensor, "B"], num_draws: int, least: int, generator: torch.Generator
) -> Int[Tensor, "B {num_draws}"]:
    """Draw the numbers of positions to mask: `num_draws` for each completion, spread evenly over
    draws and completions.

    All draws share one uniform shift u. Draw m of completion b is the point (u + m/M +
    rank_b/(B·M)) mod 1, where rank is a random permutation. The count is the number at this
    fraction of the range {least..n_b}. Each count alone is uniform in the range, so the estimate
    stays unbiased; together the B M points are evenly spaced. ESPO (arXiv:2512.03759) spaces the
    completions of a batch like this, and BGPO (arXiv:2510.11683) the draws of one completion.

    Args:
        num_positions: [B] int, number n_b of positions that may be masked.
        num_draws: number of draws M >= 1.
        least: smallest count: 1, or 0 if the empty set may be drawn (coupled masks).
        generator: source of randomness.

    Returns:
        [B, M] int64 in {least..n_b}; 0 for a completion without positions.

    Raises:
        ValueError: num_draws is below 1, or least is neither 0 nor 1.

    Example:
        >>> counts = stratified_counts(torch.tensor([4, 4]), 2, 1, torch.Generator().manual_seed(0))
        >>> counts.flatten().sort().values
        tensor([1, 2, 3, 4])
    """
    if num_draws < 1 or least not in (0, 1):
        raise ValueError(
            f"stratified_counts: needs num_draws >= 1 and least 0 or 1; got num_draws = {num_draws}, least = {least}"
        )
    num_rows, device = len(num_positions), num_positions.device
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    rank = torch.randperm(num_rows, generator=generator).double().unsqueeze(-1)
    point = (shift + torch.arange(num_draws) / num_draws + rank / (num_rows * num_draws)).frac().to(device)
    most = num_positions.unsqueeze(-1)
    return torch.minimum(least + (point * (most - least + 1)).long(), most)


def masks_of_counts(
    counts: Int[Tensor, "B M"], is_maskable: Bool[Tensor, "B L"], generator: torch.Generator
) -> Bool[Tensor, "B M L"]:
    """Draw sets of positions to mask, each of a given size and uniform among the sets of that size.

    Args:
        counts: [B, M] int sizes, at most the number of maskable positions of the row.
        is_maskable: [B, L] bool.
        generator: source of randomness.

    Returns:
        [B, M, L] bool.

    Raises:
        ValueError: the arguments disagree on B.

    Example:
        >>> is_maskable = torch.tensor([[False, True, True, True]])
        >>> masks = masks_of_counts(torch.tensor([[3, 1]]), is_maskable, torch.Generator().manual_seed(0))
        >>> masks.sum(-1), bool(masks[0, :, 0].any())
        (tensor([[3, 1]]), False)
    """
    if len(counts) != len(is_maskable):
        raise ValueError(
            "masks_of_counts: counts [B, M] and is_maskable [B, L] must agree on B; "
            f"got {tuple(counts.shape)}, {tuple(is_maskable.shape)}"
        )
    shape = (*counts.shape, is_maskable.shape[1])
    noise = torch.rand(shape, generator=generator, dtype=torch.float64).to(counts.device)
    noise = noise.masked_fill(~is_maskable.unsqueeze(1), 2.0)
    return noise.argsort(-1).argsort(-1) < counts.unsqueeze(-1)


def coupled_masks(masks: Bool[Tensor, "B M L"], is_maskable: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 2*M L"]:
    """Insert the complement of each set after it, so that every maskable position is masked in
    exactly one of the two sets.

    Args:
        masks: [B, M, L] bool, subsets of is_maskable.
        is_maskable: [B, L] bool.

    Returns:
        [B, 2 M, L] bool, each set followed by its complement.

    Example:
        >>> masks = torch.tensor([[[True, False, False]]])
        >>> coupled_masks(masks, torch.tensor([[True, True, False]])).int()
        tensor([[[1, 0, 0],
                 [0, 1, 0]]], dtype=torch.int32)
    """
    return torch.stack([masks, is_maskable.unsqueeze(1) & ~masks], dim=2).flatten(1, 2)


def elbo_weight(
    masks: Bool[Tensor, "B M L"], is_maskable: Bool[Tensor, "B L"], *, coupled: bool
) -> Float[Tensor, "B M"]:
    """Compute the weight of each set: the set's log-probabilities, summed and multiplied by the
    weight, estimate the ELBO.

    The weight is n/l for a count l uniform on {1..n}. It is (n+1)/l if l is uniform on {0..n}, as
    in a coupled pair (a set and its complement). The complement has the weight (n+1)/(n-l). Both
    estimates have the expectation Σ_l (1/l) E_{|S|=l}[...]. The two estimates of a pair are
    averaged, not added.

    Args:
        masks: [B, M, L] bool.
        is_maskable: [B, L] bool, True at n positions.
        coupled: True for halves of coupled pairs.

    Returns:
        [B, M] float32; 0 for an empty set.

    Example:
        >>> masks = torch.tensor([[[True, True, False], [False, False, True]]])
        >>> elbo_weight(masks, torch.ones(1, 3, dtype=torch.bool), coupled=True)
        tensor([[2., 4.]])
    """
    count = masks.sum(-1)
    total = is_maskable.sum(-1, keepdim=True) + int(coupled)
    return (total / count.clamp(min=1)).masked_fill(count == 0, 0.0)


def gauss_legendre(num_nodes: int) -> tuple[Float[Tensor, "{num_nodes}"], Float[Tensor, "{num_nodes}"]]:
    """Return the nodes and weights of Gauss-Legendre quadrature on (0, 1): ∫ f ≈ Σ_m w_m f(t_m),
    exact up to degree 2 M - 1.

    Args:
        num_nodes: number of nodes M >= 1.

    Returns:
        Two [M] float64 tensors: the nodes in ascending order, and the weights, which sum to 1.

    Raises:
        ValueError: num_nodes is below 1.

    Example:
        >>> gauss_legendre(2)
        (tensor([0.2113, 0.7887], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    if num_nodes < 1:
        raise ValueError(f"gauss_legendre: num_nodes must be at least 1; got {num_nodes}")
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(num_nodes)  # on (-1, 1), where the weights sum to 2
    return torch.from_numpy(nodes + 1) / 2, torch.from_numpy(weights) / 2
