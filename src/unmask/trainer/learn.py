"""The second half of a step: old and reference passes over the plan's views, then minibatches of optimizer updates.

Memory does not grow with the number of views. A loss that is a sum over views is back-propagated chunk by chunk. Any other is a
function F of the views' log-probabilities: where they do not fit into one forward they are computed without graph, dF/dlogp is
taken, and dF/dlogp * logp is back-propagated chunk by chunk, which is the chain rule and costs one more forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.records import LossInputs, LossOutput, Rollout, ViewLogprobs, Views
from unmask.functional.surrogate import exact_kl
from unmask.methods.views import scored_tokens
from unmask.models import Denoiser
from unmask.recipes.schema import TrainRecipe
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.sampling.generation import batches_by_length
from unmask.trainer.distributed import backend
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.metrics import Tally
from unmask.trainer.optimizer import set_learning_rate
from unmask.trainer.reference import Reference

if TYPE_CHECKING:
    from accelerate import Accelerator

LOGITS_AT_ONCE = 2**25
"""Of a forward of the update: 128 MiB in float32, some five times that with what the softmax and its gradient take."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Everything that the minibatches of one step share."""

    rollout: Rollout
    """Of all processes."""
    plan: tuple[Views, Tensor]
    """The views of all processes, and their advantages."""
    views: Views
    """This process's."""
    advantage: Tensor
    """[N] float32, of each of them."""
    old: ViewLogprobs | None
    """None where there is one update, whose policy is the old one."""
    reference: ViewLogprobs | None
    scoring: LogprobSettings
    mean_tokens: float
    """Scored tokens of a completion of the rollout."""

    def inputs(self, scores: ViewLogprobs, chunk: Tensor) -> LossInputs:
        """What the loss of the views `chunk` reads, given what the policy says of them."""
        old_choice = None
        if scores.choice is not None:
            old_choice = scores.choice.detach() if self.old is None else _present(self.old.choice)[chunk]
        return LossInputs(
            new=scores.logprob,
            old=scores.logprob.detach() if self.old is None else self.old.logprob[chunk],
            reference=None if self.reference is None else self.reference.logprob[chunk],
            exact_kl=self._exact_kl(scores, chunk),
            row=self.views.row[chunk],
            target=self.views.target[chunk],
            weight=self.views.weight[chunk],
            advantage=self.advantage[chunk],
            slot=self.views.slot[chunk],
            group_size=self.rollout.group_size,
            mean_tokens=self.mean_tokens,
            new_choice=scores.choice,
            old_choice=old_choice,
        )

    def _exact_kl(self, scores: ViewLogprobs, chunk: Tensor) -> Tensor | None:
        """[N, L] KL(new || reference) at the chunk's targets, where distributions were asked for."""
        if scores.distribution is None or self.reference is None or self.reference.distribution is None:
            return None
        # Targets lie in view order in the reference, and in the order of the chunk in the new scores.
        place = torch.full_like(self.views.target, -1, dtype=torch.long)
        place[self.views.target] = torch.arange(len(self.reference.distribution), device=place.device)
        target = self.views.target[chunk]
        kl = exact_kl(scores.distribution, self.reference.distribution[place[chunk][target]])
        return torch.zeros_like(scores.logprob).masked_scatter(target, kl)


@dataclass(frozen=True, slots=True)
class _Outer:
    """A loss that is not separable, and how it changes with each log-probability of its views."""

    loss: float
    by_logprob: Tensor
    """[N, L] or [N, M, L]."""
    by_choice: Tensor | None

    def dot(self, scores: ViewLogprobs, chunk: Tensor) -> Tensor:
        """What has the loss's gradient: the chunk's log-probabilities, each times its derivative."""
        total = (scores.logprob * self.by_logprob[chunk]).sum()
        if scores.choice is not None and self.by_choice is not None:
            total = total + (scores.choice * self.by_choice[chunk]).sum()
        return total


class Learner:
    """Updates a policy from scored rollouts.

    Args:
        accelerator: of the run.
        model: the prepared policy.
        optimizer: the prepared optimizer.
        reference: the reference policy, where the method needs one.
        recipe: the run's settings.
        max_tokens: rows times tokens in one forward pass; None limits the number of views instead.
        ranks: of the run; default the accelerator's.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        reference: Reference | None,
        recipe: TrainRecipe,
        max_tokens: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self._positions_at_once = positions_at_once(backend.unwrapped(model))
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.reference, self.recipe = reference, recipe
        self.ranks = ranks or Ranks(accelerator)
        self._fault = ""

    def update(self, rollout: Rollout, step: int, generator: torch.Generator, tally: Tally) -> tuple[Views, Tensor]:
        """All optimizer updates of one step; returns what they were made on: the (first) plan's views, and their advantages.

        The plan is made of the whole rollout on every process, with the same draws; each then takes the views of its own groups.

        Args:
            rollout: the groups of all processes.
            step: from 0.
            generator: of this step.
            tally: takes the metrics.

        Raises:
            FloatingPointError: a loss or a gradient that is not finite; the policy has not been changed by it.
        """
        recipe, method = self.recipe, self.recipe.method
        # All plans are scored by the policy as it is now, before the first update.
        num_plans = recipe.num_iterations if method.fresh_views else 1
        batches = [self._batch(rollout, generator) for _ in range(num_plans)]
        rate = set_learning_rate([self.optimizer], recipe.optim, step, recipe.max_steps)
        is_first = True
        # A loss that is not separable may compare the members of a group.
        unit = 1 if method.separable else rollout.group_size
        for i in range(recipe.num_iterations):
            batch = batches[i % num_plans]
            num_units = len(rollout.trajectory) // unit
            for index in _minibatches(batch.views.row // unit, num_units, recipe.num_minibatches, generator):
                self._minibatch(batch, index, tally, is_first)
                is_first = False
        if self.reference and recipe.sync_ref_model and (step + 1) % recipe.ref_model_sync_steps == 0:
            self.reference.move(backend.unwrapped(self.model), recipe.ref_model_mixup_alpha)
        tally.add("learning_rate", rate)
        views, advantage = batches[0].plan
        tally.add("diffusion/num_views", float(len(views)))
        tally.add("advantage/abs_mean", advantage.abs())
        return views, advantage

    def _batch(self, rollout: Rollout, generator: torch.Generator) -> _Batch:
        """A plan, and what the policy at the start of the step and the reference say of it."""
        recipe, method = self.recipe, self.recipe.method
        plan = method.plan(rollout, generator)
        advantage = method.advantage(rollout)
        advantage = advantage[plan.row] if advantage.dim() == 1 else advantage[plan.row, plan.slot]
        own = self._own(plan, rollout)
        views = plan.take(own)
        scoring = LogprobSettings.of(rollout.trajectory, recipe.logprob_temperature)
        if not method.on_path:
            scoring = replace(scoring, top_k=0, top_p=1.0)
        single = recipe.num_iterations * recipe.num_minibatches == 1
        old = None if single else self._scores(self.model, rollout, views, scoring)
        needs = method.needs().reference
        reference = None
        if needs != "none":
            assert self.reference is not None
            with self.reference.acting(self.model) as module:
                reference = self._scores(module, rollout, views, scoring, distribution=needs == "distribution")
        mean_tokens = float(scored_tokens(rollout.trajectory).sum()) / len(rollout.trajectory)
        return _Batch(rollout, (plan, advantage), views, advantage[own], old, reference, scoring, mean_tokens)

    def _own(self, plan: Views, rollout: Rollout) -> Tensor:
        """Indices of the views that read completions of this process's groups."""
        groups = self.ranks.share(len(rollout.trajectory) // rollout.group_size)
        group = plan.row // rollout.group_size
        is_own: Tensor = (group >= groups.start) & (group < groups.stop)
        return is_own.nonzero().squeeze(-1)

    @torch.no_grad()
    def _scores(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        views: Views,
        scoring: LogprobSettings,
        *,
        distribution: bool = False,
    ) -> ViewLogprobs:
        """What a policy says of all views, chunk by chunk, without graph."""
        model.eval()
        parts = []
        chunks = self._chunks(views, rollout)
        for chunk in chunks:
            part = _views_of(chunk, views, rollout)
            # Around each chunk and no wider: torch keeps the weights that it has cast until the outermost autocast ends.
            with self.accelerator.autocast():
                scores = self._score(model, rollout, part, scoring, distribution=distribution)
            if len(chunk):
                parts.append(scores)
        if not parts:
            return ViewLogprobs(rollout.trajectory.logprob[:0])
        return _in_view_order(parts, torch.cat(chunks), views)

    def _score(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        part: Views,
        scoring: LogprobSettings,
        *,
        distribution: bool = False,
    ) -> ViewLogprobs:
        choice = self.recipe.method.needs().choice
        return view_logprobs(
            model,  # type: ignore[arg-type]
            rollout.trajectory,
            part,
            scoring,
            choice=choice,
            distribution=distribution,
            trim=self.max_tokens is not None,
            positions_at_once=self._positions_at_once,
        )

    def _minibatch(self, batch: _Batch, index: Tensor, tally: Tally, is_first: bool) -> None:
        """One optimizer update on the views `index`."""
        recipe, rollout = self.recipe, batch.rollout
        # No dropout: it would make the ratio differ from one at the first update.
        self.model.eval()
        if not any(self.ranks.counts(len(index))):
            return
        # Over the completions, not the views: how many views there are depends on the paths, and dividing by that would bias
        # the gradient. Data-parallel wrappers average over processes, so each counts its share of the completions.
        share = recipe.num_minibatches * self.ranks.count / len(rollout.trajectory)
        chunks = self._chunks(batch.views.take(index), rollout)
        in_one_graph = recipe.method.separable or len(chunks) == 1
        outer = None if in_one_graph else self._outer(batch, index, share, tally)
        total_loss = 0.0
        self.optimizer.zero_grad()
        for i, places in enumerate(chunks):
            chunk, is_last = index[places], i == len(chunks) - 1
            with backend.accumulating(self.accelerator, self.model, is_last):
                part = _views_of(chunk, batch.views, rollout)
                whole = batch.reference is not None and batch.reference.distribution is not None
                scores = self._score(self.model, rollout, part, batch.scoring, distribution=whole)
                if not len(chunk):
                    backend.backward(self.accelerator, self.model, scores.logprob.sum() * 0.0, is_last)
                    continue
                if outer is None:
                    loss = self._checked(recipe.method.loss(batch.inputs(scores, chunk)), part, share, tally)
                    total_loss += float(loss.detach())
                else:
                    loss = outer.dot(scores, places)
                backend.backward(self.accelerator, self.model, loss, is_last)
            if is_first:
                self._compare_with_rollout(rollout, part, scores, tally)
        total_loss = total_loss if outer is None else outer.loss
        self._stop_if_faulty()
        norm = backend.step(self.accelerator, self.model, [self.optimizer], recipe.optim.max_grad_norm)
        tally.add("loss", total_loss)
        tally.add("grad_norm", norm)

    def _outer(self, batch: _Batch, index: Tensor, share: float, tally: Tally) -> _Outer:
        """The first pass of a loss that is not separable: its value and its derivative by each log-probability."""
        part = _views_of(index, batch.views, batch.rollout)
        scores = self._scores(self.model, batch.rollout, part, batch.scoring)
        leaves = ViewLogprobs(
            scores.logprob.requires_grad_(), None if scores.choice is None else scores.choice.requires_grad_()
        )
        if not len(index):
            return _Outer(0.0, torch.zeros_like(leaves.logprob), None)
        loss = self._checked(self.recipe.method.loss(batch.inputs(leaves, index)), part, share, tally)
        if loss.requires_grad:
            loss.backward()
        by_logprob, by_choice = (None if leaf is None else leaf.grad for leaf in (leaves.logprob, leaves.choice))
        return _Outer(
            float(loss.detach()), torch.zeros_like(leaves.logprob) if by_logprob is None else by_logprob, by_choice
        )

    def _checked(self, output: LossOutput, part: Views, share: float, tally: Tally) -> Tensor:
        """The sum of the losses, with its metrics taken; if it is not finite, the completions that made it are noted."""
        loss = output.loss.sum() * share
        if not torch.isfinite(loss):
            by_view = output.loss.shape == part.row.shape
            rows = (part.row[~torch.isfinite(output.loss)] if by_view else part.row).unique().tolist()
            self._fault = self._fault or f"the loss is {loss.item()}; completions {rows[:8]} of the rollout gave it"
        for name, values in output.metrics.items():
            tally.add(name, values)
        return loss

    def _stop_if_faulty(self) -> None:
        """Raise FloatingPointError on all processes if a loss of any was not finite; till then all took part in each backward."""
        if self.ranks.largest(int(bool(self._fault))):
            raise FloatingPointError("; ".join(filter(None, self.ranks.objects(self._fault))))

    def _compare_with_rollout(self, rollout: Rollout, part: Views, scores: ViewLogprobs, tally: Tally) -> None:
        """Log how far the log-probabilities of the first update are from those recorded by the rollout, in the same states."""
        path = rollout.trajectory
        if self.recipe.logprob_temperature != "sampling" or not path.sampler.temperature or part.tokens is not None:
            return
        step = path.step_read(part).unsqueeze(-1)
        seen = part.target & (path.unmask_step[part.row] == step) & (step >= 0)
        tally.add("diffusion/mismatch_max", (scores.logprob.detach() - path.logprob[part.row])[seen].abs())

    def _chunks(self, views: Views, rollout: Rollout) -> list[Tensor]:
        """Places of views that are scored together: as many parts on every process, the last ones empty where views run out."""
        size, path = self.recipe.views_per_forward, rollout.trajectory
        if self.max_tokens is None:
            chunks = list(torch.arange(len(views)).split(size)) if len(views) else []
        else:
            lengths = path.prompt_mask[views.row].sum(-1).tolist()
            batches = batches_by_length(lengths, path.tokens.shape[1], size, self.max_tokens)
            # In a chunk the views keep their order, which the loss of whole groups may count on.
            chunks = [torch.tensor(sorted(batch)) for batch in batches]
        nothing = torch.zeros(0, dtype=torch.long)
        return chunks + [nothing] * (self.ranks.largest(len(chunks)) - len(chunks))


def positions_at_once(model: torch.nn.Module) -> int | None:
    """Of how many positions the logits are there together; None for toys and stand-ins, which give all they have."""
    return max(1, LOGITS_AT_ONCE // model.vocab_size) if isinstance(model, Denoiser) else None


def _minibatches(unit: Tensor, num_units: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the views of each minibatch; where there are several, whole units (completions or groups) are dealt out."""
    if count == 1:
        yield torch.arange(len(unit))
        return
    # Always `count` of them, however few the views: every process must run as many updates as the others.
    for part in torch.randperm(num_units, generator=generator).tensor_split(count):
        yield torch.isin(unit.cpu(), part).nonzero().squeeze(-1)


def _in_view_order(parts: list[ViewLogprobs], places: Tensor, views: Views) -> ViewLogprobs:
    """The scores of chunks as those of all views; `places` says where the rows of the chunks, put together, belong."""

    def joined(values: list[Tensor | None]) -> Tensor | None:
        given = [value for value in values if value is not None]
        return torch.cat(given) if given else None

    logprob = torch.cat([part.logprob for part in parts])
    choice, whole = joined([part.choice for part in parts]), joined([part.distribution for part in parts])
    back = places.argsort()
    if torch.equal(back, torch.arange(len(back))):
        return ViewLogprobs(logprob, choice, whole)
    if whole is not None:
        # One row for each target; the targets of a view lie side by side.
        by_view = whole.split(views.target.sum(-1)[places].tolist())
        whole = torch.cat([by_view[int(i)] for i in back])
    return ViewLogprobs(logprob[back], None if choice is None else choice[back], whole)


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _views_of(chunk: Tensor, views: Views, rollout: Rollout) -> Views:
    """The views of a chunk; for an empty one, something to run: a view that hides and asks for one position."""
    if len(chunk):
        return views.take(chunk)
    tokens = rollout.trajectory.tokens[:1]
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    zero = torch.zeros(1, dtype=torch.long, device=tokens.device)
    return Views(row=zero, hidden=first, target=first, weight=zero.float(), slot=zero)
