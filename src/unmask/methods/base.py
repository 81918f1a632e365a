"""Base class of methods: options, requirements of a rollout, a plan of views, an advantage and a
loss.

The trainer samples completions, computes rewards and log-probabilities, distributes the work,
updates the weights and saves checkpoints. It never depends on which method it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.core.config import LEARNED, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.core.settings import Named
from unmask.functional.behaviour import LevelOrOff
from unmask.methods.views import every_step

NOT_STATED = "not stated"

SCORED = {
    "path steps": "tokens in states of the sampled path, before the denoising steps that committed them",
    "random masks": "tokens of the finished completion under random masks",
    "branches": "other tokens in states of the sampled path, with rewards of their own",
    "preferences": "pairs of a better and a worse completion",
    "regression": "distances of the policy from a target distribution that the rewards define",
}
"""Kinds of what a method scores, in words."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What a loss reads of its views, besides their log-probabilities under the new and the
    reference policy."""

    anchor: Literal["old", "rollout"] = "old"
    """Source of `LossInputs.old`, from which ratios are measured: the policy at the start of the
    update scores the views, or the rollout recorded the log-probabilities when it drew the tokens.
    The second is possible only if each view is the state before a denoising step, with the tokens
    that the step committed."""
    divergence: Literal["none", "tv", "kl"] = "none"
    """Divergence over the whole vocabulary that the loss reads at each target: none, the total
    variation between the old and the new policy, or KL(old || new)."""
    entropy: bool = False
    """True if the loss reads the entropy of the new policy at each target."""


class Method(Named, ABC):
    """Base class of all policy-optimisation methods. The options of a method are the fields of its
    class.

    A class outside the package may leave out the class variables that describe the method.
    """

    section: ClassVar[str] = "method"

    type: str
    """Name of the method in `METHODS`, or the path of its class, such as my_method.py:MyMethod."""

    paper: ClassVar[str] = ""
    """Paper of the method, such as arXiv:2603.12554; empty if none is stated."""
    scores: ClassVar[str] = NOT_STATED
    """Kind of what the method scores, a key of `SCORED`. `unmask methods` groups methods by it."""
    summary: ClassVar[str] = ""
    """One-line description for `unmask methods`. The default is the first line of the docstring."""
    unbiased: ClassVar[str] = NOT_STATED
    """`yes` if the on-policy gradient is an unbiased estimate of the policy gradient up to a
    factor, `no` if it is not, or the settings under which it is unbiased. The statement holds for
    the orders `random`, `left_to_right`, `entropy`, `margin` and `max_probability`, under any
    schedule, and for `plackett_luce` and `learned` if the method includes their position choice."""
    estimates: ClassVar[str] = NOT_STATED
    """Quantity that the gradient estimates, and how exact the estimate is."""
    sampler: ClassVar[str] = ""
    """Sampler settings that the method requires, in words."""
    cost: ClassVar[str] = NOT_STATED
    """Number of forward passes (f) and forward-backward passes (f+b) that one update makes for each
    completion. The T forward passes of the rollout are not included."""
    separable: ClassVar[bool] = True
    """True if the loss is a sum over views (masked versions of completions), so that any chunk of
    views can be back-propagated alone. Otherwise the loss gets all views of whole groups. A first
    pass computes the loss without a graph, and a second pass back-propagates the derivative of the
    loss with respect to each log-probability, chunk by chunk. The gradient is the same, and the
    memory does not grow with the number of views. If all views fit into one forward pass, a single
    pass replaces the two."""
    by_completion: ClassVar[bool] = False
    """True if a loss that is not `separable` is a sum over completions. The loss may then get the
    views of any whole completions, and one pass is enough if the views of a completion fit into one
    forward pass. It is a property if it depends on the options."""
    on_path: ClassVar[bool] = True
    """True if the views are states of the sampled path. Their log-probabilities are then restricted
    to the tokens that the sampler's top-k and top-p allowed. Nothing was sampled in other states,
    so the log-probabilities of other views cover the whole vocabulary, at the sampling
    temperature."""
    fresh_views: ClassVar[bool] = False
    """True if each of the `num_iterations` passes has a new plan of views; False if all passes
    share one plan."""
    penalties: ClassVar[tuple[str, ...] | None] = None
    """Names of the options that weight a term of the loss in which the advantage is not a factor,
    such as the weight of a KL penalty. If all of them are 0, a view whose advantages are 0 has no
    gradient, and the trainer leaves it out. None states nothing, and then no view is left out."""

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        super().__pydantic_init_subclass__(**settings)
        if not cls.is_outside():
            return
        own = vars(cls)
        if "summary" not in own and cls.__doc__:
            cls.summary = cls.__doc__.strip().splitlines()[0].rstrip(".")
        # What a method of the package states about itself may not hold for a subclass outside the
        # package.
        cls.unbiased, cls.estimates = own.get("unbiased", NOT_STATED), own.get("estimates", NOT_STATED)
        cls.penalties = own.get("penalties")

    @abstractmethod
    def needs(self) -> Needs:
        """Return what the engine and the trainer have to provide."""

    def reads(self) -> Reads:
        """Return what the loss reads of its views, besides their log-probabilities under the new
        and the reference policy."""
        return Reads()

    @abstractmethod
    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan the views (masked versions of the completions), usually once for each rollout. The
        views are evaluated under the old, the reference and the new policy."""

    @abstractmethod
    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the advantages: [B] with one value per completion, [B, K] with one value per slot
        (a slot holds one selected step), or [B, K, M] with one value per action of a slot."""

    @abstractmethod
    def loss(self, inputs: LossInputs) -> LossOutput:
        """Return the loss of each view or, if `separable` is False, terms of any shape that sum to
        the whole loss."""

    def critic_steps(self, rollout: Rollout) -> Int[Tensor, "B C"]:
        """Return the steps before which the critic values the state, in order of time unless the
        method says otherwise; -1 in an empty slot, and empty slots come last. It is called only if
        `Needs.critic` is set. The default is every step that committed a token."""
        return every_step(rollout.trajectory)

    def has_signal(self, rollout: Rollout) -> Bool[Tensor, "n"]:
        """Return for each of the n groups of a rollout whether any of its completions has an advantage
        other than 0. The rewards of the other groups teach the method nothing. With a critic every
        group has signal, because equal rewards still differ from its values."""
        if self.needs().critic:
            return torch.ones(len(rollout.reward) // rollout.group_size, dtype=torch.bool, device=rollout.reward.device)
        advantage = self.advantage(rollout)
        return (advantage != 0).view(len(advantage) // rollout.group_size, -1).any(-1)

    def has_gradient(self, advantage: Float[Tensor, "N *M"]) -> Bool[Tensor, "N"]:
        """Return False for each view that has no gradient because its advantages are 0. A view has
        a gradient in any case if a penalty is in use, or if the method does not state its
        `penalties`."""
        if self.penalties is None or any(getattr(self, name) for name in self.penalties):
            return torch.ones(len(advantage), dtype=torch.bool, device=advantage.device)
        return (advantage != 0).unsqueeze(-1).flatten(1).any(-1)

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return the levels at which the ratio of the old to the behaviour policy can weight the
        loss, that of the method's own ratio first. The first is `off` if the loss has no ratio of
        tokens that the behaviour policy drew.

        Weights multiply the advantage, so a loss that is proportional to the advantage (the KL to
        the reference aside) can be weighted by completion, which is the default. A method may add
        `step` if each view is the state before a denoising step and its targets are the tokens that
        the step committed; of several token sequences, the first is then the completion's own. It
        may add `token` if its loss also uses `LossInputs.token_weight`.
        """
        return ("sequence",)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError if settings do not fit together.

        Raises:
            ConfigError: the baseline compares the completions of a group, but a group has a single
                completion; or the order is learned, but the loss does not include the position choice.
        """
        if sampler.order == LEARNED and not self.needs().choice:
            raise ConfigError(
                f"sampler.order = learned trains a position head by the probability of the positions, which {self.type} leaves "
                "out of its loss. Use a method that includes it, such as egspo, agrpo, step_merge or mask_aware, or the order "
                "plackett_luce."
            )
        if self.needs().group and num_generations < 2:
            raise ConfigError(
                f"num_generations = {num_generations}, but {self.type} compares the completions of a prompt with each other. "
                "Set num_generations to 2 or more."
            )

    def check_batch(self, num_completions: int) -> None:
        """Raise ConfigError if a training step with this number of completions, of all prompts
        together, is too small for the baseline."""

    def refuse_more_than_steps(self, option: str, sampler: SamplerConfig) -> None:
        """Raise ConfigError if the value of `option` is larger than the number of denoising steps
        of the sampler."""
        if getattr(self, option) > sampler.steps:
            raise ConfigError(
                f"method.{option} = {getattr(self, option)} is more than the {sampler.steps} denoising steps. "
                f"Set it to {sampler.steps} or less, or raise sampler.num_steps."
            )

    @classmethod
    def needed(cls) -> str:
        """Return the requirements of the default settings in words. The text is empty for a method
        that has options without a default."""
        if any(field.is_required() for field in cls.model_fields.values()):
            return NOT_STATED
        needs = cls.model_validate({}).needs()
        parts = [
            "a group" if needs.group else "",
            "a reference" if needs.reference != "none" else "",
            "one-step rewards" if needs.greedy else "",
            "a critic" if needs.critic else "",
            f"{needs.branches.count} other branches of a state" if needs.branches else "",
            cls.sampler,
        ]
        return ", ".join(filter(None, parts)) or "nothing"
