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
    # The k largest logits take a tenth of the time of sorting a large vocabulary.
    largest = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1) if top_k else scaled.sort(dim=-1, descending=True)
    ranked = largest.values
    is_in = ranked > -torch.inf
    if top_p < 1:
        # float64: over a vocabulary of 126k tokens, the error of a float32 running sum exceeds the
        # probability of a rare token.
        probability = ranked.double().softmax(dim=-1)
        is_in &= probability.cumsum(dim=-1) - probability < top_p
    return _likeliest(scaled, ranked, is_in.sum(dim=-1, keepdim=True))


def _likeliest(
    scaled: Float[Tensor, "*batch V"], ranked: Float[Tensor, "*batch R"], num: Int[Tensor, "*batch 1"]
) -> Bool[Tensor, "*batch V"]:
    """Return [..., V] bool, True for the `num` most likely tokens of each row, whose largest logits
    are `ranked`.

    Ties go to the smaller token id: bf16 logits tie often, and a row's support must not depend on
    its batch.
    """
    least = ranked.gather(-1, (num - 1).clamp(min=0))
    is_above, is_tied = scaled > least, scaled == least
    return is_above | is_tied & (is_tied.cumsum(dim=-1, dtype=torch.int32) <= num - is_above.sum(-1, keepdim=True))


def token_logprobs(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    always_allow: Int[Tensor, "*batch M"] | None = None,
    support: Int[Tensor, "*batch A"] | None = None,
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
        support: [..., A] int tokens of S in place of those that top_k and top_p find in the logits,
            with -1 in empty entries; a row of empty entries alone has no such tokens, and then
            top_k and top_p apply.

    Returns:
        [..., V] float32 (float64 for float64 logits), nats; -∞ outside S.

    Raises:
        ValueError: temperature, top_k or top_p is out of range, or the rows of always_allow, of
            support and of the logits differ.

    Example:
        >>> logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
        >>> token_logprobs(logits, top_p=0.7).exp()           # 0.5 < 0.7 <= 0.5 + 0.25
        tensor([0.6667, 0.3333, 0.0000, 0.0000])
        >>> token_logprobs(logits, temperature=0.5, top_k=2, always_allow=torch.tensor([3])).exp()    # ∝ p²
        tensor([0.7752, 0.1938, 0.0000, 0.0310])
        >>> token_logprobs(logits, top_k=2, support=torch.tensor([0, 3])).exp()    # not the two most likely tokens
        tensor([0.8333, 0.0000, 0.0000, 0.1667])
    """
    if not temperature > 0:
        raise ValueError(
            f"token_logprobs: temperature must be above 0; got {temperature}. Greedy decoding takes the argmax."
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"token_logprobs: needs top_k >= 0 and 0 < top_p <= 1; got top_k = {top_k}, top_p = {top_p}")
    for name, tokens in (("always_allow [..., M]", always_allow), ("support [..., A]", support)):
        if tokens is not None and tokens.shape[:-1] != logits.shape[:-1]:
            raise ValueError(
                f"token_logprobs: {name} and logits [..., V] must agree in all axes but the last; "
                f"got {tuple(tokens.shape)}, {tuple(logits.shape)}"
            )
    return scaled_logits(logits, temperature, top_k, top_p, always_allow, support).log_softmax(dim=-1)


def centred(logprobs: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """Subtract from log-probabilities their mean over the support, which leaves scores that do not
    depend on the normaliser: ℓ_v / τ - mean of ℓ / τ for logits ℓ.

    GDSD (arXiv:2605.29398) regresses such scores ("token-level logit centralisation").

    Args:
        logprobs: [..., V] nats, differentiable; -∞ outside the support.

    Returns:
        [..., V] real; -∞ outside the support.

    Example:
        >>> centred(torch.tensor([0.5, 0.25, 0.25, 0.0]).log())
        tensor([ 0.4621, -0.2310, -0.2310,    -inf])
    """
    is_possible = logprobs > -torch.inf
    total = logprobs.masked_fill(~is_possible, 0.0).sum(dim=-1, keepdim=True)
    return logprobs - total / is_possible.sum(dim=-1, keepdim=True)


def scaled_logits(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    always_allow: Int[Tensor, "*batch M"] | None = None,
    support: Int[Tensor, "*batch A"] | None = None,
) -> Float[Tensor, "*batch V"]:
    """Compute the logits of `token_logprobs` before they are normalised: ℓ_v / τ for v ∈ S, else
    -∞.

    Args:
        logits: [..., V] real; see `token_logprobs`, as for the other arguments.
        temperature: temperature τ > 0.
        top_k: number of tokens in the support; 0 allows all.
        top_p: probability mass in (0, 1] of the support; 1 allows all.
        always_allow: [..., M] int64 tokens that are always in S.
        support: [..., A] int tokens of S; see `token_logprobs`.

    Returns:
        [..., V] float32 (float64 for float64 logits).

    Example:
        >>> scaled_logits(torch.tensor([3.0, 2.0, 1.0]), temperature=0.5, top_k=2)
        tensor([6., 4., -inf])
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k or top_p < 1:
        is_in = (
            _support(scaled.detach(), top_k, top_p)
            if support is None
            else _given_support(scaled, top_k, top_p, support)
        )
        if always_allow is not None:
            is_in.scatter_(-1, always_allow, True)
        scaled = scaled.masked_fill(~is_in, -torch.inf)
    return scaled


def _given_support(
    scaled: Float[Tensor, "*batch V"], top_k: int, top_p: float, support: Int[Tensor, "*batch A"]
) -> Bool[Tensor, "*batch V"]:
    """Return [..., V] bool, True for the tokens of a given support; the support of the logits where
    none is given."""
    is_in = torch.zeros_like(scaled, dtype=torch.bool)
    is_given = support >= 0
    # An empty entry stands for the first token of its row, which is there anyway.
    first = support.gather(-1, is_given.byte().argmax(-1, keepdim=True))
    is_in.scatter_(-1, torch.where(is_given, support, first).clamp(min=0).long(), True)
    is_missing = ~is_given.any(-1)
    is_in[is_missing] = _support(scaled.detach()[is_missing], top_k, top_p)
    return is_in


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
    logits: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"] | Float[Tensor, "*batch M"]
) -> Int[Tensor, "*batch"] | Int[Tensor, "*batch M"]:
    """Draw tokens from each distribution by inverting its running sum: the first v with Σ_{u ≤ v}
    p_u > uniform.

    A token of probability 0 is never returned, for any uniform number and any rounding.

    Args:
        logits: [..., V] logits or log-probabilities; -∞ for impossible tokens.
        uniform: [...] float64 in [0, 1), one number per row, or [..., M] for M draws per row; see
            `unmask.functional.noise.counter_uniform`.

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
    return sample_with_logprobs(logits, uniform)[0]


def sample_with_logprobs(logits: Float[Tensor, "*batch V"], uniform: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """Draw tokens as `sample_tokens` does, and compute the log-probability of each.

    The probabilities are added up in chunks: a running sum in float64 over all tokens would take
    most of the time of a denoising step with a large vocabulary. Sums over the chunks find the
    chunk of a draw, and a running sum within the chunk finds its token.

    Args:
        logits: [..., V] logits or log-probabilities; -∞ for impossible tokens.
        uniform: [...] or [..., M] float64 in [0, 1); see `sample_tokens`.

    Returns:
        int64 token ids of uniform's shape, and their log-probabilities in the dtype of the logits,
        at least float32.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> tokens, logprobs = sample_with_logprobs(torch.tensor([1.0, 3.0]).log(), torch.tensor(0.5).double())
        >>> int(tokens), round(float(logprobs.exp()), 4)
        (1, 0.75)
    """
    is_single = uniform.shape == logits.shape[:-1]
    if not is_single and uniform.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            "sample_tokens: uniform must have the shape of the logits without V, or with the number of draws in its "
            f"place; got {tuple(uniform.shape)}, {tuple(logits.shape)}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = logits.amax(dim=-1, keepdim=True)
    weights = (logits - largest).exp_()
    sums = _chunk_sums(weights)
    cumulative = sums.cumsum(dim=-1)
    total = cumulative[..., -1:]
    # The number is scaled by the sum, because the weights do not sum to 1.
    threshold = (uniform.unsqueeze(-1) if is_single else uniform).double() * total
    if sums.shape[-1] == 1:
        tokens = _first_above(weights, threshold)
    else:
        chunk = _first_above(sums, threshold)
        before = (cumulative.gather(-1, (chunk - 1).clamp_min(0))).masked_fill(chunk == 0, 0.0)
        column = (chunk * _CHUNK).unsqueeze(-1) + torch.arange(_CHUNK, device=logits.device)
        is_in = column < logits.shape[-1]
        picked = weights.gather(-1, column.clamp_max(logits.shape[-1] - 1).flatten(-2)).view(column.shape)
        inside = _first_above(picked.where(is_in, 0.0), (threshold - before).unsqueeze(-1))
        tokens = chunk * _CHUNK + inside.squeeze(-1)
    logprobs = (logits.gather(-1, tokens) - largest - total.log()).to(logits.dtype)
    return (tokens.squeeze(-1), logprobs.squeeze(-1)) if is_single else (tokens, logprobs)


_CHUNK = 512
"""Number of tokens in a chunk of a vocabulary."""


def _chunk_sums(weights: Tensor) -> Tensor:
    """Return the float64 sums [..., C] of the chunks of [..., V] weights; the last chunk may be
    short."""
    whole = weights.shape[-1] // _CHUNK * _CHUNK
    sums = weights[..., :whole].unflatten(-1, (-1, _CHUNK)).sum(dim=-1) if whole else weights[..., :0]
    rest = weights[..., whole:].sum(dim=-1, keepdim=True) if whole < weights.shape[-1] else weights[..., :0]
    return torch.cat([sums, rest], dim=-1).double()


def _first_above(weights: Tensor, threshold: Tensor) -> Tensor:
    """Return the first indices [..., M] at which the running sum of [..., n] weights exceeds the
    thresholds [..., M], or the last index of positive weight. Weights of 0 are never chosen."""
    is_possible = weights > 0
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    if cumulative.device.type != "cpu":
        # Weights of 0 explicitly take the value before them: a parallel running sum may change in
        # the last bit across them. A CPU adds one number after the other, where adding 0 changes
        # nothing.
        cumulative = cumulative.masked_fill(~is_possible, 0.0).cummax(dim=-1).values
    first = torch.searchsorted(cumulative, threshold.contiguous(), right=True)
    last = weights.shape[-1] - 1 - is_possible.flip(-1).byte().argmax(dim=-1, keepdim=True)
    return torch.minimum(first, last)
