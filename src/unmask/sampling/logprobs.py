"""Log-probabilities of views (masked versions of a completion) under any policy.

The same function computes them for the sampling check and for the old, the reference and the new
policy, so their values are comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unmask.core.config import LEARNED, SamplerConfig
from unmask.core.denoising import DenoiserLike, NoisyCopies, Readout
from unmask.core.records import Trajectory, ViewLogprobs, Views
from unmask.functional.distribution import centred, token_entropy, token_logprobs
from unmask.functional.masking import compact_columns, trim_left_padding
from unmask.functional.plackett_luce import plackett_luce_logprob
from unmask.sampling.noisy_copies import PackedViews
from unmask.sampling.orders import POSITION_LOGITS
from unmask.sampling.predict import predict, predict_in_chunks


@dataclass(frozen=True, slots=True)
class LogprobSettings:
    """Temperature and support of the distribution whose log-probabilities the loss uses."""

    temperature: float
    top_k: int
    top_p: float
    centred: bool = False
    """True to subtract the mean over the support from all log-probabilities, which leaves scores
    that do not depend on the normaliser."""

    @staticmethod
    def of(trajectory: Trajectory, logprob_temperature: Literal["sampling"] | float) -> LogprobSettings:
        """Return the settings for a trajectory; see `of_sampler`."""
        return LogprobSettings.of_sampler(trajectory.sampler, logprob_temperature)

    @staticmethod
    def of_sampler(sampler: SamplerConfig, logprob_temperature: Literal["sampling"] | float) -> LogprobSettings:
        """Return the settings for trajectories of a sampler.

        Args:
            sampler: settings of the rollout.
            logprob_temperature: `sampling` for the sampler's distribution, which is the unbiased
                choice, or a temperature without top-k and top-p, which is 1 in published code.
        """
        if logprob_temperature == "sampling":
            # A greedy rollout has no sampling distribution; it is recorded at temperature 1.
            return LogprobSettings(sampler.temperature or 1.0, sampler.top_k, sampler.top_p)
        return LogprobSettings(logprob_temperature, 0, 1.0)

    @property
    def has_full_support(self) -> bool:
        """True if neither top-k nor top-p limits the support."""
        return not self.top_k and self.top_p >= 1

    @property
    def is_plain(self) -> bool:
        """True if the log-probabilities are a softmax over the whole vocabulary."""
        return self.has_full_support and not self.centred

    def logprobs(self, logits: Tensor, tokens: Tensor, support: Tensor | None = None) -> Tensor:
        """Return [..., V] log-probabilities whose support includes the [..., M] `tokens`; see
        `token_logprobs`."""
        logprobs = token_logprobs(logits, self.temperature, self.top_k, self.top_p, tokens, support)
        return centred(logprobs) if self.centred else logprobs


def view_logprobs(
    denoiser: DenoiserLike,
    trajectory: Trajectory,
    views: Views,
    settings: LogprobSettings,
    *,
    choice: bool = False,
    distribution: bool = False,
    entropy: bool = False,
    trim: bool = False,
    positions_at_once: int | None = None,
    block_length: int | None = None,
) -> ViewLogprobs:
    """Compute the log-probabilities of the views' targets under `denoiser`, with the autograd graph
    if gradients are enabled.

    They are log p_θ(x_i | x with `hidden` masked), at the temperature and support of `settings`.
    The trunk runs once over the views. The head runs at the targets only, or at all masked
    positions if the position choice is requested.

    If the settings have a top-k, the support of a token that the rollout drew in the state of its
    view is the one that the rollout recorded. All policies then choose from the same tokens
    (arXiv:2602.03195). At other targets, and without a record, the support is that of the policy's
    own logits. A replayed token that it would exclude stays in it, so that none has probability
    zero.

    A block-causal denoiser runs the blocks that hold targets as noisy copies behind the clean
    completion, and `views.pack` says which views share it; see `NoisyCopies`.

    The log-probability of the position choice is returned separately. It is the log-probability
    that a target is chosen among the masked positions of its block that were not committed before
    the target.

    Args:
        denoiser: policy; may be wrapped for training.
        trajectory: rollout that the views index.
        views: N views.
        settings: temperature and support.
        choice: True to return the log-probability of the position choice, if the order has one.
        distribution: True to return the whole distribution at each target.
        entropy: True to return the entropy at each target.
        trim: True to leave out prompt columns that are padding in all views.
        positions_at_once: maximum number of positions whose logits exist at the same time, for a
            denoiser that supports it. The limit does not apply to whole distributions and guided
            logits.
        block_length: block length of a block-causal denoiser; the default is its own attribute, which
            a wrapper for training may not have.
    """
    choice = choice and trajectory.choice_rank is not None
    inputs = _Inputs.of(trajectory, views, block_length or getattr(denoiser, "block_length", None), choice, trim)
    columns, is_valid = inputs.columns, inputs.is_valid
    is_target = views.target.gather(1, columns) & is_valid
    sequences = trajectory.tokens[views.row].unsqueeze(1) if views.tokens is None else views.tokens.long()
    # [N, n, M]: the tokens of every sequence at the columns.
    tokens = sequences.gather(2, columns.unsqueeze(1).expand(-1, sequences.shape[1], -1)).mT
    sampler = trajectory.sampler
    scores = choice and sampler.order == LEARNED
    num_tokens = tokens.shape[-1]
    evaluate = partial(_evaluate, settings, sampler if choice else None, num_tokens, entropy)
    support = _support(trajectory, views, columns) if settings.top_k else None
    allowed = tokens if support is None else torch.cat([tokens, support.to(tokens.dtype)], dim=-1)
    logprobs = score = None
    if distribution or sampler.guidance or positions_at_once is None:
        prediction = predict(denoiser, *inputs.of_model, sampler.guidance, copies=inputs.copies, scores=scores)
        values, logprobs = evaluate(inputs.by_view(prediction.logits), allowed)
        if prediction.score is not None:
            score = inputs.by_view(prediction.score)
    else:
        plain = settings.temperature if settings.is_plain and not (choice or entropy) else None
        values, score = _in_chunks(denoiser, inputs, evaluate, allowed, positions_at_once, plain, scores=scores)
    length = sequences.shape[2]
    dense = _at_positions(values[..., :num_tokens].mT, columns, is_target, length)
    entropies = _at_positions(values[..., -1:].mT, columns, is_target, length).squeeze(1) if entropy else None
    chosen = None
    if choice:
        position_logit = values[..., num_tokens] if score is None else values[..., num_tokens] + score
        chosen = _choice_logprob(trajectory, views, position_logit, columns, is_valid, is_target)
    return ViewLogprobs(
        dense.squeeze(1) if views.tokens is None else dense,
        chosen,
        logprobs[is_target] if distribution and logprobs is not None else None,
        entropies,
    )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Inputs of the forward pass over N views, and the place of each view's logits in its result."""

    columns: Tensor
    """[N, n] int64: positions of the completion whose logits are read for each view."""
    is_valid: Tensor
    """[N, n] bool, False at columns that only pad the width."""
    of_model: tuple[Tensor, Tensor, Tensor, Tensor, int]
    """Prompt tokens, prompt mask, completions, positions and MASK, as `predict` takes them."""
    is_read: Tensor | tuple[Tensor, Tensor]
    """Which of the requested positions are read, in the order of `columns[is_valid]`; see
    `Readout`."""
    copies: NoisyCopies | None = None
    """Columns of the forward pass, if they hold noisy copies."""

    @classmethod
    def of(cls, trajectory: Trajectory, views: Views, block_length: int | None, choice: bool, trim: bool) -> _Inputs:
        """Return the inputs of one view in each row or, for a block-causal denoiser, of packed
        views."""
        is_needed, mask_id = views.hidden if choice else views.target, trajectory.mask_id
        if block_length is None:
            columns, is_valid = compact_columns(is_needed)
            state = trajectory.tokens[views.row].masked_fill(views.hidden, mask_id)
            prompts = _prompts(trajectory, views, trim)
            return cls(columns, is_valid, (*prompts, state, columns, mask_id), is_valid)
        packed = PackedViews.of(views, trajectory, block_length)
        columns, is_valid = compact_columns(is_needed & (packed.column >= 0))
        prompts = _prompts(trajectory, views.take(packed.first), trim)
        read, index = packed.reads(columns, is_valid)
        copies = packed.behind(prompts[0].shape[1])
        return cls(columns, is_valid, (*prompts, packed.tokens, read, mask_id), index, copies)

    def by_view(self, values: Tensor) -> Tensor:
        """Return the logits or scores at the columns of each view, [N, n, ...], from those of the
        forward pass."""
        return values if self.copies is None else self.scattered(values[self.is_read])

    def scattered(self, read: Tensor) -> Tensor:
        """Return values [n, ...] of the positions that are read at the columns of each view, [N, n, ...];
        0 at columns that only pad the width."""
        of_views = read.new_zeros(*self.columns.shape, *read.shape[1:])
        of_views[self.is_valid] = read
        return of_views


def _in_chunks(
    denoiser: DenoiserLike,
    inputs: _Inputs,
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    allowed: Tensor,
    positions_at_once: int,
    plain_temperature: float | None,
    *,
    scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return what `evaluate` makes of the logits at the columns, [N, n, C], without all logits at the
    same time, and the scores of the position head, [N, n], if they are requested."""
    readout = Readout(
        lambda logits, allowed: evaluate(logits, allowed)[0],
        inputs.is_read,
        allowed[inputs.is_valid],
        positions_at_once,
        plain_temperature,
    )
    read, score = predict_in_chunks(denoiser, *inputs.of_model, readout, inputs.copies, scores)
    return inputs.scattered(read), None if score is None else inputs.scattered(score)


def _support(trajectory: Trajectory, views: Views, columns: Tensor) -> Tensor | None:
    """Return the recorded supports at the columns [N, n], [N, n, A], with -1 at positions whose
    tokens were not drawn in the state of the view; None if there is no record."""
    if trajectory.support is None:
        return None
    step = trajectory.shown_step(views).unsqueeze(-1)
    is_drawn = (trajectory.unmask_step[views.row].gather(1, columns) == step) & (step >= 0)
    return trajectory.support[views.row.unsqueeze(-1), columns].masked_fill(~is_drawn.unsqueeze(-1), -1)


def _evaluate(
    settings: LogprobSettings,
    choice: SamplerConfig | None,
    num_tokens: int,
    entropy: bool,
    logits: Tensor,
    allowed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the [..., M] log-probabilities of the first M = `num_tokens` of the `allowed` tokens,
    and those of all tokens. The rest of `allowed` is a recorded support.

    The first tensor has more columns if they are requested: the position logits, if `choice` is the
    sampler of an order that draws positions, and then the entropy.
    """
    tokens, support = allowed[..., :num_tokens], allowed[..., num_tokens:]
    logprobs = settings.logprobs(logits, tokens, support if support.shape[-1] else None)
    values = logprobs.gather(-1, tokens)
    if choice is not None:
        extra = POSITION_LOGITS[choice.order](logits, choice.order_temperature).unsqueeze(-1)
        values = torch.cat([values, extra.to(values.dtype)], dim=-1)
    if entropy:
        values = torch.cat([values, token_entropy(logprobs).unsqueeze(-1)], dim=-1)
    return values, logprobs


def _at_positions(chosen: Tensor, columns: Tensor, is_target: Tensor, length: int) -> Tensor:
    """Return [N, M, L] log-probabilities at their positions, 0 elsewhere, from [N, M, n] at the
    columns."""
    # Columns that only pad the width may hold MASK, whose log-probability is -inf.
    chosen = torch.where(is_target.unsqueeze(1), chosen, torch.zeros_like(chosen))
    dense = chosen.new_zeros(*chosen.shape[:2], length)
    return dense.scatter(2, columns.unsqueeze(1).expand_as(chosen), chosen)


def _prompts(trajectory: Trajectory, views: Views, trim: bool) -> tuple[Tensor, Tensor]:
    """Return the prompt tokens and prompt mask of the views, [N, P] each."""
    prompt_ids, prompt_mask = trajectory.prompt_ids[views.row], trajectory.prompt_mask[views.row]
    if views.prompt_hidden is not None:
        prompt_ids = prompt_ids.masked_fill(views.prompt_hidden, trajectory.mask_id)
    return trim_left_padding(prompt_ids, prompt_mask) if trim else (prompt_ids, prompt_mask)


def _choice_logprob(
    trajectory: Trajectory, views: Views, logits: Tensor, columns: Tensor, is_hidden: Tensor, is_target: Tensor
) -> Tensor:
    """Return the log-probability of each target's rank in the draw, [N, L], with graph."""
    assert trajectory.choice_rank is not None
    length = trajectory.tokens.shape[1]
    # Steps first, then ranks within a step: the order in which the path committed positions.
    time = trajectory.unmask_step[views.row].long() * length + trajectory.choice_rank[views.row].long()
    block = columns // trajectory.sampler.block
    logprob = plackett_luce_logprob(logits, time.gather(1, columns), is_hidden, block)
    logprob = torch.where(is_target, logprob, torch.zeros_like(logprob))
    return logprob.new_zeros(views.target.shape).scatter(1, columns, logprob)
