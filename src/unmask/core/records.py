"""Records that pass between sampling, methods and training.

docs/symbols.md lists the dimension letters, which mean the same everywhere. Denoising steps are
numbered in order of execution, from k = 0 (all positions masked) to T - 1. In the test run, the
annotated shapes and types are checked whenever a record is made. That check needs evaluated
annotations, so this module does not use `from __future__ import annotations`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig

GIVEN = -1
"""Value of `unmask_step` for a completion token that was present before the first step, as in
infilling and branching."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A batch of denoising paths. It stores each token and the step that committed the token, from
    which all intermediate states are derived.

    A trajectory takes 20 bytes per completion token. K one-step completions take another 4 K bytes
    per token.
    """

    prompt_ids: Int[Tensor, "B P"]
    """[B, P] int64: prompt tokens, padded on the left."""
    prompt_mask: Bool[Tensor, "B P"]
    """[B, P] bool, False at padding."""
    tokens: Int[Tensor, "B L"]
    """[B, L] int64, the finished completion."""
    unmask_step: Int[Tensor, "B L"]
    """[B, L] int32: step that committed the position. It is GIVEN (-1) for a token that was present
    from the start. It is T for a position that was filled with EOS after the row had ended, and
    that is therefore masked in every state that the policy saw."""
    logprob: Float[Tensor, "B L"]
    """[B, L] float32, nats: log-probability of the committed token under the behaviour policy, at
    its temperature and support; 0 where no token was sampled."""
    entropy: Float[Tensor, "B L"]
    """[B, L] float32, nats: entropy at the step that committed the position, of the distribution
    whose log-probabilities the loss uses; 0 where no token was sampled."""
    seed: Int[Tensor, "B"]
    """[B] int64: seed of each row. All randomness of a row is a hash of its seed, so a row does not
    depend on the rest of its batch."""
    sampler: SamplerConfig
    """Sampler settings that produced the completions; a replay of the path needs them."""
    mask_id: int
    eos_id: int
    choice_rank: Int[Tensor, "B L"] | None = None
    """[B, L] int32: place of the position, from 0, in the order in which its step drew positions.
    Set only for an order whose position choice has a probability."""
    choice_logprob: Float[Tensor, "B L"] | None = None
    """[B, L] float32, nats: log-probability of drawing this position from the positions still
    masked in its block. Set together with `choice_rank`."""
    support: Int32[Tensor, "B L A"] | None = None
    """[B, L, A] int32: the tokens that the sampler's top-k and top-p allowed at the position when
    its token was drawn, A = top_k; -1 in empty entries. MASK is never among them. Set in rollouts
    for training if the sampler has a top-k."""
    selected_step: Int32[Tensor, "B K"] | None = None
    """[B, K] int32: steps whose one-step completions are stored, in the order of the selection; -1
    for an empty slot."""
    one_step_tokens: Int[Tensor, "B K L"] | None = None
    """[B, K, L] int32: one-step completions x̂_k, i.e. the state before step k with the most likely
    token at every masked position; or completions in `Needs.value_steps` steps in their place."""
    branch_tokens: Int[Tensor, "B K M L"] | None = None
    """[B, K, M, L] int32: branches (alternative completions) of the same states; see `Branches`."""
    turn_end_id: int | None = None
    """Token that ends the assistant's turn, if the model has one other than EOS. The text of the
    completion ends before it."""
    policy_version: int = 0
    """Version of the weights that sampled the completions, which is the number of earlier training
    steps."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_steps(self) -> int:
        """Number of denoising steps T of the sampler; an upper limit under an adaptive schedule."""
        return self.sampler.steps

    @property
    def steps_taken(self) -> Int[Tensor, "B"]:
        """Number of steps of each row that committed a token, [B] int64; also the number of states
        that the policy saw."""
        step = torch.where(self.unmask_step < 0, self.num_steps, self.unmask_step).long()
        is_taken = torch.zeros(len(self), self.num_steps + 1, dtype=torch.bool, device=step.device)
        return is_taken.scatter(1, step, True)[:, :-1].sum(-1)

    @property
    def tokens_committed(self) -> Int[Tensor, "B"]:
        """Number of tokens of each row that its steps committed, [B] int64: without tokens that were
        given, and without those that fill the row after its end."""
        return ((self.unmask_step >= 0) & (self.unmask_step < self.num_steps)).sum(-1)

    @property
    def forwards(self) -> Int[Tensor, "B"]:
        """Number of forward passes of each row, [B] int64: one for each step that committed a token,
        and two with guidance."""
        return self.steps_taken * (2 if self.sampler.guidance else 1)

    @property
    def horizon(self) -> Int[Tensor, "B"]:
        """Number of steps of each row's schedule, [B] int64: T under the fixed schedule, also if a
        row ends early, and the number of steps that the row took under an adaptive one."""
        if self.sampler.is_adaptive:
            return self.steps_taken
        return torch.full_like(self.seed, self.num_steps)

    def state_before(self, step: Int[Tensor, "B"] | int) -> Int[Tensor, "B L"]:
        """Return the completion as the policy saw it at a step, [B, L] int64; step 0 is the
        starting state.

        Args:
            step: one step for all rows, or [B] steps.
        """
        if isinstance(step, Tensor):
            step = step.unsqueeze(-1)
        return self.tokens.masked_fill(self.unmask_step >= step, self.mask_id)

    @property
    def selected_steps(self) -> Int32[Tensor, "B K"]:
        """Selected steps as a tensor, for methods that need one-step completions."""
        assert self.selected_step is not None
        return self.selected_step

    def shown_step(self, views: "Views") -> Int[Tensor, "N"]:
        """Return the step whose state each view shows, [N] int64: the step of the view's earliest
        target, or -1 if the view shows no state of the path."""
        when = self.unmask_step[views.row]
        first = when.masked_fill(~views.target, self.num_steps).min(-1).values
        is_state = (views.hidden == (when >= first.unsqueeze(-1))).all(-1) & (first < self.num_steps)
        if views.prompt_hidden is not None:
            is_state &= ~views.prompt_hidden.any(-1)
        return first.long().masked_fill(~is_state, -1)

    def is_text(self) -> Bool[Tensor, "B L"]:
        """Return [B, L] bool, True at positions of the completion's text, which ends before the
        first EOS or end of turn."""
        is_end = self.tokens == self.eos_id
        if self.turn_end_id is not None:
            is_end |= self.tokens == self.turn_end_id
        return is_end.cumsum(-1) == 0

    def to(self, device: torch.device | str) -> "Trajectory":
        """Return a copy with all tensors on `device`."""
        return self._with({name: value.to(device) for name, value in self.tensors().items()})

    def rows(self, index: Tensor | slice) -> "Trajectory":
        """Return the rows at `index` as a trajectory."""
        return self._with({name: value[index] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensor fields that are set, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @staticmethod
    def cat(parts: Sequence["Trajectory"]) -> "Trajectory":
        """Concatenate trajectories that share their sampler settings, with prompts padded on the
        left to the longest."""
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
    """Trajectories with their rewards. Rows i*G to (i+1)*G - 1 are the group of one prompt; only
    the rollout of one rank among several may begin or end within a group."""

    trajectory: Trajectory
    group_size: int
    """Number of completions in a group, G."""
    reward: Float[Tensor, "B"]
    """[B] float32: weighted sum of the reward functions for the finished completion."""
    one_step_reward: Float[Tensor, "B K"] | None = None
    """[B, K] float32: rewards of `Trajectory.one_step_tokens`; 0 in an empty slot."""
    branch_reward: Float[Tensor, "B K M"] | None = None
    """[B, K, M] float32: rewards of the branches; 0 in an empty slot."""
    value: Float[Tensor, "B C"] | None = None
    """[B, C] float32: values that the critic gives to the states before the steps of
    `Method.critic_steps`; 0 in an empty slot. None if the method needs no critic."""
    is_right: Bool[Tensor, "B"] | None = None
    """[B] bool: True for completions whose reward of the task is that of a right answer; set if the
    loss has a term for these (`SpeedConfig.nll_weight`)."""

    def groups(self, index: slice | Tensor) -> "Rollout":
        """Return the groups at `index` as a rollout."""
        rows = torch.arange(len(self.trajectory)).view(-1, self.group_size)[index].flatten()
        rewards = {name: value[rows] for name, value in self.rewards().items()}
        return replace(self, trajectory=self.trajectory.rows(rows), **rewards)

    def to(self, device: torch.device | str) -> "Rollout":
        """Return a copy with all tensors on `device`."""
        rewards = {name: value.to(device) for name, value in self.rewards().items()}
        return replace(self, trajectory=self.trajectory.to(device), **rewards)

    @staticmethod
    def cat(parts: Sequence["Rollout"]) -> "Rollout":
        """Concatenate rollouts that share sampler settings and group size, in order."""
        columns = [part.rewards() for part in parts]
        rewards: dict[str, Any] = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
        return replace(parts[0], trajectory=Trajectory.cat([part.trajectory for part in parts]), **rewards)

    def rewards(self) -> dict[str, Any]:
        """Return the rewards and values that are set, by name."""
        names = ("reward", "is_right", "one_step_reward", "branch_reward", "value")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, slots=True)
class Views:
    """N masked versions of completions. A method plans the views once, and every policy evaluates
    the same views."""

    row: Int[Tensor, "N"]
    """[N] int64: index of the completion that the view shows."""
    hidden: Bool[Tensor, "N L"]
    """[N, L] bool: positions that are masked."""
    target: Bool[Tensor, "N L"]
    """[N, L] bool: positions whose log-probabilities are computed; a subset of `hidden`."""
    weight: Float[Tensor, "N"]
    """[N] float32: weight of the view in the loss. The losses of the views are summed and divided
    by the number of completions."""
    slot: Int[Tensor, "N"]
    """[N] int64: column of the advantage that applies to the view."""
    prompt_hidden: Bool[Tensor, "N P"] | None = None
    """[N, P] bool: prompt positions that are masked."""
    tokens: Int[Tensor, "N M L"] | None = None
    """[N, M, L] int: M token sequences for the same masked state, whose log-probabilities at the
    targets come from one forward pass. None stands for the completion's own tokens, without the
    axis M."""
    sees_clean_past: Bool[Tensor, "N"] | None = None
    """[N] bool: what a block of a block-causal model attends to. If True, it attends to the earlier
    blocks of the completion without masks, as the likelihood Π_b p(x_b | x_1, ..., x_{b-1}) of such a
    model says. If False, it attends to the earlier blocks of the view. None stands for False. In a
    bidirectional model it has no effect."""
    pack: Int[Tensor, "N"] | None = None
    """[N] int64: views with the same number share a row of a forward pass of a block-causal model, as
    noisy copies of blocks behind one clean completion. They show the same completion and prompt. The
    trainer sets it; None gives each view a row of its own."""
    committed: Bool[Tensor, "N L"] | None = None
    """[N, L] bool: targets that were committed in the state that the view shows, where a method
    tells them from other targets."""

    def __len__(self) -> int:
        return self.row.shape[0]

    def take(self, index: Tensor | slice) -> "Views":
        """Return the views at `index`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[index] for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ViewLogprobs:
    """Log-probabilities that one policy assigns to a set of views."""

    logprob: Float[Tensor, "N *M L"]
    """[N, L] float32, nats: log-probabilities of the targets, at the temperature and support of
    `LogprobSettings`; 0 elsewhere. [N, M, L] if the views have M token sequences."""
    choice: Float[Tensor, "N L"] | None = None
    """[N, L] float32, nats: log-probability of choosing each target's position among those left in
    its block; None if it was not requested, or if the order has no choice probability."""
    distribution: Float[Tensor, "n V"] | None = None
    """[n, V] float32, nats: log-probabilities of all tokens at the n targets in row-major order;
    None unless requested."""
    entropy: Float[Tensor, "N L"] | None = None
    """[N, L] float32, nats: entropy of the distribution at each target; None unless requested."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Requirements of a method, which the engine and the trainer fulfil."""

    greedy: bool = False
    """True if the method needs one-step completions of its selected steps, and their rewards."""
    selection: tuple[str, int] = ("entropy_topk", 1)
    """Selection rule and number K of the steps whose one-step completions are stored."""
    value_steps: int = 0
    """Number of greedy denoising steps of each remaining block that complete a selected state in
    place of the one-step completion; 0 for the one-step completion, which costs no forward pass."""
    branches: Branches | None = None
    """Branches of the selected steps, with their rewards; None if the method needs none."""
    choice: bool = False
    """True if the method uses the probability of the position choice, for orders that have one."""
    reference: Literal["none", "logprob", "distribution"] = "none"
    """Output of the reference policy that the method uses: none, log-probabilities of tokens, or
    whole distributions."""
    centred: bool = False
    """True if the mean over the vocabulary is subtracted from all log-probabilities of views."""
    group: bool = True
    """True if the baseline needs more than one completion of each prompt."""
    critic: bool = False
    """True if the method needs the values of states by a critic; see `Method.critic_steps`."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Views (masked versions of completions) with everything that a loss may read. A method whose
    loss is a sum over views (`Method.separable`) gets the views in chunks of any size; any other
    method gets all views of whole groups. All log-probabilities and divergences are 0 outside
    `target`."""

    new: Float[Tensor, "N *M L"]
    """[N, L] float32, nats: log-probabilities under the policy that is trained, with the autograd
    graph; [N, M, L] if the views have M token sequences."""
    old: Float[Tensor, "N *M L"]
    """Log-probabilities under the policy at the start of the update, or those that the rollout
    recorded (see `Reads.anchor`), of the same shape."""
    reference: Float[Tensor, "N *M L"] | None
    """Log-probabilities under the reference policy, of the same shape."""
    exact_kl: Float[Tensor, "N L"] | None
    """[N, L] float32, nats: KL(new || reference) of the whole distribution at each target, with
    graph."""
    row: Int[Tensor, "N"]
    """[N] int64: index of the completion that the view shows."""
    target: Bool[Tensor, "N L"]
    """[N, L] bool: positions whose log-probabilities are computed."""
    weight: Float[Tensor, "N"]
    """[N] float32: weight of the view in the loss."""
    advantage: Float[Tensor, "N *M"]
    """[N] float32: advantage of the view; [N, M] if the views have M token sequences."""
    slot: Int[Tensor, "N"] | None = None
    """[N] int64: slot of the view, i.e. the column of the advantage that applies to it."""
    group_size: int = 1
    """Number of completions in a group, G; completion b belongs to group b // G."""
    new_choice: Float[Tensor, "N L"] | None = None
    """[N, L] float32, nats: log-probabilities of the position choices under the policy that is
    trained; None as in `ViewLogprobs`."""
    old_choice: Float[Tensor, "N L"] | None = None
    """[N, L] float32, nats: log-probabilities of the position choices from the same source as
    `old`."""
    mean_tokens: float | None = None
    """Mean number of targets of a completion over the whole training step, all ranks and
    minibatches included. If None, a loss uses the mean over these inputs."""
    token_weight: Float[Tensor, "N L"] | None = None
    """[N, L] float32: importance weights by token; None for 1. Others are part of `advantage`."""
    committed: Bool[Tensor, "N L"] | None = None
    """[N, L] bool: see `Views.committed`."""
    divergence: Float[Tensor, "N L"] | None = None
    """[N, L] float32: see `Reads.divergence`; without graph."""
    entropy: Float[Tensor, "N L"] | None = None
    """[N, L] float32, nats: see `Reads.entropy`; with graph."""

    @property
    def choices(self) -> tuple[Tensor, Tensor] | None:
        """New and old log-probabilities of the position choices; None if they are not available."""
        if self.new_choice is None or self.old_choice is None:
            return None
        return self.new_choice, self.old_choice


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Losses of views. The trainer adds up the losses, in chunks of any size, and divides by the
    number of completions."""

    loss: Float[Tensor, "..."]
    """[N] float32, differentiable: loss of each view. If the loss of the method is not a sum over
    views (`Method.separable` is False), any shape is allowed."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Metrics of any shape, without graph. The trainer averages a metric, or takes the maximum if
    its name ends in `_max`."""
    value_error: Float[Tensor, "N"] | None = None
    """[N] float32, without graph: by how much the return of a state exceeds its value in
    `Rollout.value`, for the valued state in the slot of each view. The critic then learns these
    returns; None if the return of every state is the reward. All updates of a rollout give the same
    errors: the return is that of the policy that drew the path."""


Row = dict[str, Any]
"""Example of a task: `prompt` and the columns that its reward functions read."""
