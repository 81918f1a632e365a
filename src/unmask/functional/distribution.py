"""The distribution that a token is drawn from: its log-probabilities at a temperature and support, its entropy, a draw.

One definition serves sampling, replay and training. Scoring at another temperature or support than the sampler's
biases the policy gradient; most released code does so.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def _support(scaled: Float[Tensor, "*batch V"], top_k: int, top_p: float) -> Bool[Tensor, "*batch V"]:
    """[..., V] bool: the top-k tokens, then the nucleus of those."""
    # A stable sort breaks ties by token id: bf16 logits tie often, and a row's support must not depend on its batch.
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[..., top_k:] = -torch.inf
    is_in = ranked > -torch.inf
    if top_p < 1:
        # float64: over a 126k vocabulary a float32 running sum is off by more than a rare token's probability.
        probability = ranked.double().softmax(dim=-1)
        is_in &= probability.cumsum(dim=-1) - probability < top_p
    return torch.zeros_like(is_in).scatter_(-1, order, is_in)


def token_logprobs(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    keep: Int[Tensor, "*batch M"] | None = None,
) -> Float[Tensor, "*batch V"]:
    """Log-probabilities of every token at a temperature, restricted to a top-k and nucleus support and renormalised.

    log p(v) = ℓ_v / τ - log Σ_{u ∈ S} exp(ℓ_u / τ) for v ∈ S, else -∞. S is the top_k likeliest tokens (ties to the
    smaller id), then the smallest set of the likeliest of those whose renormalised probability reaches top_p
    (Holtzman et al., arXiv:1904.09751), so that the token which crosses top_p is in. S is treated as constant by
    autograd.

    Args:
        logits: [..., V] real; -∞ forbids a token. At least one of each row must be finite.
        temperature: τ > 0. Greedy decoding is an argmax, not a limit of this function.
        top_k: keep so many; 0 keeps all.
        top_p: in (0, 1]; 1 keeps all.
        keep: [..., M] int64, tokens that stay in S. A token drawn earlier may fall just outside S when its logits are
            computed anew in another batch; without this its log-probability would be -∞. One of logit -∞ stays there.

    Returns:
        [..., V] float32 (float64 for float64 logits), nats; -∞ outside S.

    Raises:
        ValueError: temperature, top_k or top_p out of range, or keep of other rows.

    Example:
        >>> logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
        >>> token_logprobs(logits, top_p=0.7).exp()           # 0.5 < 0.7 <= 0.5 + 0.25
        tensor([0.6667, 0.3333, 0.0000, 0.0000])
        >>> token_logprobs(logits, temperature=0.5, top_k=2, keep=torch.tensor([3])).exp()    # ∝ p²
        tensor([0.7752, 0.1938, 0.0000, 0.0310])
    """
    if not temperature > 0:
        raise ValueError(
            f"token_logprobs: temperature must be above 0; got {temperature}. Greedy decoding takes the argmax."
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"token_logprobs: needs top_k >= 0 and 0 < top_p <= 1; got top_k = {top_k}, top_p = {top_p}")
    if keep is not None and keep.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            "token_logprobs: keep [..., M] and logits [..., V] must agree but for the last axis; "
            f"got {tuple(keep.shape)}, {tuple(logits.shape)}"
        )
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k or top_p < 1:
        support = _support(scaled.detach(), top_k, top_p)
        if keep is not None:
            support.scatter_(-1, keep, True)
        scaled = scaled.masked_fill(~support, -torch.inf)
    return scaled.log_softmax(dim=-1)


def token_entropy(logprobs: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy of each token distribution, H = -Σ_v p_v log p_v with 0 log 0 = 0.

    Args:
        logprobs: [..., V] nats, normalised; -∞ for impossible tokens.

    Returns:
        [...] float32 (float64 for float64), nats, in [0, log V]. Its gradient is finite at -∞ too.

    Example:
        >>> token_entropy(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).log()).abs()
        tensor([0.6931, 0.0000])
    """
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    # The lowest finite number in place of -inf: its product with a probability of 0 is 0, where -inf would give NaN.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def sample_tokens(
    logprobs: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"] | Float[Tensor, "*batch M"]
) -> Int[Tensor, "*batch"] | Int[Tensor, "*batch M"]:
    """Tokens from each distribution by inverting its running sum: the first v with Σ_{u ≤ v} p_u > uniform.

    A token of probability 0 is never returned, whatever the number and the rounding.

    Args:
        logprobs: [..., V] nats, normalised; -∞ for impossible tokens.
        uniform: [...] float64 in [0, 1), one for each row, or [..., M] for M draws from each, whose running sum is made once;
            see `unmask.functional.noise.counter_uniform`.

    Returns:
        uniform's shape, int64 token ids.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> logprobs = torch.tensor([0.0, 0.25, 0.75, 0.0]).log()
        >>> sample_tokens(logprobs.expand(3, 4), torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64))
        tensor([1, 1, 2])
        >>> sample_tokens(logprobs, torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64))
        tensor([1, 1, 2])
    """
    is_single = uniform.shape == logprobs.shape[:-1]
    if not is_single and uniform.shape[:-1] != logprobs.shape[:-1]:
        raise ValueError(
            "sample_tokens: uniform must have the shape of logprobs without V, or with the number of draws in its place; "
            f"got {tuple(uniform.shape)}, {tuple(logprobs.shape)}"
        )
    probability = logprobs.double().exp()
    is_possible = probability > 0
    cumulative = probability.cumsum(dim=-1)
    # Scaled by the row's own sum, which float32 log-probabilities leave about 1e-7 from 1.
    threshold = (uniform.unsqueeze(-1) if is_single else uniform).double() * cumulative[..., -1:]
    if cumulative.device.type != "cpu":
        # Impossible tokens take the value before them, by name: a parallel running sum may differ in the last bit across one. A
        # CPU adds them one after the other, and 0 changes nothing.
        cumulative = cumulative.masked_fill(~is_possible, 0.0).cummax(dim=-1).values
    first = torch.searchsorted(cumulative, threshold.contiguous(), right=True)
    last = logprobs.shape[-1] - 1 - is_possible.flip(-1).byte().argmax(dim=-1, keepdim=True)
    first = torch.minimum(first, last)
    return first.squeeze(-1) if is_single else first
