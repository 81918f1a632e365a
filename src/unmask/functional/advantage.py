"""Group baselines and the stepwise advantage of EGSPO-SA (arXiv:2603.12554).

The advantages are not divided by the group's standard deviation. The division changes the direction
of the policy gradient and gives most weight to the groups whose rewards differ least (Dr. GRPO,
arXiv:2503.20783). EGSPO's release does not divide either. `z_score` is for methods that are
published with the division.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Real
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
    """Compute the reward of each completion minus the baseline of its group, for each slot.

    group_mean: A_i = r_i - (1/n) Σ_j r_j (GRPO without its division, arXiv:2402.03300). The
    baseline contains the sample itself, so the expected gradient shrinks to (n-1)/n of the true
    one.
    leave_one_out: A_i = r_i - (1/(n-1)) Σ_{j≠i} r_j (RLOO, arXiv:2402.14740). This advantage is
        unbiased, and n/(n-1) times the group_mean advantage.

    A slot is a column of the advantage and holds one selected step of a completion. Slot k of one
    member is compared with slot k of the other members, whichever steps these slots hold. The
    result is not divided by the group's standard deviation; see the module docstring.

    Args:
        reward: [B] or [B, K] rewards; rows i G to (i+1) G - 1 are one group.
        group_size: group size G >= 2, which divides B.
        baseline: group_mean or leave_one_out.
        is_valid: bool of reward's shape, False in an empty slot. An empty slot does not enter the
            baseline. By default all entries are valid.

    Returns:
        Tensor of reward's shape, float32 (float64 for float64); 0 in an empty slot, and for the
        only valid member of a slot. Exactly 0 in a slot whose rewards (float32 or narrower) are all
        equal.

    Raises:
        ValueError: group_size is 1 or does not divide B, the baseline is unknown, or the shapes
            disagree.

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
    # float64: the sum of G equal float32 rewards is exact, so a constant group gets exactly 0.
    grouped = reward.double().reshape(is_member.shape).masked_fill(~is_member, 0.0)
    count = is_member.sum(dim=1, keepdim=True).clamp(min=1)
    advantage = grouped - grouped.sum(dim=1, keepdim=True) / count
    if baseline == "leave_one_out":
        advantage = advantage * count / (count - 1).clamp(min=1)
    advantage = advantage.masked_fill(~is_member, 0.0).reshape(reward.shape)
    return advantage.to(torch.promote_types(reward.dtype, torch.float32))


def z_score(reward: Real[Tensor, "B"], group_size: int, correction: int, floor: float = 1e-4) -> Float[Tensor, "B"]:
    """Compute each reward in standard deviations of its group, (r_i - r̄) / (s + floor), as in GRPO
    (arXiv:2402.03300).

    This is not the advantage of a policy gradient, because s depends on the rewards of the group.
    In a group of two it is the sign of the difference, up to the floor.

    Args:
        reward: [B] rewards; rows i G to (i+1) G - 1 are one group.
        group_size: group size G >= 2, which divides B.
        correction: number that is subtracted from G in the divisor of s²: 1 for the sample, 0 for
            the population.
        floor: number > 0 that keeps the result small for nearly constant groups.

    Returns:
        [B] float32 (float64 for float64); exactly 0 in a group whose rewards (float32 or narrower)
        are all equal.

    Raises:
        ValueError: as in `group_advantage`.

    Example:
        >>> z_score(torch.tensor([1.0, 0.0, 0.5, 0.5]), group_size=2, correction=0, floor=1e-12)
        tensor([ 1., -1.,  0.,  0.])
    """
    centred = group_advantage(reward, group_size, "group_mean").view(-1, group_size)
    deviation = (centred.square().sum(-1, keepdim=True) / (group_size - correction)).sqrt()
    return (centred / (deviation + floor)).flatten()


def softmax_advantage(reward: Real[Tensor, "B"], group_size: int) -> Float[Tensor, "B"]:
    """Weigh the completions of a group by two softmaxes: G (w+ - w-) with w± = softmax(±r) over the
    group.

    These are the weights of wd1 (arXiv:2507.08838), whose loss is -Σ_i w+_i log π_i + Σ_i w-_i log
    π_i, summed over a group. The factor G turns a mean over completions into a mean over groups. A
    baseline has no effect, because a softmax ignores it. For small differences of the rewards the
    result is about 2 (r - r̄). The result is bounded by G and, unlike r - r̄, is not linear in the
    unit of the reward.

    Args:
        reward: [B] rewards; rows i G to (i+1) G - 1 are one group.
        group_size: group size G, which divides B.

    Returns:
        [B] float32 (float64 for float64). It sums to 0 in each group, and is exactly 0 in a group
        whose rewards are all equal.

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
    """Compute the group advantage of a return with the state's value as control variate, A_k =
    (R_k - R̄_k) - c (V_k - V̄_k).

    If R is one number per completion, R̄ is the mean over the whole group: the path decides which
    members have slot k, so a reward must be compared with that of every member. V̄_k is the mean
    over the members that have the slot, and so is R̄_k if each slot has its own return. V_k is a
    function of the state. It therefore does not change the expected gradient, for any c that does
    not depend on the action.

    The means are taken slot by slot, whichever step a slot holds. If the slot of a step depends on
    the rest of the path (`entropy_sampled`), such means depend on the actions, but means pooled
    over all slots do not.

    Args:
        reward: [B] rewards, or [B, K] with a return for each slot; rows i G to (i+1) G - 1 are one
            group.
        value: [B, K] value V of the state before each selected step.
        is_valid: [B, K] bool, False in an empty slot.
        group_size: group size G, which divides B.
        gain: gain c, a number or [B].
        baseline: see `group_advantage`.
        pool_slots: True to take the means over all slots.

    Returns:
        [B, K] float32 (float64 if the rewards are); 0 in an empty slot.

    Raises:
        ValueError: the shapes disagree, or as in `group_advantage`.
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
    """Return [B, K] values minus the mean over all slots, either of the whole group or of its other
    members."""
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
    """Compute the advantage of each selected step: the advantage of the completion, corrected by
    the value of the state before the step.

    This is `controlled_advantage` with c = λ/(1+λ) and V_k = r(x̂_k). If all slots are filled, it
    is the group advantage of the return R_k = (r + λ (r - V_k)) / (1 + λ) (arXiv:2603.12554,
    normalised form). It is not the change of value across the step, because the value of the next
    state does not enter.

    Args:
        reward: [B] rewards of the finished completions; rows i G to (i+1) G - 1 are one group.
        one_step_reward: [B, K] rewards of the one-step completion before each selected step.
        is_valid: [B, K] bool, False in an empty slot.
        group_size: group size G, which divides B.
        stepwise_weight: weight λ >= 0; 0 gives the group advantage in every slot (EGSPO), and the
            paper's EGSPO-SA uses 0.5.
        baseline: see `group_advantage`.

    Returns:
        [B, K] float32 (float64 if the rewards are); 0 in an empty slot.

    Raises:
        ValueError: λ is negative, or as in `controlled_advantage`.

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
    """Fit the gain c of a control variate. The gain of a group minimises the variance of R - c V
    over all other groups.

    c = Σ Cov(R, V) / Σ Var(V), within groups and slots, over all groups except the row's own. The
    gain does not depend on the row's actions, so the gradient stays unbiased. This gain minimises
    the variance of the advantage; the variance of the gradient would weigh each term by its squared
    score function.

    Args:
        reward: [B] rewards, or [B, K] with a return for each slot; rows i G to (i+1) G - 1 are one
            group.
        value: [B, K] values of the states.
        is_valid: [B, K] bool, False in an empty slot.
        group_size: group size G, which divides B.

    Returns:
        [B] of value's dtype, one number per group; 0 if there are no other groups or their values
        do not vary.

    Raises:
        ValueError: as in `group_advantage`.

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
    """Compute the credit of M actions drawn at one state from the values of the actions: A_m =
    (Q̂_m - mean Q̂) / (M - 1).

    With x and Q̂ held fixed, Σ_m A_m ∇ log p(a_m) is an unbiased estimate of ∇ E_{a ~ p}[Q̂(x, a)]
    = E[Q̂ ∇ log p(a)]. Each action is compared with the M - 1 others, as in a group that starts
    from one state (DiSPO, arXiv:2602.06462, which draws all masked positions).

    Args:
        value: [..., M] values Q̂ of the actions, M >= 2.

    Returns:
        Tensor of value's shape, float32 (float64 for float64). It sums to 0 over M, and is exactly
        0 if all values are equal.

    Raises:
        ValueError: M is below 2.

    Example:
        >>> counterfactual_advantage(torch.tensor([1.0, 0.0, 0.0]))
        tensor([ 0.3333, -0.1667, -0.1667])
    """
    num = value.shape[-1]
    if num < 2:
        raise ValueError(f"counterfactual_advantage: needs 2 actions or more to compare; got {num}")
    exact = value.double()
    advantage = (exact - exact.mean(dim=-1, keepdim=True)) / (num - 1)
    # The mean of equal numbers may be off by rounding, which Adam would scale up to a full step.
    advantage = advantage.masked_fill((exact == exact[..., :1]).all(dim=-1, keepdim=True), 0.0)
    return advantage.to(torch.promote_types(value.dtype, torch.float32))


def unique_advantage(value: Real[Tensor, "*batch M"], action: Int[Tensor, "*batch M L"]) -> Float[Tensor, "*batch M"]:
    """Compute the credit of the different actions among M draws at one state: A(u) = (mean of Q̂ over
    the draws of u - mean Q̂) / U, for each of the U different actions u.

    These are the advantages of T-SPMO (arXiv:2504.20834), whose loss is a mean over the different
    continuations of a shared prefix. Each action counts once, however often it was drawn, so the
    result is not an estimate of ∇ E[Q̂]: rare actions count as much as frequent ones.

    Args:
        value: [..., M] values Q̂ of the draws.
        action: [..., M, L] int tokens of the draws; two draws are the same action if all tokens agree.

    Returns:
        Tensor of value's shape, float32 (float64 for float64): the credit at the first draw of each
        action, and 0 at the others.

    Example:
        >>> unique_advantage(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[4], [7], [4]]))
        tensor([ 0.1667, -0.3333,  0.0000])
    """
    exact = value.double()
    is_same = (action.unsqueeze(-2) == action.unsqueeze(-3)).all(-1)
    is_first = is_same.byte().argmax(-1) == torch.arange(value.shape[-1], device=value.device)
    of_action = (is_same * exact.unsqueeze(-2)).sum(-1) / is_same.sum(-1)
    advantage = (of_action - exact.mean(-1, keepdim=True)) / is_first.sum(-1, keepdim=True)
    # The mean of equal numbers may be off by rounding, which Adam would scale up to a full step.
    is_flat = (exact == exact[..., :1]).all(dim=-1, keepdim=True)
    advantage = advantage.masked_fill(~is_first | is_flat, 0.0)
    return advantage.to(torch.promote_types(value.dtype, torch.float32))


def constant_group_share(reward: Real[Tensor, "B"], group_size: int) -> Float[Tensor, ""]:
    """Return the share of groups whose rewards are all equal. Such groups give no gradient; at a
    share of 1 the whole batch gives no gradient.

    Args:
        reward: [B] rewards; rows i G to (i+1) G - 1 are one group.
        group_size: group size G, which divides B.

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
