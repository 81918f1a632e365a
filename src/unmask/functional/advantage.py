"""Group baselines and the stepwise advantage of EGSPO-SA (arXiv:2603.12554).

Never divided by the group's standard deviation: the division turns the policy gradient into a vector of another
direction and gives most weight to the groups whose rewards differ least (Dr. GRPO, arXiv:2503.20783). EGSPO's release
does not divide either.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def _check_groups(name: str, num_rows: int, group_size: int) -> None:
    if group_size < 1 or num_rows % group_size:
        raise ValueError(f"{name}: group_size = {group_size} does not divide the {num_rows} rows into whole groups")


def group_advantage(
    reward: Tensor, group_size: int, baseline: Literal["group_mean", "leave_one_out"], is_valid: Tensor | None = None
) -> Tensor:
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


def stepwise_advantage(
    reward: Tensor,
    one_step_reward: Tensor,
    is_valid: Tensor,
    group_size: int,
    stepwise_weight: float,
    baseline: Literal["group_mean", "leave_one_out"],
) -> Tensor:
    """Advantage of each selected step: the completion's, less what the state before the step promised of it.

    A_k = (r - r̄) - λ/(1+λ) (V_k - V̄_k), V_k = r(x̂_k), with r̄ over the whole group and V̄_k over its members whose slot k is
    filled. Where all slots are, it is the group advantage of the return R_k = (r + λ (r - V_k)) / (1 + λ)
    (arXiv:2603.12554, normalised form). V_k is a function of the state, so it leaves the expected gradient alone; the reward
    must be compared with every member's, since who has slot k depends on the path. Not the change of value across the
    step: V of the next state does not enter.

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
        ValueError: λ is negative, shapes disagree, or what `group_advantage` refuses.

    Example:
        >>> reward, value = torch.tensor([1.0, 0.0]), torch.tensor([[0.5], [0.5]])
        >>> stepwise_advantage(reward, value, torch.ones(2, 1, dtype=torch.bool), 2, 0.5, "group_mean")
        tensor([[ 0.5000],
                [-0.5000]])
    """
    if stepwise_weight < 0:
        raise ValueError(f"stepwise_advantage: stepwise_weight must be 0 or more; got {stepwise_weight}")
    if len(reward) != len(one_step_reward):
        raise ValueError(
            "stepwise_advantage: reward [B] and one_step_reward [B, K] must agree on B; "
            f"got {tuple(reward.shape)}, {tuple(one_step_reward.shape)}"
        )
    gain = stepwise_weight / (1 + stepwise_weight)
    of_reward = group_advantage(reward, group_size, baseline).unsqueeze(-1)
    of_value = group_advantage(one_step_reward, group_size, baseline, is_valid)
    return (of_reward - gain * of_value).masked_fill(~is_valid, 0.0)


def constant_group_share(reward: Tensor, group_size: int) -> Tensor:
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
