"""Base classes of methods: options, requirements of a rollout, a plan of views, an advantage and a
loss.

The trainer samples completions, computes rewards and log-probabilities, distributes the work,
updates the weights and saves checkpoints. It never depends on which method it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor

from unmask.core.config import Named, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.behaviour import LevelOrOff
from unmask.functional.surrogate import clipped_surrogate, divergence_masked_surrogate, kl_k3

NOT_STATED = "not stated"


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
    summary: ClassVar[str] = ""
    """One-line description for `unmask methods`. The default is the first line of the docstring."""
    unbiased: ClassVar[str] = NOT_STATED
    """`yes` if the on-policy gradient is an unbiased estimate of the policy gradient up to a
    factor, `no` if it is not, or the settings under which it is unbiased. The statement holds for
    the orders `random`, `left_to_right`, `entropy`, `margin` and `max_probability`, under any
    schedule, and for `plackett_luce` if the method includes its position choice."""
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
    forward pass."""
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
                completion.
        """
        if self.needs().group and num_generations < 2:
            raise ConfigError(
                f"num_generations = {num_generations}, but {self.type} compares the completions of a prompt with each other. "
                "Set num_generations to 2 or more."
            )

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
            f"{needs.branches.count} other branches of a state" if needs.branches else "",
            cls.sampler,
        ]
        return ", ".join(filter(None, parts)) or "nothing"


class RatioMethod(Method):
    """Base class of methods whose loss is a probability ratio times an advantage, within a trust
    region."""

    trust_region: Literal["clip", "divergence", "none"] = "clip"
    """Trust region. `clip`: PPO's pessimistic clip of the ratio. `divergence`: DPPO's mask
    (arXiv:2602.04879), which drops an update that would move the policy further once the
    probability of the sample has moved by more than `max_divergence`. `none`: the plain ratio."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio, as a distance from 1."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip of the ratio, as a distance from 1."""
    dual_clip: float = Field(0.0, ge=0)
    """Upper bound of the ratio ρ for negative advantages (arXiv:1912.09729), greater than 1; 0 sets
    no bound."""
    divergence: Literal["tv", "kl"] = "tv"
    """Divergence that limits the update under `trust_region: divergence`: total variation, or the
    KL from the old to the new policy."""
    max_divergence: float = Field(0.15, ge=0)
    """Largest divergence δ that is allowed under `trust_region: divergence`."""

    samples: ClassVar[str] = ""
    """Kind of samples that the ratio belongs to, such as whole completions; empty for single tokens
    or steps. The divergence mask needs the probability of a sample, which only tokens and steps
    have."""

    @field_validator("dual_clip")
    @classmethod
    def _check_dual_clip(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError(
                f"dual_clip = {value} would cut ratios that have not risen. Use a number above 1, or 0 for none."
            )
        return value

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if the divergence mask is set for samples that have no
        probability.

        Raises:
            ConfigError: the settings do not fit together.
        """
        super().check(sampler, num_generations)
        if self.trust_region == "divergence" and self.samples:
            raise ConfigError(
                f"method.trust_region = divergence needs the probability of one token or step, but {self.type} "
                f"has ratios of {self.samples}. Set method.trust_region to clip or none."
            )

    def surrogate(
        self,
        log_ratio: Float[Tensor, "*batch"],
        advantage: Float[Tensor, "*#batch"],
        new_logprob: Float[Tensor, "*#batch"],
    ) -> tuple[Float[Tensor, "*batch"], dict[str, Tensor]]:
        """Compute the loss of each element, which is -ρ A within the trust region, and its metrics.

        Args:
            log_ratio: [...] nats, differentiable: log-ratios of tokens, steps, views or sequences.
            advantage: advantages, which broadcast to log_ratio.
            new_logprob: [...] nats: log-probability of the sample under the new policy; used only
                by the divergence mask.
        """
        advantage = advantage.expand_as(log_ratio)
        if self.trust_region == "divergence":
            loss, is_cut = divergence_masked_surrogate(
                log_ratio, advantage, new_logprob, self.divergence, self.max_divergence
            )
        elif self.trust_region == "clip":
            loss, is_cut = clipped_surrogate(log_ratio, advantage, self.epsilon, self.epsilon_high, self.dual_clip)
        else:
            loss = -log_ratio.exp() * advantage
            is_cut = torch.zeros_like(loss, dtype=torch.bool)
        return loss, {
            "clip_ratio/region_mean": is_cut.float(),
            "clip_ratio/low_mean": (is_cut & (advantage < 0)).float(),
            "clip_ratio/high_mean": (is_cut & (advantage > 0)).float(),
            "policy/ratio_max": log_ratio.detach().exp(),
        }

    def token_loss(
        self,
        new: Float[Tensor, "N L"],
        old: Float[Tensor, "N L"],
        advantage: Float[Tensor, "N"],
        target: Bool[Tensor, "N L"],
        reference: Float[Tensor, "N L"] | None = None,
        beta: float = 0.0,
        choice: tuple[Float[Tensor, "N L"], Float[Tensor, "N L"]] | None = None,
        weight: Float[Tensor, "N L"] | None = None,
    ) -> tuple[Float[Tensor, "N L"], dict[str, Tensor]]:
        """Compute the loss of each token and its metrics. The loss is -ρ A within the trust region,
        plus β k3, where ρ is the ratio of the token.

        Args:
            new: [N, L] nats, differentiable: log-probabilities under the new policy.
            old: [N, L] nats: log-probabilities under the old policy.
            advantage: [N] advantages.
            target: [N, L] bool, True at tokens that count.
            reference: [N, L] nats: log-probabilities under the reference policy; used if β > 0.
            beta: weight β >= 0 of the KL to the reference policy. The KL covers the tokens but not
                the position choices.
            choice: [N, L] nats each: log-probabilities of the position choices under the new and
                the old policy, to include in the ratio; see `LossInputs.choices`.
            weight: [N, L] weights >= 0 of the tokens, which multiply the advantage; None for 1.

        Returns:
            The loss [N, L], 0 outside `target`, and the metrics of the targets.
        """
        log_ratio, log_action = new - old, new
        if choice is not None:
            log_ratio, log_action = log_ratio + choice[0] - choice[1], log_action + choice[0]
        by_token = advantage.unsqueeze(-1) if weight is None else advantage.unsqueeze(-1) * weight
        loss, metrics = self.surrogate(log_ratio, by_token, log_action)
        if beta:
            assert reference is not None
            kl = kl_k3(new, reference)
            loss = loss + beta * kl
            metrics["kl"] = kl.detach()
        return loss.masked_fill(~target, 0.0), {name: values[target] for name, values in metrics.items()}
