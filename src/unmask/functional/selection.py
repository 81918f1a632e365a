"""Selection of the denoising steps of a trajectory that are trained (EGSPO, arXiv:2603.12554).

EGSPO shows that the gradient lost with the dropped steps is at most a constant times their entropy,
and therefore keeps the K steps of largest joint entropy. The other rules serve as comparisons.

Three things differ from the released code. Ties go to the earlier step. If there are fewer than K
candidates, slots stay empty, and no step is repeated. Steps that commit only EOS after the end of
the answer are candidates only for the rules in `WHOLE_RULES`; all other rules choose from the same
candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from unmask.functional.noise import SELECTION_STREAM, counter_uniform

RULES: tuple[str, ...] = (
    "entropy_topk",
    "entropy_sampled",
    "uniform",
    "low_discrepancy",
    "last_k",
    "lowest_entropy",
    "all",
)
"""Names of the selection rules of `select_steps`."""

WHOLE_RULES: tuple[str, ...] = ("all", "entropy_sampled")
"""Rules whose candidates are all steps that committed a token, so that they can be unbiased."""

PRIORITY_RULES: tuple[str, ...] = ("entropy_topk", "uniform", "last_k", "lowest_entropy")
"""Rules that select the K steps of highest priority. The priority of a step is known at that step,
so a running top-K can apply these rules."""


ENTROPY_FLOOR = 0.1
"""Share of the selection probability that `entropy_sampled` distributes evenly."""


def step_sum(
    values: Shaped[Tensor, "B L"], unmask_step: Int[Tensor, "B L"], num_steps: int
) -> Float[Tensor, "B {num_steps}"]:
    """Sum a per-token quantity over the positions committed at each step, Σ_{i ∈ U_k} values_i.

    The sum of entropies is the joint entropy H_k of the step, and the sum of log-probabilities is
    the step's log-probability given U_k, because the model draws the tokens of one step
    independently.

    Args:
        values: [B, L] real.
        unmask_step: [B, L] int; entries outside 0..T-1 do not count.
        num_steps: number of steps, T.

    Returns:
        [B, T] float32 (float64 for float64); 0 for a step that committed nothing.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> step_sum(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1, 0, 1, -1]]), num_steps=3)
        tensor([[2., 5., 0.]])
    """
    if values.shape != unmask_step.shape:
        raise ValueError(
            "step_sum: values and unmask_step must have one shape [B, L]; "
            f"got {tuple(values.shape)}, {tuple(unmask_step.shape)}"
        )
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    is_counted = (unmask_step >= 0) & (unmask_step < num_steps)
    column = unmask_step.long().masked_fill(~is_counted, num_steps)
    sums = values.new_zeros(*values.shape[:-1], num_steps + 1).scatter_add(-1, column, values)
    return sums[..., :num_steps]


def candidate_steps(
    unmask_step: Int[Tensor, "B L"], is_eos: Bool[Tensor, "B L"], num_steps: int
) -> Bool[Tensor, "B {num_steps}"]:
    """Return the steps that may be selected: the steps that committed a token, up to the last step
    that committed a non-EOS token.

    In a row that committed only EOS, all steps that committed a token are candidates, so that a
    policy can learn from an empty answer.

    Args:
        unmask_step: [B, L] int; entries outside 0..T-1 do not count.
        is_eos: [B, L] bool, True if the committed token is EOS.
        num_steps: number of steps, T.

    Returns:
        [B, T] bool.

    Raises:
        ValueError: the shapes disagree.

    Example:
        >>> step = torch.tensor([[0, 1, 3, 4], [0, 0, 2, 2]])
        >>> is_eos = torch.tensor([[False, True, False, True], [True, True, True, True]])
        >>> candidate_steps(step, is_eos, num_steps=5).int()
        tensor([[1, 1, 0, 1, 0],
                [1, 0, 1, 0, 0]], dtype=torch.int32)
    """
    has_committed = step_sum(torch.ones_like(is_eos), unmask_step, num_steps) > 0
    has_text = step_sum(~is_eos, unmask_step, num_steps) > 0
    text_to_come = has_text.flip(-1).cumsum(dim=-1).flip(-1) > 0
    return has_committed & (text_to_come | ~has_text.any(dim=-1, keepdim=True))


def step_priority(
    rule: str, entropy: Float[Tensor, "*batch"], step: Tensor | int, noise: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Compute the priority of each step, for a rule that selects the K steps of highest priority.

    The priority is the joint entropy H for entropy_topk, -H for lowest_entropy (a negative
    control), the index of the step for last_k, and the noise for uniform.

    Args:
        rule: one of these four rules.
        entropy: [...] real, nats: joint entropy of the step.
        step: index of the step, an int or a tensor that broadcasts to entropy.
        noise: [...] in [0, 1), independent for each step.

    Returns:
        [...] float64, without rounding.

    Raises:
        ValueError: the rule has no priority ("entropy_sampled", "low_discrepancy", "all") or is
            unknown.

    Example:
        >>> step_priority("lowest_entropy", torch.tensor([1.5, 0.5]), torch.arange(2), torch.zeros(2))
        tensor([-1.5000, -0.5000], dtype=torch.float64)
    """
    if rule == "entropy_topk":
        return entropy.double()
    if rule == "lowest_entropy":
        return -entropy.double()
    if rule == "last_k":
        return torch.as_tensor(step, dtype=torch.float64, device=entropy.device).expand_as(entropy)
    if rule == "uniform":
        return noise.double()
    raise ValueError(f'step_priority: rule "{rule}" has no priority. Those that have: {", ".join(PRIORITY_RULES)}.')


def _evenly_spaced(
    is_candidate: Bool[Tensor, "B T"], num_selected: int, noise: Float[Tensor, "B T"]
) -> Int[Tensor, "B {num_selected}"]:
    """Return the candidates floor((u + j) C / K) for slots j, [B, K] int64; all C if C < K; -1 in
    an empty slot."""
    count = is_candidate.sum(dim=-1, keepdim=True)
    slot = torch.arange(num_selected, device=is_candidate.device)
    # 32-bit fixed point is exact. In floating point, u + j can round up to j + 1 and select one
    # candidate twice.
    spaced = ((noise[:, :1].double() * 2**32).long() + slot * 2**32) * count // (num_selected * 2**32)
    rank = torch.where(count < num_selected, slot, spaced)
    chronological = (~is_candidate).byte().argsort(dim=-1, stable=True)
    step = chronological.gather(-1, rank.clamp(max=is_candidate.shape[-1] - 1))
    return step.masked_fill(rank >= count, -1)


def inclusion_probability(
    entropy: Float[Tensor, "B T"], is_candidate: Bool[Tensor, "B T"], num_selected: int, floor: float = ENTROPY_FLOOR
) -> Float[Tensor, "B T"]:
    """Compute the probability with which `entropy_sampled` selects each step. The probability grows
    with the step's entropy and has a floor above 0. The probabilities sum to K.

    π_k = min(1, c ((1 - f) H_k / Σ H + f / C)), with c such that Σ_k π_k = min(K, C). Weighting
    each selected step by 1 / π_k makes the sum unbiased, whatever the entropies depend on (Horvitz
    and Thompson 1952). The floor bounds the weights by C / (f K).

    Args:
        entropy: [B, T] real >= 0, nats: joint entropy of each step.
        is_candidate: [B, T] bool, True at C steps.
        num_selected: number of selected steps K >= 1.
        floor: share f in (0, 1] that is distributed evenly; 1 is uniform.

    Returns:
        [B, T] float64 in [0, 1]; 0 for steps that are not candidates.

    Raises:
        ValueError: floor is out of range.

    Example:
        >>> entropy = torch.tensor([[0.0, 1.0, 3.0, 0.0]])
        >>> inclusion_probability(entropy, torch.tensor([[True, True, True, False]]), 1, floor=0.3)
        tensor([[0.1000, 0.2750, 0.6250, 0.0000]], dtype=torch.float64)
    """
    if not 0 < floor <= 1:
        raise ValueError(f"inclusion_probability: floor must be in (0, 1]; got {floor}")
    entropy = entropy.double().clamp(min=0).masked_fill(~is_candidate, 0.0)
    count = is_candidate.sum(dim=-1, keepdim=True)
    total = entropy.sum(dim=-1, keepdim=True)
    even = is_candidate.double() / count.clamp(min=1)
    share = torch.where(total > 0, (1 - floor) * entropy / total.clamp(min=1e-300) + floor * even, even)
    wanted = count.clamp(max=num_selected).double()
    is_certain = torch.zeros_like(is_candidate)
    # A step that would exceed 1 is certain, and the other steps share the rest. At most K rounds
    # change anything.
    for _ in range(num_selected + 1):
        rest = share.masked_fill(is_certain, 0.0)
        left = wanted - is_certain.sum(dim=-1, keepdim=True)
        scaled = rest * left / rest.sum(dim=-1, keepdim=True).clamp(min=1e-300)
        # If C <= K, every candidate has probability 1 up to rounding.
        is_certain = is_certain | (scaled > 1 - 1e-12)
    return torch.where(is_certain, 1.0, scaled)


def systematic_steps(
    probability: Float[Tensor, "B T"], num_selected: int, noise: Float[Tensor, "B T"]
) -> Int[Tensor, "B {num_selected}"]:
    """Return the steps at which the running sum of probabilities crosses u, u + 1, ..., [B, K]
    int64; -1 in empty slots.

    The single draw is u = noise[:, 0].
    """
    running = probability.cumsum(dim=-1)
    # A draw within 2^-32 of 1 could round up to the next whole number when j is added, which skips
    # a step.
    point = noise[:, :1].double().clamp(max=1 - 2**-32) + torch.arange(num_selected, device=noise.device)
    # The sum is a whole number up to rounding; the clamp keeps the last point inside it.
    total = probability.sum(dim=-1, keepdim=True).round()
    step = torch.searchsorted(running, torch.minimum(point, running[:, -1:] * (1 - 1e-15)), right=True)
    return step.masked_fill(point >= total, -1)


def highest_steps(
    priority: Float[Tensor, "B T"], is_candidate: Bool[Tensor, "B T"], num_selected: int
) -> Int[Tensor, "B {num_selected}"]:
    """Return the K candidates of highest priority, [B, K] int64, sorted by falling priority; of
    equal priorities the earlier step comes first. -1 marks an empty slot."""
    order = priority.masked_fill(~is_candidate, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    order = order.masked_fill(~is_candidate.gather(-1, order), -1)[:, :num_selected]
    return torch.nn.functional.pad(order, (0, num_selected - order.shape[-1]), value=-1)


def select_steps(
    rule: str,
    entropy: Float[Tensor, "B T"],
    is_candidate: Bool[Tensor, "B T"],
    num_selected: int,
    noise: Float[Tensor, "B T"],
) -> Int[Tensor, "B K"]:
    """Select the steps of each trajectory that are trained: K of its candidates, or all if there
    are fewer.

    - entropy_topk: the steps of largest joint entropy (EGSPO). Without reweighting, the gradient is
      biased.
    - entropy_sampled: K steps at random without replacement, where step k has the probability
      `inclusion_probability`. One draw u = noise[:, 0] selects all of them (systematic sampling),
      so that the steps are spread in time. Weighted by the inverse probabilities, the gradient is
      unbiased.
    - uniform: K steps at random without replacement, which are those of the largest noise.
    - low_discrepancy: of the C candidates, those at the indices floor((u + j) C / K) for
      j = 0..K-1, with one draw u = noise[:, 0]. They are evenly spaced in time, and each has
      probability K / C.
    - last_k: the latest steps. On short tasks these steps often have the highest entropy too.
    - lowest_entropy: the steps of lowest joint entropy, as a negative control.
    - all: every candidate in order of time; num_selected is ignored and K = T. If all steps that
      committed a token are candidates, this is the whole policy gradient.

    Args:
        rule: name of a rule in `RULES`.
        entropy: [B, T] real, nats: joint entropy of each step.
        is_candidate: [B, T] bool; see `candidate_steps`.
        num_selected: number of selected steps K >= 1.
        noise: [B, T] float64 in [0, 1).

    Returns:
        [B, K] int64 steps, sorted by falling priority; of equal priorities the earlier step comes
        first. Rules without a priority give steps in order of time. -1 marks an empty slot, and
        empty slots come last.

    Raises:
        ValueError: the rule is unknown, num_selected is below 1, or the shapes disagree.

    Example:
        >>> entropy = torch.tensor([[0.3, 2.0, 0.3, 9.0]])
        >>> is_candidate = torch.tensor([[True, True, True, False]])
        >>> select_steps("entropy_topk", entropy, is_candidate, 2, torch.zeros(1, 4))
        tensor([[1, 0]])
        >>> select_steps("all", entropy, is_candidate, 2, torch.zeros(1, 4))
        tensor([[ 0,  1,  2, -1]])
    """
    if rule not in RULES:
        raise ValueError(f'select_steps: unknown rule "{rule}". Available: {", ".join(RULES)}.')
    if num_selected < 1:
        raise ValueError(f"select_steps: num_selected must be at least 1; got {num_selected}")
    if not entropy.shape == is_candidate.shape == noise.shape:
        raise ValueError(
            "select_steps: entropy, is_candidate and noise must have one shape [B, T]; "
            f"got {tuple(entropy.shape)}, {tuple(is_candidate.shape)}, {tuple(noise.shape)}"
        )
    num_steps = entropy.shape[-1]
    if rule == "all":
        return _evenly_spaced(is_candidate, num_steps, noise)
    if rule == "low_discrepancy":
        return _evenly_spaced(is_candidate, num_selected, noise)
    if rule == "entropy_sampled":
        return systematic_steps(inclusion_probability(entropy, is_candidate, num_selected), num_selected, noise)
    priority = step_priority(rule, entropy, torch.arange(num_steps, device=entropy.device), noise)
    return highest_steps(priority, is_candidate, num_selected)


def selection_noise(seed: Int[Tensor, "B"], num_steps: int) -> Float[Tensor, "B {num_steps}"]:
    """Return the noise for the step selection of trajectories, [B, T] float64 in [0, 1), from [B]
    int64 seeds."""
    return counter_uniform(seed.unsqueeze(-1), SELECTION_STREAM, torch.arange(num_steps, device=seed.device))


def selected_path_steps(
    selection: tuple[str, int],
    unmask_step: Int[Tensor, "B L"],
    entropy: Float[Tensor, "B L"],
    is_eos: Bool[Tensor, "B L"],
    seed: Int[Tensor, "B"],
    num_steps: int,
) -> Int[Tensor, "B K"]:
    """Select the steps of finished trajectories from their records. Both the sampler and the
    methods call this function.

    Args:
        selection: selection rule and K.
        unmask_step: [B, L] int.
        entropy: [B, L] real, nats: entropy of each token when it was committed.
        is_eos: [B, L] bool.
        seed: [B] int64 seeds of the rows.
        num_steps: number of steps, T.

    Returns:
        [B, K] int64, as in `select_steps`.

    Example:
        >>> unmask_step, entropy = torch.tensor([[0, 1, 1]]), torch.tensor([[0.9, 0.5, 0.6]])
        >>> is_eos = torch.zeros(1, 3, dtype=torch.bool)
        >>> selected_path_steps(("entropy_topk", 1), unmask_step, entropy, is_eos, torch.tensor([0]), 2)
        tensor([[1]])
    """
    rule, num_selected = selection
    # The float64 sum of a few float32 entropies is exact, unless they differ by a factor of 2^29. A
    # running top-K, which adds them in another order, therefore ranks them the same.
    joint = step_sum(entropy.double(), unmask_step, num_steps)
    # The last non-EOS step lies in the future of earlier steps, so excluding the steps after it is
    # a bias.
    is_candidate = candidate_steps(unmask_step, is_eos & (rule not in WHOLE_RULES), num_steps)
    return select_steps(rule, joint, is_candidate, num_selected, selection_noise(seed, num_steps))


def inverse_inclusion(
    steps: Int[Tensor, "B K"],
    num_selected: int,
    unmask_step: Int[Tensor, "B L"],
    entropy: Float[Tensor, "B L"],
    num_steps: int,
) -> Float[Tensor, "B K"]:
    """Compute 1 / π_k of each step that `entropy_sampled` selected; with these weights the sum is
    unbiased.

    Args:
        steps: [B, K] int64 from `selected_path_steps`; -1 in an empty slot.
        num_selected: number of selected steps, K.
        unmask_step: [B, L] int.
        entropy: [B, L] real, nats: entropy of each token when it was committed.
        num_steps: number of steps, T.

    Returns:
        [B, K] float64; 0 in an empty slot.

    Example:
        >>> unmask_step, entropy = torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, 1.0, 1.0]])
        >>> inverse_inclusion(torch.tensor([[2]]), 1, unmask_step, entropy, 3)
        tensor([[3.]], dtype=torch.float64)
    """
    joint = step_sum(entropy.double(), unmask_step, num_steps)
    is_candidate = candidate_steps(unmask_step, torch.zeros_like(unmask_step, dtype=torch.bool), num_steps)
    probability = inclusion_probability(joint, is_candidate, num_selected)
    return probability.gather(-1, steps.clamp(min=0)).reciprocal().masked_fill(steps < 0, 0.0)
