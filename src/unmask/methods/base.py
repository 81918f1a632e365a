"""What a method is: its options, what it needs of a rollout, a plan, an advantage and a loss.

The trainer samples, scores, shards, steps and writes; it never asks which method it runs.
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
from unmask.functional.surrogate import clipped_surrogate, divergence_masked_surrogate, kl_k3

NOT_STATED = "not stated"


class Method(Named, ABC):
    """Base of all policy-optimisation methods. The options of a method are the fields of its class.

    The class variables that describe a method are optional for a class outside the package.
    """

    section: ClassVar[str] = "method"

    type: str
    """A name in `METHODS`, or the path of a class, as in my_method.py:MyMethod."""

    paper: ClassVar[str] = ""
    """Its source, such as arXiv:2603.12554; empty if none is stated."""
    summary: ClassVar[str] = ""
    """One line for `unmask methods`; default the first line of the docstring."""
    unbiased: ClassVar[str] = NOT_STATED
    """Whether its gradient, on-policy, is unbiased for the policy gradient up to a factor: yes, no, or with which settings; under
    the orders `random`, `left_to_right`, `entropy` and `margin`, and `plackett_luce` where the method counts its choice."""
    estimates: ClassVar[str] = NOT_STATED
    """What its gradient is an estimate of, and how exactly."""
    sampler: ClassVar[str] = ""
    """What it asks of the sampler's settings, in words."""
    cost: ClassVar[str] = NOT_STATED
    """Forwards (f) and forwards with backward (f+b) of a completion in one update, beside the rollout's T forwards."""
    separable: ClassVar[bool] = True
    """Whether the loss is a sum over views, so that any chunk of them can be back-propagated alone. If not, the loss is given all
    views of whole groups, first without graph; the derivative with respect to each log-probability is then back-propagated
    chunk by chunk (two passes, the same gradient, memory that does not grow with the number of views). Where all views fit into
    one forward, one pass does."""
    on_path: ClassVar[bool] = True
    """Whether the views are states of the path, in which the sampler's top-k and top-p restricted the tokens. Elsewhere nothing
    was drawn, so likelihoods there are of the whole vocabulary, at the sampling temperature."""
    fresh_views: ClassVar[bool] = False
    """Whether each of the `num_iterations` passes gets a plan of its own; otherwise all share one."""

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        super().__pydantic_init_subclass__(**settings)
        if not cls.is_outside():
            return
        own = vars(cls)
        if "summary" not in own and cls.__doc__:
            cls.summary = cls.__doc__.strip().splitlines()[0].rstrip(".")
        # What holds of a method of the package need not hold of a class that changes it.
        cls.unbiased, cls.estimates = own.get("unbiased", NOT_STATED), own.get("estimates", NOT_STATED)

    @abstractmethod
    def needs(self) -> Needs:
        """What the engine has to provide."""

    @abstractmethod
    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """The corrupted readings that are scored, made once and evaluated under old, reference and new policy."""

    @abstractmethod
    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Returns [B], [B, K] where each slot of a completion has its own, or [B, K, M] where each action of a slot has."""

    @abstractmethod
    def loss(self, inputs: LossInputs) -> LossOutput:
        """The loss of each view, or whatever sums to the whole where the method is not separable."""

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Refuse settings that do not go together.

        Raises:
            ConfigError: a group-relative baseline over groups of one.
        """
        if self.needs().group and num_generations < 2:
            raise ConfigError(
                f"num_generations = {num_generations}, but {self.type} compares the completions of a prompt with each other. "
                "Set num_generations to 2 or more."
            )

    def refuse_more_than_steps(self, option: str, sampler: SamplerConfig) -> None:
        """Raise ConfigError if the option `option` counts more denoising steps than there are."""
        if getattr(self, option) > sampler.steps:
            raise ConfigError(
                f"method.{option} = {getattr(self, option)} is more than the {sampler.steps} denoising steps there are. "
                f"Set it to {sampler.steps} or less, or raise sampler.num_steps."
            )

    @classmethod
    def needed(cls) -> str:
        """Returns in words what its defaults ask of a run; a method with options that must be set has none."""
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
    """A method whose loss is a ratio of new to old probabilities times an advantage, within a trust region."""

    trust_region: Literal["clip", "divergence", "none"] = "clip"
    """`clip`: PPO's pessimistic clip of the ratio. `divergence`: DPPO's mask (arXiv:2602.04879), which drops an update that would
    move the policy further once the probability of what was sampled has moved by more than `max_divergence`. `none`: the bare
    ratio."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip."""
    dual_clip: float = Field(0.0, ge=0)
    """Bound of ρ where the advantage is negative (arXiv:1912.09729), above 1; 0 for none."""
    divergence: Literal["tv", "kl"] = "tv"
    """What the divergence mask measures: total variation, or KL of the old policy to the new."""
    max_divergence: float = Field(0.15, ge=0)
    """δ of the divergence mask."""

    samples: ClassVar[str] = ""
    """What its ratio is of, if that is no single token or step, whose probability the divergence mask reads."""

    @field_validator("dual_clip")
    @classmethod
    def _check_dual_clip(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError(
                f"dual_clip = {value} would cut ratios that have not risen. Use a number above 1, or 0 for none."
            )
        return value

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Also refuse a divergence of what has no probability of its own.

        Raises:
            ConfigError: see above.
        """
        super().check(sampler, num_generations)
        if self.trust_region == "divergence" and self.samples:
            raise ConfigError(
                f"method.trust_region = divergence measures how far the probability of one token or step moved, and {self.type} "
                f"has ratios of {self.samples}. Set it to clip or none."
            )

    def surrogate(
        self,
        log_ratio: Float[Tensor, "*batch"],
        advantage: Float[Tensor, "*#batch"],
        new_logprob: Float[Tensor, "*#batch"],
    ) -> tuple[Float[Tensor, "*batch"], dict[str, Tensor]]:
        """The loss of each element, -ρ A within the trust region, and its metrics.

        Args:
            log_ratio: [...] nats, with graph: of tokens, steps, views or sequences.
            advantage: broadcasts to it.
            new_logprob: [...] nats: of the sample under the new policy; read by the divergence mask only.
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
    ) -> tuple[Float[Tensor, "N L"], dict[str, Tensor]]:
        """The loss of each token with a ratio of its own, -ρ A within the trust region plus β k3, and its metrics.

        Args:
            new: [N, L] nats, with graph.
            old: [N, L] nats.
            advantage: [N].
            target: [N, L] bool: tokens that count.
            reference: [N, L] nats; read where β > 0.
            beta: β >= 0, weight of the KL to the reference, which is of the tokens alone.
            choice: [N, L] nats each, log-probabilities of the choice of each position under the new and the old policy, which the
                ratio then counts; see `choices`.

        Returns:
            [N, L], 0 outside `target`; and the metrics of the targets alone.
        """
        log_ratio, log_action = new - old, new
        if choice is not None:
            log_ratio, log_action = log_ratio + choice[0] - choice[1], log_action + choice[0]
        loss, metrics = self.surrogate(log_ratio, advantage.unsqueeze(-1), log_action)
        if beta:
            assert reference is not None
            kl = kl_k3(new, reference)
            loss = loss + beta * kl
            metrics["kl"] = kl.detach()
        return loss.masked_fill(~target, 0.0), {name: values[target] for name, values in metrics.items()}
