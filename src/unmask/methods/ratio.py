"""Base class of methods whose loss is a probability ratio times an advantage: the trust regions that
they share."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import LossInputs
from unmask.functional.divergence import binary_divergence
from unmask.functional.surrogate import clipped_surrogate, divergence_surrogate, kl_k3
from unmask.methods.base import Method, Reads


class RatioMethod(Method):
    """Base class of methods whose loss is a probability ratio times an advantage, within a trust
    region. docs/methods/dppo.md describes the trust regions."""

    trust_region: Literal["clip", "divergence", "none"] = "clip"
    """Trust region. `clip`: PPO's pessimistic clip of the ratio. `divergence`: DPPO
    (arXiv:2602.04879), in which each token has a ratio of its own, and a token whose distribution
    has moved by more than `max_divergence` drops an update that would move it further. `none`: the
    plain ratio."""
    epsilon: float = Field(0.2, ge=0)
    """Lower clip of the ratio, as a distance from 1."""
    epsilon_high: float = Field(0.2, ge=0)
    """Upper clip of the ratio, as a distance from 1."""
    dual_clip: float = Field(0.0, ge=0)
    """Upper bound of the ratio ρ for negative advantages (arXiv:1912.09729), greater than 1; 0 sets
    no bound. It belongs to `trust_region: clip`."""
    divergence: Literal["binary_tv", "binary_kl", "tv", "kl"] = "binary_tv"
    """Divergence of DPPO. `binary_tv` and `binary_kl` are those between the drawn token and all
    other tokens. `tv` and `kl` are exact: the total variation, or KL(old || new), over the whole
    vocabulary."""
    max_divergence: float | None = Field(None, ge=0)
    """Largest divergence δ under DPPO. The default is 0.2 for a total variation and 0.05 nats for a
    KL, as in released code."""
    anchor: Literal["rollout", "old"] = "rollout"
    """Policy that ratios and binary divergences of DPPO are measured from: `rollout` for the
    probabilities that the rollout recorded, as in the paper, or `old` for the policy at the start
    of the update. Exact divergences are always measured from the old policy, because a rollout
    records no whole distributions."""
    ratio_cap: float = Field(20.0, ge=0)
    """Upper bound C of the ratio under DPPO, at least 1, which keeps the gradient; 0 sets no bound.
    The default is that of the released code."""

    entropy_weight: float = Field(0.0, ge=0)
    """Weight γ of the information-bottleneck term -γ A Σ h, where h is the entropy of a trained
    token (arXiv:2507.18391): a positive advantage keeps a step's tokens uncertain, and a negative
    one makes them certain. 0 leaves the term out."""

    samples: ClassVar[str] = ""
    """Kind of samples that the ratio belongs to, such as whole completions; empty for tokens or
    steps. DPPO needs the distribution of a sample, which only tokens have, and the tokens of a step
    have one each."""

    @field_validator("dual_clip")
    @classmethod
    def _check_dual_clip(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError(f"{value} would cut ratios that have not risen. Use a number above 1, or 0 for no bound.")
        return value

    @field_validator("ratio_cap")
    @classmethod
    def _check_ratio_cap(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"{value} would cut ratios that have not risen. Use 1 or more, or 0 for no bound.")
        return value

    def reads(self) -> Reads:
        """Return what the trust region and the information-bottleneck term read."""
        reads = Reads(entropy=self.entropy_weight > 0)
        if self.trust_region != "divergence":
            return reads
        if self.divergence in ("tv", "kl"):
            return replace(reads, divergence=self.divergence)
        return replace(reads, anchor=self.anchor)

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if DPPO is set for samples that have no distribution, if it is
        anchored at probabilities that the rollout does not record, or if the information-bottleneck
        term is set for a loss that does not train the tokens of one path.

        Raises:
            ConfigError: the settings do not fit together.
        """
        super().check(sampler, num_generations)
        if self.trust_region == "divergence" and self.samples:
            raise ConfigError(
                f"method.trust_region = divergence needs the distribution of one token, but {self.type} "
                f"has ratios of {self.samples}. Set method.trust_region to clip or none."
            )
        if self.entropy_weight and (self.samples or self.needs().branches is not None):
            raise ConfigError(
                f"method.entropy_weight needs one advantage for each token of a path, but {self.type} has "
                f"{'ratios of ' + self.samples if self.samples else 'several actions for each state'}. Set it to 0."
            )
        has_record = "step" in self.behaviour_levels(sampler) and self.needs().branches is None
        if self.reads().anchor == "rollout" and not has_record:
            raise ConfigError(
                f"method.anchor = rollout needs the probabilities with which the rollout drew the tokens, but {self.type} "
                "also scores tokens in states from which the rollout did not draw them. Set method.anchor = old."
            )

    def surrogate(
        self, log_ratio: Float[Tensor, "*batch"], advantage: Float[Tensor, "*#batch"]
    ) -> tuple[Float[Tensor, "*batch"], dict[str, Tensor]]:
        """Compute the loss of each element, which is -ρ A, clipped if the trust region is `clip`,
        and its metrics.

        Args:
            log_ratio: [...] nats, differentiable: log-ratios of tokens, steps, views or sequences.
            advantage: advantages, which broadcast to log_ratio.
        """
        advantage = advantage.expand_as(log_ratio)
        if self.trust_region == "clip":
            loss, is_cut = clipped_surrogate(log_ratio, advantage, self.epsilon, self.epsilon_high, self.dual_clip)
        else:
            loss = -log_ratio.exp() * advantage
            is_cut = torch.zeros_like(loss, dtype=torch.bool)
        return loss, _metrics(log_ratio, advantage, is_cut)

    def step_loss(self, inputs: LossInputs) -> tuple[Float[Tensor, "N *M"], dict[str, Tensor]]:
        """Compute the loss of each step, and its metrics. The loss is -ρ A within the trust region,
        where ρ is the ratio of the step's joint probabilities, position choice included, plus the
        information-bottleneck term.

        Under DPPO it is the sum over the tokens of `token_loss`: the distribution of a step is too
        large to compare, but the tokens of a step are independent of each other. At ρ = 1 both have
        the same gradient.

        Args:
            inputs: views of one step each, whose tokens are the targets.
        """
        if self.trust_region == "divergence":
            loss, metrics = self.token_loss(inputs)
            return loss.sum(-1), metrics
        log_ratio = (inputs.new - inputs.old).sum(-1)
        if inputs.choices is not None:
            new_choice, old_choice = inputs.choices
            log_ratio = log_ratio + (new_choice - old_choice).sum(-1)
        loss, metrics = self.surrogate(log_ratio, inputs.advantage)
        if self.entropy_weight:
            assert inputs.entropy is not None
            loss = loss - self.entropy_weight * inputs.advantage * inputs.entropy.sum(-1)
            metrics["policy/entropy"] = inputs.entropy.detach()[inputs.target]
        return loss, metrics

    def token_loss(
        self, inputs: LossInputs, anchor: Float[Tensor, "N *M L"] | None = None, beta: float = 0.0
    ) -> tuple[Float[Tensor, "N *M L"], dict[str, Tensor]]:
        """Compute the loss of each token and its metrics. The loss is -ρ A within the trust region,
        plus β k3 and the information-bottleneck term, where ρ is the ratio of the token, times that
        of its position choice if the inputs have one. The weights `LossInputs.token_weight` multiply the advantage.

        Args:
            inputs: views whose targets are the tokens.
            anchor: log-probabilities of the targets, nats, from which the KL is measured; used if
                β > 0.
            beta: weight β >= 0 of the KL, which covers the tokens but not the position choices.

        Returns:
            The loss, 0 outside the targets, and the metrics of the targets.
        """
        advantage = inputs.advantage.unsqueeze(-1)
        if inputs.token_weight is not None:
            advantage = advantage * inputs.token_weight
        if self.trust_region == "divergence":
            loss, metrics = self._divergence_loss(inputs, advantage)
        else:
            log_ratio = inputs.new - inputs.old
            if inputs.choices is not None:
                log_ratio = log_ratio + inputs.choices[0] - inputs.choices[1]
            loss, metrics = self.surrogate(log_ratio, advantage)
        if self.entropy_weight:
            assert inputs.entropy is not None
            loss = loss - self.entropy_weight * advantage * inputs.entropy
            metrics["policy/entropy"] = inputs.entropy.detach()
        if beta:
            assert anchor is not None
            kl = kl_k3(inputs.new, anchor)
            loss = loss + beta * kl
            metrics["kl"] = kl.detach()
        target = inputs.target if loss.dim() == 2 else inputs.target.unsqueeze(1).expand_as(loss)
        return loss.masked_fill(~target, 0.0), {name: values[target] for name, values in metrics.items()}

    def _divergence_loss(self, inputs: LossInputs, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return DPPO's loss of each token and its metrics; the choice of its position has a ratio
        and a mask of its own."""
        kind: Literal["tv", "kl"] = "tv" if self.divergence.endswith("tv") else "kl"
        bound = self.max_divergence if self.max_divergence is not None else {"tv": 0.2, "kl": 0.05}[kind]
        if self.divergence == kind:
            assert inputs.divergence is not None
            moved = inputs.divergence if inputs.new.dim() == 2 else inputs.divergence.unsqueeze(1)
        else:
            moved = binary_divergence(inputs.new, inputs.old, kind)
        log_ratio = inputs.new - inputs.old
        advantage, moved = advantage.expand_as(log_ratio), moved.expand_as(log_ratio)
        loss, is_dropped = divergence_surrogate(log_ratio, advantage, moved, bound, self.ratio_cap)
        metrics = _metrics(log_ratio, advantage, is_dropped) | {"policy/divergence_max": moved}
        if inputs.choices is not None:
            new, old = inputs.choices
            of_choice = binary_divergence(new, old, kind)
            loss = loss + divergence_surrogate(new - old, advantage, of_choice, bound, self.ratio_cap)[0]
        return loss, metrics


def _metrics(log_ratio: Tensor, advantage: Tensor, is_cut: Tensor) -> dict[str, Tensor]:
    """Return the metrics of a trust region that cuts the gradient of some elements."""
    return {
        "clip_ratio/region_mean": is_cut.float(),
        "clip_ratio/low_mean": (is_cut & (advantage < 0)).float(),
        "clip_ratio/high_mean": (is_cut & (advantage > 0)).float(),
        "policy/ratio_max": log_ratio.detach().exp(),
    }
