"""Selection of denoising steps by the surprisal of the tokens that they committed (RLDF,
arXiv:2605.25638).

The surprisal of a token is -log p of the token that was drawn; its expectation is the entropy by
which EGSPO selects. RLDF draws K steps without replacement, in proportion to exp(s_k / τ), where
s_k is the mean surprisal of the step's tokens. At τ = 0 these are the K steps of largest surprisal,
and an infinite τ draws all steps alike. The surprisal depends on the action of the step, so without
weights the drawn steps are a biased sample, at any τ but infinity.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.functional.selection import (
    candidate_steps,
    highest_steps,
    inclusion_probability,
    selection_noise,
    step_sum,
    systematic_steps,
)


def mean_surprisal(
    logprob: Float[Tensor, "B L"], unmask_step: Int[Tensor, "B L"], num_steps: int
) -> Float[Tensor, "B {num_steps}"]:
    """Compute the mean surprisal of the tokens of each step, s_k = -(1/|U_k|) Σ_{i ∈ U_k} log p_i.

    Args:
        logprob: [B, L] real, nats: log-probability of each token when it was committed.
        unmask_step: [B, L] int; entries outside 0..T-1 do not count.
        num_steps: number of steps, T.

    Returns:
        [B, T] float64, nats; 0 for a step that committed nothing.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> mean_surprisal(torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[1, 0, 1]]), num_steps=3)
        tensor([[2.0000, 2.5000, 0.0000]], dtype=torch.float64)
    """
    total = step_sum(-logprob.double(), unmask_step, num_steps)
    return total / step_sum(torch.ones_like(logprob), unmask_step, num_steps).clamp(min=1)


def surprisal_mass(
    surprisal: Float[Tensor, "B T"], is_candidate: Bool[Tensor, "B T"], temperature: float
) -> Float[Tensor, "B T"]:
    """Compute the probability of each step in a single draw, exp(s_k / τ) / Σ exp(s / τ) over the
    candidates.

    Args:
        surprisal: [B, T] real, nats: mean surprisal of each step.
        is_candidate: [B, T] bool.
        temperature: τ >= 0. At 0, the candidates of largest surprisal share the probability.

    Returns:
        [B, T] float64; the sum of a row is 1, or 0 for a row without candidates.

    Raises:
        ValueError: the temperature is negative.

    Example:
        >>> surprisal = torch.tensor([[0.0, 2.0, 9.0]])
        >>> surprisal_mass(surprisal, torch.tensor([[True, True, False]]), 2 / 1.0986123)    # 2 / ln 3
        tensor([[0.2500, 0.7500, 0.0000]], dtype=torch.float64)
    """
    if temperature < 0:
        raise ValueError(f"surprisal_mass: temperature must be 0 or more; got {temperature}")
    if temperature == 0:
        largest = surprisal.masked_fill(~is_candidate, -torch.inf).amax(-1, keepdim=True)
        is_largest = (is_candidate & (surprisal == largest)).double()
        return is_largest / is_largest.sum(-1, keepdim=True).clamp(min=1)
    logits = (surprisal.double() / temperature).masked_fill(~is_candidate, -torch.inf)
    return logits.softmax(-1).masked_fill(~is_candidate, 0.0)


def surprisal_priority(
    surprisal: Float[Tensor, "B T"], temperature: float, noise: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Compute priorities whose K largest are K draws without replacement in proportion to exp(s_k /
    τ).

    The priority is s_k / τ + g_k with Gumbel noise g_k = -log(-log u_k) (Gumbel-top-k,
    arXiv:1903.06059), so a step's priority depends on that step alone.

    Args:
        surprisal: [B, T] real, nats: mean surprisal of each step.
        temperature: τ >= 0. At 0 the priority is the surprisal; an infinite τ leaves the noise.
        noise: [B, T] float64 in [0, 1), independent for each step.

    Returns:
        [B, T] float64.

    Raises:
        ValueError: the temperature is negative.

    Example:
        >>> surprisal_priority(torch.tensor([[0.5, 2.0]]), 0.0, torch.zeros(1, 2, dtype=torch.float64))
        tensor([[0.5000, 2.0000]], dtype=torch.float64)
    """
    if temperature < 0:
        raise ValueError(f"surprisal_priority: temperature must be 0 or more; got {temperature}")
    if temperature == 0:
        return surprisal.double()
    # A priority of -inf would rank with the steps that are not candidates.
    return surprisal.double() / temperature - (-noise.clamp(min=2**-64).log()).log()


def surprisal_steps(
    num_selected: int,
    temperature: float,
    logprob: Float[Tensor, "B L"],
    unmask_step: Int[Tensor, "B L"],
    is_eos: Bool[Tensor, "B L"],
    seed: Int[Tensor, "B"],
    num_steps: int,
    *,
    with_inverse: bool,
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Select K steps of each trajectory by surprisal, and return their inverse probabilities.

    `with_inverse` chooses how the K steps are drawn. False is RLDF's rule: draws without
    replacement, from the steps up to the last non-EOS step. The probability that such draws include
    a step has no closed form. True is the rule that can be unbiased: systematic sampling, in which
    a step has the inclusion probability π_k = `inclusion_probability` of `surprisal_mass`, from all
    steps that committed a token. Weighted by 1 / π_k, the sum over the drawn steps is unbiased,
    although the surprisals depend on the drawn tokens (Horvitz and Thompson 1952).

    Args:
        num_selected: number of selected steps K >= 1.
        temperature: τ >= 0.
        logprob: [B, L] real, nats: log-probability of each token when it was committed.
        unmask_step: [B, L] int.
        is_eos: [B, L] bool.
        seed: [B] int64 seeds of the rows.
        num_steps: number of steps, T.
        with_inverse: see above.

    Returns:
        [B, K] int64 steps, -1 in an empty slot, and [B, K] float64 weights: 1 / π_k with
        `with_inverse`, otherwise 1; 0 in an empty slot.

    Example:
        >>> logprob, unmask_step = torch.tensor([[-1.0, -3.0, -2.0]]), torch.tensor([[0, 1, 2]])
        >>> is_eos, seed = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([0])
        >>> surprisal_steps(2, 0.0, logprob, unmask_step, is_eos, seed, 3, with_inverse=False)[0]
        tensor([[1, 2]])
    """
    surprisal, noise = mean_surprisal(logprob, unmask_step, num_steps), selection_noise(seed, num_steps)
    is_candidate = candidate_steps(unmask_step, is_eos & (not with_inverse), num_steps)
    if with_inverse:
        mass = surprisal_mass(surprisal, is_candidate, temperature)
        probability = inclusion_probability(mass, is_candidate, num_selected)
        steps = systematic_steps(probability, num_selected, noise)
        weight = probability.gather(-1, steps.clamp(min=0)).reciprocal()
    else:
        steps = highest_steps(surprisal_priority(surprisal, temperature, noise), is_candidate, num_selected)
        weight = torch.ones(steps.shape, dtype=torch.float64, device=steps.device)
    return steps, weight.masked_fill(steps < 0, 0.0)
