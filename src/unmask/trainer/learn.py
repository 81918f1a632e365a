"""The second half of a training step, which scores views (masked versions of the completions) under
the old and the reference policy, and then updates the policy in minibatches.

The number of views does not change how much memory an update needs. A loss that is a sum over views
is back-propagated batch by batch, and so is a sum over completions if the views of each completion
fit into one forward pass. Any other loss is a function F of the views' log-probabilities. If the
views do not fit into one forward pass, a first pass computes the log-probabilities without a graph,
and from them dF/dlogp. A second pass back-propagates dF/dlogp * logp batch by batch. By the
chain rule the gradient is the same. The cost is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, RolloutError
from unmask.core.records import LossOutput, Rollout, ViewLogprobs, Views
from unmask.functional.speed import right_likelihood_loss
from unmask.methods import Method
from unmask.methods.views import scored_tokens
from unmask.recipes.schema import TrainRecipe
from unmask.sampling import LogprobSettings, view_logprobs
from unmask.trainer.behaviour import Comparison, path_views
from unmask.trainer.critic import Critic
from unmask.trainer.distributed import backend
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.loss_derivatives import LossDerivatives
from unmask.trainer.metrics import Tally
from unmask.trainer.model_limits import packing_of, positions_at_once, width_on_cpu
from unmask.trainer.optimizer import set_learning_rate
from unmask.trainer.passes import UpdatePasses
from unmask.trainer.reference import Reference
from unmask.trainer.scored_views import ScoredViews
from unmask.trainer.spending import Spending
from unmask.trainer.view_batches import ViewBatches

if TYPE_CHECKING:
    from accelerate import Accelerator


class Learner:
    """Updates a policy from scored rollouts.

    Args:
        accelerator: accelerator of the run.
        model: the policy, as accelerate prepared it.
        optimizer: the optimizer, as accelerate prepared it.
        reference: the reference policy; None if the method needs none.
        recipe: settings of the run.
        max_tokens: maximum number of tokens in one forward pass; None limits the number of views
            instead.
        ranks: exchange between the ranks of the run; default a `Ranks` of the accelerator.
        spending: token passes of the run so far, for the learning-rate schedule; default none.
        critic: moments of the critic; None if the method needs none.
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
        spending: Spending | None = None,
        critic: Tensor | None = None,
    ) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.reference, self.recipe = reference, recipe
        denoiser = backend.unwrapped(model)
        self.passes = UpdatePasses(recipe, max_tokens, width_on_cpu(denoiser), packing_of(denoiser))
        self.ranks = ranks or Ranks(accelerator)
        self.spending = spending or Spending(recipe)
        self._positions_at_once = positions_at_once(denoiser)
        self._fault = ""
        self._comparison: Comparison | None = None
        self.critic = None if critic is None else Critic(model, critic, recipe, self.passes, self.ranks)
        self._value_errors: list[tuple[Views, Tensor]] = []

    def update(self, rollout: Rollout, step: int, generator: torch.Generator, tally: Tally) -> tuple[Views, Tensor]:
        """Make all optimizer steps of one training step.

        Every rank makes the same plan of views for the whole rollout, with the same random draws.
        It then trains on the views of its own completions, which need not be whole groups.

        Args:
            rollout: the groups of all ranks.
            step: index of the training step, from 0.
            generator: source of the random draws of the plan and of the minibatches.
            tally: object to which the metrics are added.

        Returns:
            The views of all ranks in the first plan, and their advantages.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the policy has not changed since
                the last complete update, which may be one of this training step.
            RolloutError: the behaviour policy differs from the old policy by more than the limit;
                the policy has not changed in this training step.
        """
        recipe = self.recipe
        self._value_errors = []
        valued = None if self.critic is None else self.critic.valued(rollout)
        rollout = rollout if valued is None else valued.rollout
        self._comparison = self._compared(rollout, tally)
        # The policy at the start of the step scores all plans, before the first update.
        plans = [self._scored(rollout, generator) for _ in range(self.passes.num_plans)]
        if self._comparison is not None:
            self._stop_if_faulty()
        rate = set_learning_rate([self.optimizer], recipe.optim, step, recipe.max_steps, self.spending.share)
        is_first = True
        for i in range(recipe.num_iterations):
            scored = plans[i % len(plans)]
            for rows in self.passes.minibatches(rollout, generator):
                self._minibatch(scored, rows, tally, is_first)
                is_first = False
        if self.reference and recipe.sync_ref_model and (step + 1) % recipe.ref_model_sync_steps == 0:
            self.reference.move(backend.unwrapped(self.model), recipe.ref_model_mixup_alpha)
        if self.critic is not None and valued is not None:
            self.critic.learn(valued, self._value_errors, tally)
        views, advantage = plans[0].plan
        tally.add("learning_rate", rate)
        tally.add("diffusion/num_views", float(len(views)))
        tally.add("diffusion/frac_views_left_out", (~self.passes.is_kept(advantage)).float())
        tally.add("advantage/abs_mean", advantage.abs())
        return views, advantage

    def _scored(self, rollout: Rollout, generator: torch.Generator) -> ScoredViews:
        """Make a plan, and score this rank's views under the old and the reference policy. Views
        without a gradient are left out."""
        method = self.recipe.method
        plan = method.plan(rollout, generator)
        advantage = method.advantage(rollout)
        advantage = advantage[plan.row] if advantage.dim() == 1 else advantage[plan.row, plan.slot]
        own = (self._is_own(plan, rollout) & self.passes.is_kept(advantage)).nonzero().squeeze(-1)
        views = plan.take(own)
        settings = LogprobSettings.of(rollout.trajectory, self.recipe.logprob_temperature)
        if not method.on_path:
            settings = replace(settings, top_k=0, top_p=1.0)
        settings = replace(settings, centred=method.needs().centred)
        old, reference, passes = None, None, self.passes
        if passes.scores_old:
            old = self._logprobs(self.model, rollout, views, settings, distribution=passes.keeps_old)
        if passes.scores_reference:
            assert self.reference is not None
            with self.reference.acting(self.model) as module:
                reference = self._logprobs(module, rollout, views, settings, distribution=passes.keeps_reference)
        mean_tokens = float(scored_tokens(rollout.trajectory).sum()) / len(rollout.trajectory)
        weights = None
        if self._comparison is not None:
            sampling = LogprobSettings.of(rollout.trajectory, "sampling")
            is_other = passes.rescored == "views"
            sampled = self._logprobs(self.model, rollout, views, sampling) if is_other else None
            weights = self._comparison.weights(views, old, sampled)
        reads = method.reads()
        return ScoredViews(
            rollout, (plan, advantage), views, advantage[own], old, reference, settings, mean_tokens, weights, reads
        )

    def _compared(self, rollout: Rollout, tally: Tally) -> Comparison | None:
        """Prepare the comparison with the behaviour policy, and compare whole completions if that
        is the level. Return None if nothing is compared."""
        recipe, path = self.recipe, rollout.trajectory
        level = recipe.measured_level
        if level is None:
            return None
        is_weighted = recipe.weighted_level is not None
        comparison = Comparison(recipe.behaviour, level, is_weighted, path, self.ranks, tally)
        if self.passes.rescored == "path":
            # A completion of advantage 0 needs no weight, unless the weight is a part of the mean.
            is_read = (recipe.method.advantage(rollout) != 0).view(len(path), -1).any(-1)
            states = path_views(path, (is_read | recipe.behaviour.normalise).nonzero().squeeze(-1))
            states = states.take(self._is_own(states, rollout))
            scores = self._logprobs(self.model, rollout, states, LogprobSettings.of(path, "sampling"), choice=True)
            comparison.record_path(states, scores)
        return comparison

    def _is_own(self, plan: Views, rollout: Rollout) -> Tensor:
        """Return [N] bool, True for the views that show completions of this rank."""
        own = self.ranks.share(len(rollout.trajectory))
        is_own: Tensor = (plan.row >= own.start) & (plan.row < own.stop)
        return is_own

    @torch.no_grad()
    def _logprobs(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        views: Views,
        settings: LogprobSettings,
        *,
        choice: bool | None = None,
        distribution: bool = False,
    ) -> ViewLogprobs:
        """Score all views of this rank batch by batch, without a graph."""
        model.eval()
        batches, parts = self._batches(views, rollout), []
        for index, batch in batches:
            logprobs = self._logprobs_of(model, rollout, batch, settings, choice=choice, distribution=distribution)
            if len(index):
                parts.append(logprobs)
        return batches.in_order(parts)

    def _logprobs_of(
        self,
        model: torch.nn.Module,
        rollout: Rollout,
        batch: Views,
        settings: LogprobSettings,
        *,
        choice: bool | None = None,
        distribution: bool = False,
        entropy: bool = False,
    ) -> ViewLogprobs:
        """Score one batch of views, with a graph if gradients are enabled. By default the method
        decides whether the position choice is scored."""
        packing = self.passes.packing
        return view_logprobs(
            model,  # type: ignore[arg-type]
            rollout.trajectory,
            batch,
            settings,
            choice=self.recipe.method.needs().choice if choice is None else choice,
            distribution=distribution,
            entropy=entropy,
            trim=self.passes.max_tokens is not None or packing is not None,
            positions_at_once=self._positions_at_once,
            block_length=None if packing is None else packing.block_length,
        )

    def _batches(self, views: Views, rollout: Rollout, *, by_completion: bool = False, least: int = 0) -> ViewBatches:
        """Divide this rank's views into batches; every rank gets the same number of batches, at
        least `least`."""
        batches = self.passes.batches(views, rollout, by_completion=by_completion)
        return batches.padded(max(least, self.ranks.largest(len(batches))))

    def _minibatch(self, scored: ScoredViews, rows: Tensor, tally: Tally, is_first: bool) -> None:
        """Make one optimizer update from the views of the completions `rows`."""
        rollout, (plan, _) = scored.rollout, scored.plan
        # Dropout would make the ratio differ from one at the first update.
        self.model.eval()
        if not torch.isin(plan.row.cpu(), rows).any():
            return
        index = torch.isin(scored.views.row.cpu(), rows).nonzero().squeeze(-1)
        # The loss is divided by the number of completions. The number of views depends on the
        # paths, so dividing by that would bias the gradient. Data-parallel wrappers average over
        # ranks, so each rank counts its share of the completions.
        share = self.recipe.num_minibatches * self.ranks.count / len(rollout.trajectory)
        # If all views of the minibatch are left out, a dummy batch gives gradients of 0, with which
        # the optimizer makes its step: its momentum still moves the weights.
        by_completion = self.passes.by_completion(plan, rollout)
        batches = self._batches(scored.views.take(index), rollout, by_completion=by_completion, least=1)
        two_passes = self.passes.has_first_pass(len(batches), plan, rollout)
        derivatives = self._derivatives(scored, index, share, tally) if two_passes else None
        options = {
            "distribution": self.passes.keeps_old or self.passes.keeps_reference,
            "entropy": self.recipe.method.reads().entropy,
        }
        loss_sum = 0.0
        self.optimizer.zero_grad()
        for i, (within, batch) in enumerate(batches, start=1):
            is_last = i == len(batches)
            new = self._logprobs_of(self.model, rollout, batch, scored.settings, **options)
            if not len(within):
                # All ranks have gradients of the same weights, those of a position head included.
                blank = new.logprob.sum() * 0.0
                if new.choice is not None:
                    blank = blank + new.choice.sum() * 0.0
                backend.backward(self.accelerator, self.model, blank, is_last)
                continue
            if derivatives is None:
                output = self.recipe.method.loss(scored.inputs(new, index[within]))
                loss = self._checked(output, batch, share, tally)
                if rollout.is_right is not None:
                    nll = right_likelihood_loss(new.logprob, batch.weight, batch.row, rollout.is_right)
                    loss = loss + self.recipe.speed.nll_weight * nll.sum() * share
                    tally.add(
                        "speed/nll", -new.logprob.detach()[batch.target & rollout.is_right[batch.row].unsqueeze(-1)]
                    )
                loss_sum += float(loss.detach())
            else:
                loss = derivatives.dot(new, within)
            backend.backward(self.accelerator, self.model, loss, is_last)
            if is_first:
                self._compare_with_rollout(rollout, batch, new, tally)
                if scored.old is not None:
                    old_choice = None if scored.old.choice is None else scored.old.choice[index[within]]
                    for log_ratio in _differences(new, scored.old.logprob[index[within]], old_choice):
                        tally.add("policy/first_log_ratio_max", log_ratio)
                if self._comparison is not None and not self._comparison.is_recorded:
                    self._comparison.record(batch.row, batch.target, new)
        self._stop_if_faulty()
        norm = backend.step(self.accelerator, self.model, [self.optimizer], self.recipe.optim.max_grad_norm)
        tally.add("loss", loss_sum if derivatives is None else derivatives.loss)
        tally.add("grad_norm", norm)

    def _derivatives(self, scored: ScoredViews, index: Tensor, share: float, tally: Tally) -> LossDerivatives:
        """Compute the derivatives of a loss that is not a sum over views, in a pass without a
        graph."""
        part = scored.views.take(index)
        # A rank without views takes part in the forward passes of the others.
        logprobs = self._logprobs(self.model, scored.rollout, part, scored.settings)
        if not len(index):
            return LossDerivatives(0.0, logprobs.logprob, None)
        choice = None if logprobs.choice is None else logprobs.choice.requires_grad_()
        leaves = ViewLogprobs(logprobs.logprob.requires_grad_(), choice)
        loss = self._checked(self.recipe.method.loss(scored.inputs(leaves, index)), part, share, tally)
        if loss.requires_grad:
            loss.backward()
        by_logprob, by_choice = (None if leaf is None else leaf.grad for leaf in (leaves.logprob, leaves.choice))
        if by_logprob is None:
            by_logprob = torch.zeros_like(leaves.logprob)
        return LossDerivatives(float(loss.detach()), by_logprob, by_choice)

    def _checked(self, output: LossOutput, batch: Views, share: float, tally: Tally) -> Tensor:
        """Return the sum of the losses, and record their metrics. If the sum is not finite,
        remember the completions for the error message."""
        check_output(self.recipe.method, output, batch)
        loss = output.loss.sum() * share
        if not torch.isfinite(loss):
            by_view = output.loss.shape == batch.row.shape
            rows = (batch.row[~torch.isfinite(output.loss)] if by_view else batch.row).unique().tolist()
            self._fault = self._fault or f"the loss is {loss.item()} in completions {rows[:8]} of the rollout"
        for name, values in output.metrics.items():
            tally.add(name, values)
        if output.value_error is not None:
            self._value_errors.append((batch, output.value_error))
        return loss

    def _stop_if_faulty(self) -> None:
        """Raise an error on all ranks if a loss of any rank was not finite, or if a ratio to the
        behaviour policy was above the limit.

        Before this call, every rank takes part in each backward pass, because a missing rank would
        block the others.
        """
        excess = self._comparison.excess if self._comparison else ""
        if not self.ranks.largest(int(bool(self._fault or excess))):
            return
        faults, excesses = zip(*self.ranks.objects((self._fault, excess)), strict=True)
        if any(faults):
            raise FloatingPointError("; ".join(filter(None, faults)))
        raise RolloutError(next(filter(None, excesses)), agreed=True)

    def _compare_with_rollout(self, rollout: Rollout, batch: Views, new: ViewLogprobs, tally: Tally) -> None:
        """Record how much the log-probabilities of the first update differ from the
        log-probabilities that the rollout computed in the same states."""
        path = rollout.trajectory
        is_other = self.recipe.logprob_temperature != "sampling" or self.recipe.method.needs().centred
        if is_other or not path.sampler.temperature or batch.tokens is not None:
            return
        step = path.shown_step(batch).unsqueeze(-1)
        on_path = batch.target & (path.unmask_step[batch.row] == step) & (step >= 0)
        choice = None if path.choice_logprob is None else path.choice_logprob[batch.row]
        for mismatch in _differences(new, path.logprob[batch.row], choice):
            tally.add("diffusion/mismatch_max", mismatch[on_path])


def _differences(new: ViewLogprobs, logprob: Tensor, choice: Tensor | None) -> Iterator[Tensor]:
    """Yield the distances of the new log-probabilities of the tokens from others, and those of the
    position choices if both are known."""
    yield (new.logprob.detach() - logprob).abs()
    if new.choice is not None and choice is not None:
        yield (new.choice.detach() - choice).abs()


def check_output(method: Method, output: object, batch: Views) -> None:
    """Check what the `loss` of a method returned, because a method may be a user's own.

    Raises:
        ConfigError: it is not a `LossOutput`, or it lacks the loss of each view.
    """
    name = method.type_name
    if not isinstance(output, LossOutput):
        raise ConfigError(
            f"loss() of the method {name} returned an object of the type {type(output).__name__}. "
            "Return LossOutput(loss), with one number for each view."
        )
    if method.separable and output.loss.shape != batch.row.shape:
        raise ConfigError(
            f"loss() of the method {name} returned a loss of the shape {tuple(output.loss.shape)} for {len(batch)} views. "
            "Return one number for each view; the trainer adds them up. If the loss is not a sum over views, set separable = "
            "False in the class."
        )
