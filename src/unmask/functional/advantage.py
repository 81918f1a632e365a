"""Group baselines and the stepwise advantage of EGSPO-SA (arXiv:2603.12554).

Not divided by the group's standard deviation: the division turns the policy gradient into a vector of another
direction and gives most weight to the groups whose rewards differ least (Dr. GRPO, arXiv:2503.20783). EGSPO's release
does not divide either. `z_score` is for methods that are published with the division.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor


def _check_groups(name: str, num_rows: int, group_size: int) -> None:
    if group_size < 1 or num_rows % group_size:
        raise ValueError(f"{name}: group_size = {group_size} does not divide the {num_rows} rows into whole groups")


def group_advantage(
    reward: Real[Tensor, "B *K"],
    group_size: int,
    baseline: Literal["group_mean", "leave_one_out"],
    is_valid: Bool[Tensor, "B *K"] | None = None,
) -> Float[Tensor, "B *K"]:
    """Reward of a completion less the baseline of its group, for each slot.

    group_mean: A_i = r_i - (1/n) Σ_j r_j (GRPO without its division, arXiv:2402.03300). The baseline contains the
    sample that it judges, so the expected gradient shrinks to (n-1)/n of the true one.
    leave_one_out: A_i = r_i - (1/(n-1)) Σ_{j≠i} r_j (RLOO, arXiv:2402.14740): unbiased, n/(n-1) times the other.

    Slots are compared rank by rank: slot k of one member with slot k of the others, whatever step each holds. Not
    divided by the group's standard deviation; see the module docstring.

    Args:
        reward: [B] or [B, K]; rows i G to (i+1) G - 1 are one group.
        group_size: G >= 2, divides B.
        baseline: see above.
        is_valid: of reward's shape, bool; False marks an empty slot, which neither gets nor gives. Default all valid.

    Returns:
        reward's shape, float32 (float64 for float64); 0 in an empty slot, and for the only valid member of a slot.
        Exactly 0 throughout a slot whose rewards (float32 or narrower) are all equal.

    Raises:
        ValueError: group_size is 1 or does not divide B, an unknown baseline, or shapes that disagree.

    Example:
        >>> reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        >>> group_advantage(reward, group_size=3, baseline="leave_one_out")
        tensor([ 1.0000, -0.5000, -0.5000,  0.0000,  0.0000,  0.0000])
    """
    _check_groups("group_advantage", len(reward), group_size)
    if group_size == 1:
        raise ValueError("group_advantage: a group of 1 has no baseline; set group_size to 2 or more")
    if baseline not in ("group_mean", "leave_one_out"):
        raise ValueError(f'group_advantage: unknown baseline "{baseline}". Available: group_mean, leave_one_out.')
    if is_valid is None:
        is_valid = torch.ones_like(reward, dtype=torch.bool)
    elif is_valid.shape != reward.shape:
        raise ValueError(
            f"group_advantage: is_valid must have reward's shape; got {tuple(is_valid.shape)}, {tuple(reward.shape)}"
        )
    is_member = is_valid.reshape(-1, group_size, *reward.shape[1:])
    # float64: the sum of G equal float32 rewards is then exact, and a constant group gets exactly 0, not noise.
    grouped = reward.double().reshape(is_member.shape).masked_fill(~is_member, 0.0)
    count = is_member.sum(dim=1, keepdim=True).clamp(min=1)
    advantage = grouped - grouped.sum(dim=1, keepdim=True) / count
    if baseline == "leave_one_out":
        advantage = advantage * count / (count - 1).clamp(min=1)
    advantage = advantage.masked_fill(~is_member, 0.0).reshape(reward.shape)
    return advantage.to(torch.promote_types(reward.dtype, torch.float32))


def z_score(reward: Real[Tensor, "B"], group_size: int, correction: int, floor: float = 1e-4) -> Float[Tensor, "B"]:
    """Reward of a completion in standard deviations of its group, (r_i - r̄) / (s + floor), as in GRPO (arXiv:2402.03300).

    Not a policy gradient's advantage: s depends on the rewards of the group. In a group of two it is the sign of the difference,
    however large that is, but for the floor.

    Args:
        reward: [B]; rows i G to (i+1) G - 1 are one group.
        group_size: G >= 2, divides B.
        correction: s² is a sum of squares over G - correction: 1 for the sample's deviation, 0 for the population's.
        floor: > 0, keeps nearly constant groups small.

    Returns:
        [B] float32 (float64 for float64); exactly 0 in a group whose rewards (float32 or narrower) are all equal.

    Raises:
        ValueError: what `group_advantage` refuses.

    Example:
        >>> z_score(torch.tensor([1.0, 0.0, 0.5, 0.5]), group_size=2, correction=0, floor=1e-12)
        tensor([ 1., -1.,  0.,  0.])
    """
    centred = group_advantage(reward, group_size, "group_mean").view(-1, group_size)
    deviation = (centred.square().sum(-1, keepdim=True) / (group_size - correction)).sqrt()
    return (centred / (deviation + floor)).flatten()


def softmax_advantage(reward: Real[Tensor, "B"], group_size: int) -> Float[Tensor, "B"]:
    """What a completion is worth among those of its group, by two softmaxes: G (w+ - w-), w± = softmax(±r) over the group.

    The weights of wd1 (arXiv:2507.08838), whose loss -Σ_i w+_i log π_i + Σ_i w-_i log π_i is summed over a group; the factor G
    makes its mean over completions the mean of that over groups. A baseline changes nothing, for a softmax ignores it. Where
    rewards differ little it is 2 (r - r̄); it is bounded by G, and unlike r - r̄ it is not linear in the reward's unit.

    Args:
        reward: [B]; rows i G to (i+1) G - 1 are one group.
        group_size: G, divides B.

    Returns:
        [B] float32 (float64 for float64), sums to 0 in each group; exactly 0 in a group whose rewards are all equal.

    Raises:
        ValueError: group_size does not divide B.

    Example:
        >>> softmax_advantage(torch.tensor([1.0, 0.0]), group_size=2)   # 2 tanh(1/2)
        tensor([ 0.9242, -0.9242])
    """
    _check_groups("softmax_advantage", len(reward), group_size)
    grouped = reward.to(torch.promote_types(reward.dtype, torch.float32)).view(-1, group_size)
    return (group_size * (grouped.softmax(-1) - (-grouped).softmax(-1))).flatten()


def controlled_advantage(
    reward: Real[Tensor, "B"] | Real[Tensor, "B K"],
    value: Real[Tensor, "B K"],
    is_valid: Bool[Tensor, "B K"],
    group_size: int,
    gain: float | Real[Tensor, "B"],
    baseline: Literal["group_mean", "leave_one_out"],
    *,
    pool_slots: bool = False,
) -> Float[Tensor, "B K"]:
    """Group advantage of a return with the state's value as control variate, A_k = (R_k - R̄_k) - c (V_k - V̄_k).

    R̄ is over the whole group where R is one number for a completion: who has slot k depends on the path, so a reward must be
    compared with every member's. V̄_k, and R̄_k where each slot has its own return, are over the members that have the slot. V_k is
    a function of the state, so for any c that does not depend on the action it leaves the expected gradient alone.

    The means are slot by slot, whatever step each slot holds. Where the slot that a step falls into depends on the rest of the
    path (`entropy_sampled`), that makes them depend on the actions; pooled over all slots they do not.

    Args:
        reward: [B], or [B, K] with a return for each slot; rows i G to (i+1) G - 1 are one group.
        value: [B, K], V of the state before each selected step.
        is_valid: [B, K] bool, False in an empty slot.
        group_size: G >= 2, divides B.
        gain: c, a number or [B].
        baseline: see `group_advantage`.
        pool_slots: take the means over all slots of the members that count.

    Returns:
        [B, K] float32 (float64 if the rewards are); 0 in an empty slot.

    Raises:
        ValueError: shapes disagree, or what `group_advantage` refuses.
    """
    if len(reward) != len(value):
        raise ValueError(
            "controlled_advantage: reward [B] or [B, K] and value [B, K] must agree on B; "
            f"got {tuple(reward.shape)}, {tuple(value.shape)}"
        )
    centred = _pooled_advantage if pool_slots else group_advantage
    if reward.dim() == 1:
        of_reward = group_advantage(reward, group_size, baseline).unsqueeze(-1)
    else:
        of_reward = centred(reward, group_size, baseline, is_valid)
    of_value = centred(value, group_size, baseline, is_valid)
    gain = gain.unsqueeze(-1) if isinstance(gain, Tensor) else gain
    return (of_reward - gain * of_value).masked_fill(~is_valid, 0.0)


def _pooled_advantage(
    value: Real[Tensor, "B K"],
    group_size: int,
    baseline: Literal["group_mean", "leave_one_out"],
    is_valid: Bool[Tensor, "B K"],
) -> Float[Tensor, "B K"]:
    """[B, K] less the mean over all slots: of the whole group, or of its other members."""
    grouped = value.double().masked_fill(~is_valid, 0.0).view(-1, group_size, value.shape[1])
    total, count = grouped.sum(-1, keepdim=True), is_valid.view(grouped.shape).sum(-1, keepdim=True)
    all_total, all_count = total.sum(1, keepdim=True), count.sum(1, keepdim=True)
    if baseline == "leave_one_out":
        all_total, all_count = all_total - total, all_count - count
    centred = grouped - all_total / all_count.clamp(min=1)
    return centred.view(value.shape).masked_fill(~is_valid, 0.0).to(torch.promote_types(value.dtype, torch.float32))


def stepwise_advantage(
    reward: Real[Tensor, "B"],
    one_step_reward: Real[Tensor, "B K"],
    is_valid: Bool[Tensor, "B K"],
    group_size: int,
    stepwise_weight: float,
    baseline: Literal["group_mean", "leave_one_out"],
) -> Float[Tensor, "B K"]:
    """Advantage of each selected step: the completion's, less what the state before the step promised of it.

    `controlled_advantage` with c = λ/(1+λ) and V_k = r(x̂_k). Where all slots are filled, it is the group advantage of the
    return R_k = (r + λ (r - V_k)) / (1 + λ) (arXiv:2603.12554, normalised form). Not the change of value across the step: V of
    the next state does not enter.

    Args:
        reward: [B], of the finished completion; rows i G to (i+1) G - 1 are one group.
        one_step_reward: [B, K], of the greedy one-step completion of the state before each selected step.
        is_valid: [B, K] bool, False in an empty slot.
        group_size: G >= 2, divides B.
        stepwise_weight: λ >= 0; 0 gives the group advantage in every slot (EGSPO), the papers' EGSPO-SA uses 0.5.
        baseline: see `group_advantage`.

    Returns:
        [B, K] float32 (float64 if the rewards are); 0 in an empty slot.

    Raises:
        ValueError: λ is negative, or what `controlled_advantage` refuses.

    Example:
        >>> reward, value = torch.tensor([1.0, 0.0]), torch.tensor([[0.5], [0.5]])
        >>> stepwise_advantage(reward, value, torch.ones(2, 1, dtype=torch.bool), 2, 0.5, "group_mean")
        tensor([[ 0.5000],
                [-0.5000]])
    """
    if stepwise_weight < 0:
        raise ValueError(f"stepwise_advantage: stepwise_weight must be 0 or more; got {stepwise_weight}")
    gain = stepwise_weight / (1 + stepwise_weight)
    return controlled_advantage(reward, one_step_reward, is_valid, group_size, gain, baseline)


def fitted_gain(
    reward: Real[Tensor, "B"] | Real[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    is_valid: Bool[Tensor, "B K"],
    group_size: int,
) -> Float[Tensor, "B"]:
    """The gain of a control variate that lowers the variance of R - c V the most, fitted on the other groups.

    c = Σ Cov(R, V) / Σ Var(V), within groups and slots, over all groups but the row's own: a number that does not depend on the
    row's actions, so the gradient stays unbiased. That minimises the variance of the advantage; the variance of the gradient
    would weigh each term by the square of its score.

    Args:
        reward: [B], or [B, K] with a return for each slot; rows i G to (i+1) G - 1 are one group.
        value: [B, K].
        is_valid: [B, K] bool.
        group_size: G, divides B.

    Returns:
        [B] of value's dtype, one number for each group; 0 where the other groups' values do not vary, or there are none.

    Raises:
        ValueError: what `group_advantage` refuses.

    Example:
        >>> reward, value = torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([[0.5], [0.0], [2.0], [0.0]])
        >>> fitted_gain(reward, value, torch.ones(4, 1, dtype=torch.bool), group_size=2)
        tensor([1., 1., 2., 2.])
    """
    if reward.dim() == 1:
        reward = reward.unsqueeze(-1).expand_as(value)
    d_reward = group_advantage(reward, group_size, "group_mean", is_valid).double()
    d_value = group_advantage(value, group_size, "group_mean", is_valid).double()
    covariance = (d_reward * d_value).view(-1, group_size * value.shape[1]).sum(-1)
    variance = d_value.square().view(-1, group_size * value.shape[1]).sum(-1)
    others = variance.sum() - variance
    gain = torch.where(others > 1e-12, (covariance.sum() - covariance) / others.clamp(min=1e-12), 0.0)
    return gain.repeat_interleave(group_size).to(value.dtype)


def counterfactual_advantage(value: Real[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
    """Credit of M actions drawn at one state, by what each would have earned: A_m = (Q̂_m - mean Q̂) / (M - 1).

    Σ_m A_m ∇ log p(a_m) is then an unbiased estimate of ∇ E_{a ~ p}[Q̂(x, a)] = E[Q̂ ∇ log p(a)], x and Q̂ held fixed: each action
    is compared with the M - 1 others, as in a group of one state (DiSPO, arXiv:2602.06462, for fills of every masked position).

    Args:
        value: [..., M], Q̂ of the actions; M >= 2.

    Returns:
        value's shape, float32 (float64 for float64); sums to 0 over M, exactly 0 throughout where all values are equal.

    Raises:
        ValueError: M below 2.

    Example:
        >>> counterfactual_advantage(torch.tensor([1.0, 0.0, 0.0]))
        tensor([ 0.3333, -0.1667, -0.1667])
    """
    num = value.shape[-1]
    if num < 2:
        raise ValueError(f"counterfactual_advantage: needs 2 actions or more to compare; got {num}")
    exact = value.double()
    advantage = (exact - exact.mean(dim=-1, keepdim=True)) / (num - 1)
    # The mean of equal numbers may be off by a rounding, which Adam would blow up to a full step.
    advantage = advantage.masked_fill((exact == exact[..., :1]).all(dim=-1, keepdim=True), 0.0)
    return advantage.to(torch.promote_types(value.dtype, torch.float32))


def constant_group_share(reward: Real[Tensor, "B"], group_size: int) -> Float[Tensor, ""]:
    """Share of groups whose rewards are all equal: they teach nothing. 1 means that the batch has no gradient at all.

    Args:
        reward: [B]; rows i G to (i+1) G - 1 are one group.
        group_size: G, divides B.

    Returns:
        0-dim float32 in [0, 1].

    Raises:
        ValueError: group_size does not divide B.

    Example:
        >>> constant_group_share(torch.tensor([0.0, 0.0, 0.0, 1.0]), group_size=2)
        tensor(0.5000)
    """
    _check_groups("constant_group_share", len(reward), group_size)
    grouped = reward.reshape(-1, group_size)
    return (grouped == grouped[:, :1]).all(dim=1).float().mean()
