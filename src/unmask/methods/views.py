"""Plans of views (masked versions of completions, with the tokens whose log-probabilities are read)
that several methods share.

A block-causal model defines the likelihood p(x) = Π_b p(x_b | x_1, ..., x_{b-1}) of a completion of
blocks b. A view that estimates a likelihood therefore sees the clean past: each block is conditioned
on the earlier blocks without masks. The weight of a view stays the same, because the law of its
masks within one block is that of the masks of a completion which is this block, up to a set without
targets. A view that is a state of the path sees what the policy saw.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from unmask.core.records import GIVEN, LossInputs, Trajectory, Views
from unmask.functional.elbo import mask_at_times
from unmask.functional.masking import until_eos
from unmask.functional.selection import selected_path_steps


def scored_tokens(trajectory: Trajectory) -> Bool[Tensor, "B L"]:
    """Return a mask, [B, L] bool, of the tokens that the policy produced: those up to and including
    the first EOS, except tokens that were present from the start."""
    return until_eos(trajectory.tokens == trajectory.eos_id) & (trajectory.unmask_step != GIVEN)


def every_step(trajectory: Trajectory) -> Int[Tensor, "B T"]:
    """Return the steps of each completion that committed a token, [B, T] int64, in order of time; -1
    in empty slots, which come last."""
    path, is_eos = trajectory, trajectory.tokens == trajectory.eos_id
    return selected_path_steps(("all", 1), path.unmask_step, path.entropy, is_eos, path.seed, path.num_steps)


def mean_tokens(num_tokens: Real[Tensor, "B"], inputs: LossInputs) -> Float[Tensor, ""]:
    """Return the mean of `num_tokens` over the completions of the batch, as a 0-dim tensor above 0.

    A loss that is a mean over the tokens of the batch is divided by this number, because the
    trainer already divides by the number of completions.
    """
    mean = num_tokens.float().mean() if inputs.mean_tokens is None else torch.tensor(inputs.mean_tokens)
    return mean.clamp(min=1e-6)


def mean_field_views(
    trajectory: Trajectory, weight: Float[Tensor, "B"], prompt_mask_ratio: float, generator: torch.Generator
) -> Views:
    """Plan one view for each completion. The whole completion is masked, and each prompt token is
    masked with a given probability.

    Each token is then predicted without the others, as if they were independent (d1,
    arXiv:2504.12216).

    Args:
        trajectory: B completions.
        weight: [B] float32 weights.
        prompt_mask_ratio: probability in [0, 1] with which a prompt token is masked.
        generator: random generator of the prompt's masks.

    Returns:
        B views in the order of the rows. All scored tokens are targets (tokens whose
        log-probabilities are read).
    """
    row = torch.arange(len(trajectory), device=trajectory.tokens.device)
    ratio = torch.full((len(trajectory),), prompt_mask_ratio)
    return Views(
        row=row,
        hidden=trajectory.unmask_step != GIVEN,
        target=scored_tokens(trajectory),
        weight=weight,
        slot=torch.zeros_like(row),
        prompt_hidden=mask_at_times(ratio, trajectory.prompt_mask, generator) if prompt_mask_ratio else None,
        sees_clean_past=torch.ones_like(row, dtype=torch.bool),
    )


def text_views(
    trajectory: Trajectory,
    masks: Bool[Tensor, "B M L"],
    weight: Float[Tensor, "B M"],
    prompt_hidden: Bool[Tensor, "B M P"] | None = None,
    *,
    sees_clean_past: bool = True,
) -> Views:
    """Plan one view for each set of scored tokens, including empty sets. The tokens of a set are
    masked, and they are the targets of its view.

    Everything after the first EOS is masked too, because it would reveal where the completion ends.

    Args:
        trajectory: B completions.
        masks: [B, M, L] bool, subsets of `scored_tokens`.
        weight: [B, M] float32 weights.
        prompt_hidden: [B, M, P] bool, prompt positions to mask.
        sees_clean_past: False if the masks of earlier blocks are a part of what a block of a
            block-causal model is conditioned on.

    Returns:
        B M views in the order of the rows, with slot m for the m-th set of a completion.
    """
    num_rows, num_sets, _ = masks.shape
    beyond = ~scored_tokens(trajectory) & (trajectory.unmask_step != GIVEN)
    return Views(
        row=torch.arange(num_rows, device=masks.device).repeat_interleave(num_sets),
        hidden=(masks | beyond.unsqueeze(1)).flatten(0, 1),
        target=masks.flatten(0, 1),
        weight=weight.flatten(),
        slot=torch.arange(num_sets, device=masks.device).repeat(num_rows),
        prompt_hidden=None if prompt_hidden is None else prompt_hidden.flatten(0, 1),
        sees_clean_past=torch.full((num_rows * num_sets,), sees_clean_past, device=masks.device),
    )


def step_views(
    trajectory: Trajectory, steps: Int[Tensor, "B K"], weight: Float[Tensor, "B K"], *, clean: bool = False
) -> Views:
    """Plan one view for each selected denoising step: the state before it, with the tokens that it
    committed as targets.

    Args:
        trajectory: B completions.
        steps: [B, K] int steps; -1 in an empty slot, which gives no view.
        weight: [B, K] float32 weights.
        clean: True for more targets: the tokens of the finished text that later steps committed,
            up to and including the first EOS.

    Returns:
        N <= B K views in the order of the rows, and in ascending order of their slots within a row.
    """
    row, slot = (steps >= 0).nonzero(as_tuple=True)
    step = steps[row, slot].unsqueeze(-1)
    unmask_step = trajectory.unmask_step[row]
    hidden, committed = unmask_step >= step, unmask_step == step
    views = Views(row=row, hidden=hidden, target=committed, weight=weight[row, slot], slot=slot)
    if not clean:
        return views
    return replace(views, target=committed | (hidden & scored_tokens(trajectory)[row]), committed=committed)


def step_weight(trajectory: Trajectory, num_slots: int) -> Float[Tensor, "B {num_slots}"]:
    """Return the weight of each of K selected steps, with which their sum estimates the sum over all
    steps of a completion, divided by its length.

    Under the fixed schedule the weight is T / (K L), the mean over the K slots divided by the L / T
    tokens of a step. It is a constant: dividing by the number of tokens or slots of a path would
    bias the gradient. Under an adaptive schedule, completions differ in their number of steps n. The
    weight is n / (min(K, n) L), which keeps a uniform choice among the n steps unbiased.

    Args:
        trajectory: B completions.
        num_slots: number of slots K >= 1.

    Returns:
        [B, K] float32.
    """
    length, num_steps = trajectory.tokens.shape[1], trajectory.num_steps
    shape = len(trajectory), num_slots
    if not trajectory.sampler.is_adaptive:
        return torch.full(shape, 1 / (num_slots * (length / num_steps)), device=trajectory.tokens.device)
    taken = trajectory.steps_taken
    return (taken / (taken.clamp(1, num_slots) * length)).unsqueeze(-1).expand(shape)


def masked_views(masks: Bool[Tensor, "B M L"], weight: Float[Tensor, "B M"]) -> Views:
    """Plan one view for each non-empty set of masked positions, whose tokens are the targets.

    Args:
        masks: [B, M, L] bool masks of B completions.
        weight: [B, M] float32 weights.

    Returns:
        N <= B M views in the order of the rows, with slot m for the m-th set of a completion.
    """
    row, slot = masks.any(-1).nonzero(as_tuple=True)
    hidden = masks[row, slot]
    return Views(
        row=row,
        hidden=hidden,
        target=hidden,
        weight=weight[row, slot],
        slot=slot,
        sees_clean_past=torch.ones_like(row, dtype=torch.bool),
    )


def segment_views(
    trajectory: Trajectory, segments: Int[Tensor, "B K"], num_segments: int, weight: Float[Tensor, "B K"]
) -> Views:
    """Plan one view for each segment of steps: the state before its first step, with all tokens
    that it committed as targets.

    Segment s consists of the steps k with floor(k num_segments / T) = s, so that the segments are
    as equal in size as possible (StepMerge of d2, arXiv:2509.21474). Under an adaptive schedule, T
    is the number of steps that the completion took. The tokens of the later steps of a segment are
    evaluated in a state from which they were not drawn. With num_segments >= T every step is a
    segment. A segment may cover several blocks of a block-causal model. The tokens of each are then
    evaluated after the finished earlier blocks, as in TraceRL (arXiv:2509.06949).

    Args:
        trajectory: B completions.
        segments: [B, K] int64 indices of segments; -1 in an empty slot.
        num_segments: number of segments that the T steps are divided into.
        weight: [B, K] float32 weights.

    Returns:
        One view for each segment that committed a token, in the order of the rows, and in ascending
        order of their slots within a row.
    """
    row, slot = (segments >= 0).nonzero(as_tuple=True)
    segment, when = segments[row, slot].unsqueeze(-1), trajectory.unmask_step[row]
    horizon = trajectory.horizon[row].unsqueeze(-1)
    first, after = (-(-s * horizon // num_segments) for s in (segment, segment + 1))
    target = (when >= first) & (when < after)
    views = Views(
        row=row,
        hidden=when >= first,
        target=target,
        weight=weight[row, slot],
        slot=slot,
        sees_clean_past=torch.ones_like(row, dtype=torch.bool),
    )
    return views.take(target.any(-1))
