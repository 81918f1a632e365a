"""The distribution of a token: log-probabilities at a temperature and support, entropy, and
samples.

One definition serves sampling, replay and training. Most released code trains with another
temperature or support than it samples with, which biases the policy gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def _support(scaled: Float[Tensor, "*batch V"], top_k: int, top_p: float) -> Bool[Tensor, "*batch V"]:
    """Return [..., V] bool, True for the tokens that stay after the top-k limit and then the top-p
    limit."""
    # A stable sort breaks ties by token id: bf16 logits tie often, and a row's support must not
    # depend on its batch.
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[..., top_k:] = -torch.inf
    is_in = ranked > -torch.inf
    if top_p < 1:
        # float64: over a vocabulary of 126k tokens, the error of a float32 running sum exceeds the
        # probability of a rare token.
        probability = ranked.double().softmax(dim=-1)
        is_in &= probability.cumsum(dim=-1) - probability < top_p
    return torch.zeros_like(is_in).scatter_(-1, order, is_in)


def token_logprobs(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    always_allow: Int[Tensor, "*batch M"] | None = None,
) -> Float[Tensor, "*batch V"]:
    """Compute the log-probabilities of all tokens at a temperature, on a renormalised top-k and
    nucleus support.

    log p(v) = ℓ_v / τ - log Σ_{u ∈ S} exp(ℓ_u / τ) for v ∈ S, else -∞. S starts with the top_k most
    likely tokens, where ties go to the smaller id. Of these tokens, S keeps the smallest set of the
    most likely tokens whose renormalised probability reaches top_p (Holtzman et al.,
    arXiv:1904.09751), including the token that crosses top_p. Autograd treats S as constant.

    Args:
        logits: [..., V] real; -∞ forbids a token. At least one logit of each row must be finite.
        temperature: temperature τ > 0. Greedy decoding is an argmax, not a limit of this function.
        top_k: number of tokens in the support; 0 allows all.
        top_p: probability mass in (0, 1] of the support; 1 allows all.
        always_allow: [..., M] int64 tokens that are always in S. A token drawn earlier may fall
            just outside S when its logits are computed in another batch, and would then have
            log-probability -∞. A token with logit -∞ keeps this logit.

    Returns:
        [..., V] float32 (float64 for float64 logits), nats; -∞ outside S.

    Raises:
        ValueError: temperature, top_k or top_p is out of range, or the rows of always_allow and
            logits differ.

    Example:
        >>> logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
        >>> token_logprobs(logits, top_p=0.7).exp()           # 0.5 < 0.7 <= 0.5 + 0.25
        tensor([0.6667, 0.3333, 0.0000, 0.0000])
        >>> token_logprobs(logits, temperature=0.5, top_k=2, always_allow=torch.tensor([3])).exp()    # ∝ p²
        tensor([0.7752, 0.1938, 0.0000, 0.0310])
    """
    if not temperature > 0:
        raise ValueError(
            f"token_logprobs: temperature must be above 0; got {temperature}. Greedy decoding takes the argmax."
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"token_logprobs: needs top_k >= 0 and 0 < top_p <= 1; got top_k = {top_k}, top_p = {top_p}")
    if always_allow is not None and always_allow.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            "token_logprobs: always_allow [..., M] and logits [..., V] must agree in all axes but the last; "
            f"got {tuple(always_allow.shape)}, {tuple(logits.shape)}"
        )
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k or top_p < 1:
        support = _support(scaled.detach(), top_k, top_p)
        if always_allow is not None:
            support.scatter_(-1, always_allow, True)
        scaled = scaled.masked_fill(~support, -torch.inf)
    return scaled.log_softmax(dim=-1)


def token_entropy(logprobs: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Compute the Shannon entropy of each token distribution, H = -Σ_v p_v log p_v with 0 log 0 =
    0.

    Args:
        logprobs: [..., V] nats, normalised; -∞ for impossible tokens.

    Returns:
        [...] float32 (float64 for float64), nats, in [0, log V]. The gradient is finite at -∞ too.

    Example:
        >>> token_entropy(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).log()).abs()
        tensor([0.6931, 0.0000])
    """
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    # The lowest finite number replaces -inf: its product with probability 0 is 0, where -inf would
    # give NaN.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def sample_tokens(
    logprobs: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"] | Float[Tensor, "*batch M"]
) -> Int[Tensor, "*batch"] | Int[Tensor, "*batch M"]:
    """Draw tokens from each distribution by inverting its running sum: the first v with Σ_{u ≤ v}
    p_u > uniform.

    A token of probability 0 is never returned, for any uniform number and any rounding.

    Args:
        logprobs: [..., V] nats, normalised; -∞ for impossible tokens.
        uniform: [...] float64 in [0, 1), one number per row, or [..., M] for M draws per row, which
            share one running sum; see `unmask.functional.noise.counter_uniform`.

    Returns:
        int64 token ids, of uniform's shape.

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
    # Float32 log-probabilities sum to 1 only within about 1e-7, so the number is scaled by the
    # row's sum.
    threshold = (uniform.unsqueeze(-1) if is_single else uniform).double() * cumulative[..., -1:]
    if cumulative.device.type != "cpu":
        # Impossible tokens explicitly take the value before them: a parallel running sum may change
        # in the last bit across them. A CPU adds one number after the other, where adding 0 changes
        # nothing.
        cumulative = cumulative.masked_fill(~is_possible, 0.0).cummax(dim=-1).values
    first = torch.searchsorted(cumulative, threshold.contiguous(), right=True)
    last = logprobs.shape[-1] - 1 - is_possible.flip(-1).byte().argmax(dim=-1, keepdim=True)
    first = torch.minimum(first, last)
    return first.squeeze(-1) if is_single else first
