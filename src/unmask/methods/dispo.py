"""DiSPO, diffusion-state policy optimisation (Oba, Furuta and Okazaki, arXiv:2602.06462), added to
a terminal-feedback method.

At intermediate masked states the masked positions are drawn again from the rollout's own logits,
the resulting branches (alternative completions) get rewards, and these rewards train the new
tokens. No further rollout is made. The terminal term is that of diffu-GRPO (arXiv:2504.12216): it
predicts the whole completion from a fully masked one, and compares the completions of a group by
their rewards. Only the abstract and the project page are public; docs/methods/dispo.md lists the
questions that they leave open.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import GIVEN, LossInputs, LossOutput, Needs, Rollout, Views
from unmask.functional.advantage import counterfactual_advantage, group_advantage
from unmask.functional.behaviour import LevelOrOff
from unmask.methods.ratio import RatioMethod
from unmask.methods.views import scored_tokens, step_views


class DiSPO(RatioMethod):
    """Terminal feedback on the completion, and feedback on branches of some intermediate states."""

    type: Literal["dispo"] = "dispo"
    num_states: int = Field(1, ge=1)
    """Number of states of each completion whose masked positions are drawn again."""
    num_fills: int = Field(4, ge=2)
    """Number of branches of each state."""
    state_choice: Literal["uniform", "entropy_topk"] = "uniform"
    """Rule that selects the states."""
    state_weight: float = Field(1.0, ge=0)
    """Weight of the loss term of the states."""
    terminal_weight: float = Field(1.0, ge=0)
    """Weight of the terminal term; 0 leaves only the term of the states, which needs no group."""
    epsilon: float = Field(0.5, ge=0)
    """Lower clip of the token ratio, as a distance from 1; the default is that of diffu-GRPO."""
    epsilon_high: float = Field(0.5, ge=0)
    """Upper clip, as a distance from 1; the default is that of diffu-GRPO."""

    scores: ClassVar[str] = "branches"
    paper: ClassVar[str] = "arXiv:2602.06462"
    summary: ClassVar[str] = "branches at intermediate states, in addition to diffu-GRPO's terminal feedback"
    unbiased: ClassVar[str] = "no"
    estimates: ClassVar[str] = (
        "the gradient of the one-step reward at the states drawn, plus diffu-GRPO's mean-field gradient"
    )
    cost: ClassVar[str] = "1 + K f+b (+ 1 + K f old); K M reward calls"
    penalties: ClassVar[tuple[str, ...] | None] = ()

    def needs(self) -> Needs:
        """Require branches of the selected states in which all masked positions are drawn again."""
        return Needs(
            selection=(self.state_choice, self.num_states),
            branches=Branches(self.num_fills, "all"),
            group=self.terminal_weight > 0,
        )

    def check(self, sampler: SamplerConfig, num_generations: int) -> None:
        """Raise ConfigError also if there are more states than steps, or if both weights are 0."""
        super().check(sampler, num_generations)
        self.refuse_more_than_steps("num_states", sampler)
        if not self.terminal_weight and not self.state_weight:
            raise ConfigError("method.terminal_weight and method.state_weight are both 0. Set one of them above 0.")

    def behaviour_levels(self, sampler: SamplerConfig) -> tuple[LevelOrOff, ...]:
        """Return `off` first if there is no terminal term: the branches are drawn from the old
        policy itself, so only their states need weights."""
        return ("sequence",) if self.terminal_weight else ("off", "sequence")

    def plan(self, rollout: Rollout, generator: torch.Generator) -> Views:
        """Plan a fully masked view of each completion in slot 0, and a view of each selected state
        in the other slots, with the tokens of its branches as targets."""
        path = rollout.trajectory
        assert path.branch_tokens is not None
        length, num_rows = path.tokens.shape[1], len(path)
        states = step_views(path, path.selected_steps, torch.ones_like(path.selected_steps, dtype=torch.float32))
        branches = path.branch_tokens[states.row, states.slot]
        per_state = self.state_weight / (self.num_states * length)
        written = path.unmask_step != GIVEN
        own = path.tokens.int().unsqueeze(1).expand(-1, self.num_fills, -1)
        views = Views(
            row=torch.cat([torch.arange(num_rows, device=states.row.device), states.row]),
            hidden=torch.cat([written, states.hidden]),
            target=torch.cat([scored_tokens(path), states.hidden]),
            weight=torch.cat(
                [states.weight.new_full((num_rows,), self.terminal_weight / length), per_state * states.weight]
            ),
            slot=torch.cat([torch.zeros_like(path.seed), 1 + states.slot]),
            tokens=torch.cat([own, branches]),
            # A branch was drawn given the masks of the state, all of them.
            sees_clean_past=torch.cat([torch.ones_like(path.seed), torch.zeros_like(states.row)]).bool(),
        )
        return views.take(views.weight > 0)

    def advantage(self, rollout: Rollout) -> Float[Tensor, "B *K"]:
        """Return the group advantage in slot 0, and (r_m - mean r) / (M - 1) for branch m in each
        of the other slots, [B, 1 + K, M]."""
        assert rollout.branch_reward is not None
        of_branches = counterfactual_advantage(rollout.branch_reward)
        terminal = torch.zeros_like(of_branches[:, :1])
        if self.terminal_weight:
            terminal[:, 0, 0] = group_advantage(rollout.reward, rollout.group_size, "group_mean")
        return torch.cat([terminal, of_branches], dim=1)

    def loss(self, inputs: LossInputs) -> LossOutput:
        """Compute w Σ_m Σ_i -min(ρ_mi A_m, clip(ρ_mi) A_m) over the tokens i of sequence m."""
        loss, metrics = self.token_loss(inputs)
        return LossOutput(inputs.weight * loss.sum((1, 2)), metrics)
