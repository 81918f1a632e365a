"""The records that everything hangs on: what a rollout was, which corrupted readings of it are scored, what a loss is.

docs/symbols.md lists the letters of the dimensions, which mean the same everywhere. Steps run in execution order, k = 0 (all
masked) to T - 1. The test run checks the annotated shapes and types whenever a record is made; that check reads annotations as
they stand, so this module does without `from __future__ import annotations`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from unmask.core.config import SamplerConfig

GIVEN = -1
"""`unmask_step` of a completion token that was there before the first step (infilling, branching)."""


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of a batch's leading columns, for a denoiser whose later columns cannot change them."""

    length: int = 0
    """Columns that it holds."""
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of each layer, [B, heads, length, width of a head] each."""

    def rows(self, index: Tensor) -> "PrefixCache":
        """The rows that `index` picks, copied."""
        return PrefixCache(self.length, [(keys[index], values[index]) for keys, values in self.layers])


class DenoiserLike(Protocol):
    """What samplers need of a model: logits at wanted positions of a partially masked sequence."""

    mask_id: int
    eos_id: int

    def __call__(self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor) -> Tensor:
        """[B, S] int64 ids, [B, S] bool or None (no padding), [B, n] int64 positions -> [B, n, V] logits, temperature 1.

        One that says `block_length` is block-causal, and also takes `prefix`, a `PrefixCache` of its leading columns, and `keep`,
        how many of them to hold from now on.
        """
        ...


@dataclass(frozen=True, slots=True)
class Readout:
    """What is wanted of the logits of each position, so that a denoiser need not have them all at once."""

    read: Callable[[Tensor, Tensor], Tensor]
    """Maps [n, V] logits at temperature 1 and [n, M] facts of the positions to [n, c]; each position by itself."""
    facts: Tensor
    """[B, n, M] int64, such as the tokens whose probabilities are asked."""
    at_once: int
    """Positions whose logits may be there at a time."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A batch of denoising paths as *what* was written and *when*; every intermediate state is derived, none is kept.

    20 bytes a completion token, and 4 K bytes more where greedy one-step completions are kept.
    """

    prompt_ids: Int[Tensor, "B P"]
    """[B, P] int64, left-padded."""
    prompt_mask: Bool[Tensor, "B P"]
    """[B, P] bool, False at padding."""
    tokens: Int[Tensor, "B L"]
    """[B, L] int64, the finished completion."""
    unmask_step: Int[Tensor, "B L"]
    """[B, L] int32: the step that committed the position; GIVEN (-1) if it was there from the start, T if it was filled with
    EOS after the row had ended, so that it is masked in every state that the policy saw."""
    logprob: Float[Tensor, "B L"]
    """[B, L] float32, nats: of the committed token under the behaviour policy at its temperature and support; 0 where none was
    committed."""
    entropy: Float[Tensor, "B L"]
    """[B, L] float32, nats: of the distribution being differentiated, at the moment of commitment; 0 where none was."""
    seed: Int[Tensor, "B"]
    """[B] int64: all randomness of a row is a hash of its seed, so a row does not depend on its batch."""
    sampler: SamplerConfig
    """Settings with which the completions were sampled; a replay of the path needs them."""
    mask_id: int
    eos_id: int
    choice_rank: Int[Tensor, "B L"] | None = None
    """[B, L] int32: place of the position in its step's draw, from 0; only under an order whose choice has a probability."""
    choice_logprob: Float[Tensor, "B L"] | None = None
    """[B, L] float32, nats: with which the position was drawn from those that were left in its block; with `choice_rank`."""
    selected_step: Int32[Tensor, "B K"] | None = None
    """[B, K] int32: steps whose one-step completions were kept, in the order of the selection; -1 for an empty slot."""
    one_step_tokens: Int[Tensor, "B K L"] | None = None
    """[B, K, L] int32: x̂_k, the state before step k with every masked position filled by its likeliest token."""
    branch_tokens: Int[Tensor, "B K M L"] | None = None
    """[B, K, M, L] int32: other completions of the same states, as `Needs.branches` asks for them."""
    turn_end_id: int | None = None
    """The token that ends an assistant's turn, where the model has another than EOS: what follows is not of the completion."""
    policy_version: int = 0
    """Version of the weights that sampled the completions: the number of training steps that they had been through."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_steps(self) -> int:
        """T, the number of denoising steps of the sampler."""
        return self.sampler.steps

    def state_before(self, step: Int[Tensor, "B"] | int) -> Int[Tensor, "B L"]:
        """[B, L] int64: the completion as the policy saw it at `step` (an int or [B]); step 0 is the starting state."""
        if isinstance(step, Tensor):
            step = step.unsqueeze(-1)
        return self.tokens.masked_fill(self.unmask_step >= step, self.mask_id)

    @property
    def selected_steps(self) -> Int32[Tensor, "B K"]:
        """`selected_step`, for a method that asked for one-step completions."""
        assert self.selected_step is not None
        return self.selected_step

    def step_read(self, views: "Views") -> Int[Tensor, "N"]:
        """[N] int64: the step whose state each view shows, the first of its targets'; -1 where it shows no state of the path."""
        when = self.unmask_step[views.row]
        first = when.masked_fill(~views.target, self.num_steps).min(-1).values
        is_state = (views.hidden == (when >= first.unsqueeze(-1))).all(-1) & (first < self.num_steps)
        if views.prompt_hidden is not None:
            is_state &= ~views.prompt_hidden.any(-1)
        return first.long().masked_fill(~is_state, -1)

    def is_text(self) -> Bool[Tensor, "B L"]:
        """[B, L] bool: positions before the first EOS or end of the turn, those that make the completion's text."""
        is_end = self.tokens == self.eos_id
        if self.turn_end_id is not None:
            is_end |= self.tokens == self.turn_end_id
        return is_end.cumsum(-1) == 0

    def to(self, device: torch.device | str) -> "Trajectory":
        """The same record with its tensors on `device`."""
        return self._with({name: value.to(device) for name, value in self.tensors().items()})

    def rows(self, index: Tensor | slice) -> "Trajectory":
        """The record of the rows that `index` picks."""
        return self._with({name: value[index] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensor fields that are set, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @staticmethod
    def cat(parts: Sequence["Trajectory"]) -> "Trajectory":
        """Join records of one sampler setting, left-padding prompts to the longest."""
        width = max(part.prompt_ids.shape[1] for part in parts)

        def padded(part: Trajectory) -> dict[str, Tensor]:
            tensors = part.tensors()
            for name in ("prompt_ids", "prompt_mask"):
                tensors[name] = torch.nn.functional.pad(tensors[name], (width - tensors[name].shape[1], 0))
            return tensors

        columns = [padded(part) for part in parts]
        return parts[0]._with({name: torch.cat([column[name] for column in columns]) for name in columns[0]})

    def _with(self, tensors: Mapping[str, Any]) -> "Trajectory":
        return replace(self, **tensors)


@dataclass(frozen=True, slots=True)
class Rollout:
    """Scored trajectories of whole groups: rows i*G to (i+1)*G - 1 answer the same prompt."""

    trajectory: Trajectory
    group_size: int
    """G."""
    reward: Float[Tensor, "B"]
    """[B] float32: weighted sum of the reward functions on the finished completion."""
    one_step_reward: Float[Tensor, "B K"] | None = None
    """[B, K] float32: the same for the greedy one-step completions; 0 in an empty slot."""
    branch_reward: Float[Tensor, "B K M"] | None = None
    """[B, K, M] float32: the same for the fills; 0 in an empty slot."""

    def groups(self, index: slice) -> "Rollout":
        """The groups that `index` picks."""
        rows = torch.arange(len(self.trajectory)).view(-1, self.group_size)[index].flatten()
        rewards = {name: value[rows] for name, value in self.rewards().items()}
        return replace(self, trajectory=self.trajectory.rows(rows), **rewards)

    def to(self, device: torch.device | str) -> "Rollout":
        """The same record with its tensors on `device`."""
        rewards = {name: value.to(device) for name, value in self.rewards().items()}
        return replace(self, trajectory=self.trajectory.to(device), **rewards)

    @staticmethod
    def cat(parts: Sequence["Rollout"]) -> "Rollout":
        """Join rollouts of one sampler setting and group size, in order."""
        columns = [part.rewards() for part in parts]
        rewards: dict[str, Any] = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
        return replace(parts[0], trajectory=Trajectory.cat([part.trajectory for part in parts]), **rewards)

    def rewards(self) -> dict[str, Any]:
        """Return the tensors of rewards that are set, by name."""
        names = ("reward", "one_step_reward", "branch_reward")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, slots=True)
class Views:
    """N corrupted readings of completions, made once by a method's plan and evaluated under every policy."""

    row: Int[Tensor, "N"]
    """[N] int64: the completion that is read."""
    hidden: Bool[Tensor, "N L"]
    """[N, L] bool: shown as MASK."""
    target: Bool[Tensor, "N L"]
    """[N, L] bool: positions whose log-probabilities are read; a subset of `hidden`."""
    weight: Float[Tensor, "N"]
    """[N] float32: of the view in the loss, whose views are added up and divided by the number of completions."""
    slot: Int[Tensor, "N"]
    """[N] int64: the column of the advantage that the view takes."""
    prompt_hidden: Bool[Tensor, "N P"] | None = None
    """[N, P] bool: prompt positions shown as MASK."""
    tokens: Int[Tensor, "N M L"] | None = None
    """[N, M, L] int: M readings of the same state, whose log-probabilities at the targets come from one forward; default the
    completion's own tokens, without the axis M."""

    def __len__(self) -> int:
        return self.row.shape[0]

    def take(self, index: Tensor | slice) -> "Views":
        """The views that `index` picks."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[index] for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ViewLogprobs:
    """What one policy says of a set of views."""

    logprob: Float[Tensor, "N *M L"]
    """[N, L] float32, nats: of the targets, at the scoring temperature and support; 0 elsewhere. [N, M, L] where the views bring
    M readings."""
    choice: Float[Tensor, "N L"] | None = None
    """[N, L] float32, nats: of the choice of each target's position among those left in its block; where asked for and known."""
    distribution: Float[Tensor, "n V"] | None = None
    """[n, V] float32 log-probabilities at the n targets in row-major order, where asked for."""


@dataclass(frozen=True, slots=True)
class Branches:
    """Other one-step completions of the states at the selected steps, drawn from the logits that the rollout has in hand."""

    num: int
    """Fresh draws of each state."""
    scope: Literal["step", "all"] = "step"
    """What is drawn: the positions that the step committed, or every masked one."""
    finish: Literal["greedy", "sampled", "rollout"] = "greedy"
    """How the rest is filled under scope `step`: with the likeliest tokens; with one sample that all draws share; or by denoising
    on from there, which is the only one that costs forward passes."""
    with_taken: bool = False
    """Put first, before the draws, the fill that holds what the rollout itself committed, as one more."""

    @property
    def count(self) -> int:
        """M, the number of fills kept of each state."""
        return self.num + self.with_taken


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method asks of the engine."""

    greedy: bool = False
    """Greedy one-step completions of the steps that its selection takes, and their rewards."""
    selection: tuple[str, int] = ("entropy_topk", 1)
    """The rule and K by which the steps are chosen whose one-step completions are kept."""
    branches: Branches | None = None
    """Other completions of the same states, and their rewards."""
    choice: bool = False
    """The probability of the choice of positions, where the order has one."""
    reference: Literal["none", "logprob", "distribution"] = "none"
    """What it reads of the reference policy."""
    group: bool = True
    """Whether its baseline needs more than one completion of a prompt."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Views with everything that a loss may read: any chunk of them where the method is separable, otherwise all views of whole
    groups. All [N, L] float32 nats are 0 outside `target`."""

    new: Float[Tensor, "N *M L"]
    """[N, L] log-probabilities under the policy being trained, with graph; [N, M, L] where the views bring M readings."""
    old: Float[Tensor, "N *M L"]
    """The same under the policy at the start of the update."""
    reference: Float[Tensor, "N *M L"] | None
    """The same under the reference policy."""
    exact_kl: Float[Tensor, "N L"] | None
    """[N, L] KL(new || reference) of the whole distribution at each target, with graph."""
    row: Int[Tensor, "N"]
    """[N] int64: the completion that a view reads."""
    target: Bool[Tensor, "N L"]
    """[N, L] bool."""
    weight: Float[Tensor, "N"]
    """[N] float32."""
    advantage: Float[Tensor, "N *M"]
    """[N] float32, or [N, M]."""
    slot: Int[Tensor, "N"] | None = None
    """[N] int64: the view's slot."""
    group_size: int = 1
    """G; completion b belongs to group b // G."""
    new_choice: Float[Tensor, "N L"] | None = None
    """[N, L] log-probabilities of the choice of positions under the policy being trained, where asked for and known."""
    old_choice: Float[Tensor, "N L"] | None = None
    """The same under the policy at the start of the update."""
    mean_tokens: float | None = None
    """Scored tokens of a completion, mean over the whole step, all processes and minibatches; None: over those given here."""

    @property
    def choices(self) -> tuple[Tensor, Tensor] | None:
        """The two together, where asked for and known."""
        if self.new_choice is None or self.old_choice is None:
            return None
        return self.new_choice, self.old_choice


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Losses; the trainer adds them up, in whatever chunks, and divides by the number of completions."""

    loss: Float[Tensor, "..."]
    """[N] float32 with graph, one for each view; of any shape where the method is not separable."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Of any shape each, no graph; averaged, or the largest taken where the name ends in `_max`."""


Row = dict[str, Any]
"""One item of a task: `prompt` and whatever columns its reward functions read."""
