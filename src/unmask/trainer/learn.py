"""The second half of a step: old and reference passes over the plan's views, then minibatches of optimizer updates.

Only separable surrogates pass here: the loss is a sum over views, so it is back-propagated chunk by chunk and memory does not
grow with the number of views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.functional.schedule import learning_rate_factor
from unmask.functional.surrogate import exact_kl
from unmask.models import Denoiser
from unmask.recipe import TrainRecipe
from unmask.records import LossInputs, Rollout, Views, ViewScores
from unmask.samplers import Scoring, score_views
from unmask.trainer.metrics import Tally

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class _Batch:
    """Everything that the minibatches of one step share."""

    rollout: Rollout
    views: Views
    advantage: Tensor
    """[N] float32, of each view."""
    old: ViewScores | None
    """None where there is one update, whose policy is the old one."""
    reference: ViewScores | None
    scoring: Scoring

    def inputs(self, scores: ViewScores, chunk: Tensor) -> LossInputs:
        """What the loss of the views `chunk` reads, given what the policy says of them."""
        return LossInputs(
            new=scores.logprob,
            old=scores.logprob.detach() if self.old is None else self.old.logprob[chunk],
            reference=None if self.reference is None else self.reference.logprob[chunk],
            exact_kl=self._exact_kl(scores, chunk),
            row=self.views.row[chunk],
            target=self.views.target[chunk],
            weight=self.views.weight[chunk],
            advantage=self.advantage[chunk],
        )

    def _exact_kl(self, scores: ViewScores, chunk: Tensor) -> Tensor | None:
        """[n, L] KL(new || reference) at the chunk's targets, where distributions were asked for."""
        if scores.distribution is None or self.reference is None or self.reference.distribution is None:
            return None
        # Targets lie in view order in the reference, and in the order of the chunk in the new scores.
        place = torch.full_like(self.views.target, -1, dtype=torch.long)
        place[self.views.target] = torch.arange(len(self.reference.distribution), device=place.device)
        target = self.views.target[chunk]
        kl = exact_kl(scores.distribution, self.reference.distribution[place[chunk][target]])
        return torch.zeros_like(scores.logprob).masked_scatter(target, kl)


class Learner:
    """Updates a policy from scored rollouts.

    Args:
        accelerator: of the run.
        model: the prepared policy.
        optimizer: the prepared optimizer.
        reference: the reference policy, where the method needs one.
        recipe: the run's settings.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        reference: Denoiser | None,
        recipe: TrainRecipe,
    ) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.reference, self.recipe = reference, recipe

    def update(self, rollout: Rollout, step: int, generator: torch.Generator, tally: Tally) -> None:
        """All optimizer updates of one step.

        Args:
            rollout: this process's groups.
            step: from 0.
            generator: of this step.
            tally: takes the metrics.

        Raises:
            FloatingPointError: a loss or a gradient that is not finite; the policy has not been changed by it.
        """
        recipe, method = self.recipe, self.recipe.method
        views = method.plan(rollout, generator)
        advantage = method.advantage(rollout)
        advantage = advantage[views.row] if advantage.dim() == 1 else advantage[views.row, views.slot]
        scoring = Scoring.of(rollout.trajectory, recipe.logprob_temperature)
        single = recipe.num_iterations * recipe.num_minibatches == 1
        old = None if single else self._scores(self.model, rollout, views, scoring)
        needs = method.needs().reference
        reference = None
        if needs != "none":
            assert self.reference is not None
            reference = self._scores(self.reference, rollout, views, scoring, distribution=needs == "distribution")
        rate = recipe.optim.learning_rate * learning_rate_factor(
            step, recipe.max_steps, recipe.optim.warmup_steps, recipe.optim.lr_schedule, recipe.optim.lr_floor
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = _Batch(rollout, views, advantage, old, reference, scoring)
        is_first = True
        for _ in range(recipe.num_iterations):
            for index in _minibatches(views.row, len(rollout.trajectory), recipe.num_minibatches, generator):
                self._minibatch(batch, index, tally, is_first)
                is_first = False
        tally.add("learning_rate", rate)
        tally.add("diffusion/num_views", float(len(views) * self.accelerator.num_processes))
        tally.add("advantage/abs_mean", advantage.abs())

    @torch.no_grad()
    def _scores(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        views: Views,
        scoring: Scoring,
        *,
        distribution: bool = False,
    ) -> ViewScores:
        """What a policy says of all views, chunk by chunk, without graph."""
        model.eval()
        parts = []
        for chunk in self._chunks(torch.arange(len(views))):
            part = _views_of(chunk, views, rollout)
            # Around each chunk and no wider: torch keeps the weights that it has cast until the outermost autocast ends.
            with self.accelerator.autocast():
                scores = score_views(model, rollout.trajectory, part, scoring, distribution=distribution)  # type: ignore[arg-type]
            if len(chunk):
                parts.append(scores)
        logprob = torch.cat([part.logprob for part in parts]) if parts else rollout.trajectory.logprob[:0]
        whole = [part.distribution for part in parts if part.distribution is not None]
        return ViewScores(logprob, torch.cat(whole) if whole else None)

    def _minibatch(self, batch: _Batch, index: Tensor, tally: Tally, is_first: bool) -> None:
        """One optimizer update on the views `index`."""
        recipe, rollout = self.recipe, batch.rollout
        # No dropout: it would make the ratio differ from one at the first update.
        self.model.eval()
        if not any(self._gathered(len(index))):
            return
        # Over the completions, not the views: how many views there are depends on the paths, and dividing by that would bias
        # the gradient. Data-parallel wrappers average over processes, so each counts its own.
        share = recipe.num_minibatches / len(rollout.trajectory)
        total_loss = 0.0
        self.optimizer.zero_grad()
        chunks = self._chunks(index)
        for i, chunk in enumerate(chunks):
            is_last = i == len(chunks) - 1
            with self.accelerator.accumulate(self.model) if is_last else self.accelerator.no_sync(self.model):
                part = _views_of(chunk, batch.views, rollout)
                whole = batch.reference is not None and batch.reference.distribution is not None
                scores = score_views(self.model, rollout.trajectory, part, batch.scoring, distribution=whole)  # type: ignore[arg-type]
                if not len(chunk):
                    self.accelerator.backward(scores.logprob.sum() * 0.0)
                    continue
                output = recipe.method.loss(batch.inputs(scores, chunk))
                loss = output.loss.sum() * share
                if not torch.isfinite(loss):
                    rows = part.row[~torch.isfinite(output.loss)].unique().tolist()
                    raise FloatingPointError(
                        f"the loss is {loss.item()}; completions {rows[:8]} of the rollout gave it"
                    )
                self.accelerator.backward(loss)
            total_loss += float(loss.detach())
            for name, values in output.metrics.items():
                tally.add(name, values)
            if is_first:
                self._compare_with_rollout(rollout, part, scores, tally)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.optim.max_grad_norm)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"the norm of the gradient is {float(norm)}")
        tally.add("loss", total_loss)
        tally.add("grad_norm", float(norm))
        self.optimizer.step()

    def _compare_with_rollout(self, rollout: Rollout, part: Views, scores: ViewScores, tally: Tally) -> None:
        """Log how far the log-probabilities of the first update are from those recorded by the rollout."""
        if self.recipe.logprob_temperature == "sampling" and rollout.trajectory.temperature:
            recorded = rollout.trajectory.logprob[part.row]
            tally.add("diffusion/mismatch_max", (scores.logprob.detach() - recorded)[part.target].abs())

    def _gathered(self, count: int) -> list[int]:
        """A number of this process and of every other one."""
        if self.accelerator.num_processes == 1:
            return [count]
        counts: list[int] = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).tolist()
        return counts

    def _chunks(self, index: Tensor) -> list[Tensor]:
        """`index` in parts that are scored together: as many on every process, the last ones empty where views run out."""
        size = self.recipe.views_per_forward
        return [index[start : start + size] for start in range(0, max(self._gathered(len(index))), size)]


def _minibatches(row: Tensor, num_rows: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the views of each minibatch; where there are several, completions are dealt out, with all their views."""
    if count == 1:
        yield torch.arange(len(row))
        return
    # Always `count` of them, however few the views: every process must run as many updates as the others.
    for part in torch.randperm(num_rows, generator=generator).tensor_split(count):
        yield torch.isin(row.cpu(), part).nonzero().squeeze(-1)


def _views_of(chunk: Tensor, views: Views, rollout: Rollout) -> Views:
    """The views of a chunk; for an empty one, something to run: a view that hides and asks for one position."""
    if len(chunk):
        return views.take(chunk)
    tokens = rollout.trajectory.tokens[:1]
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    zero = torch.zeros(1, dtype=torch.long, device=tokens.device)
    return Views(row=zero, hidden=first, target=first, weight=zero.float(), slot=zero)
