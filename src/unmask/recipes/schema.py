"""The settings of a run as one validated tree, called a recipe. Every key has a type, a default and
a meaning."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, WrapValidator, field_validator, model_validator

from unmask.core.by_path import is_path, load_callable
from unmask.core.config import DRAWN_ORDERS, EvalConfig, LoraConfig, OptimConfig, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.settings import Config, Named
from unmask.functional.behaviour import Level
from unmask.methods import METHODS, Method
from unmask.models.tiny import TinyConfig
from unmask.recipes.behaviour import BehaviourConfig
from unmask.recipes.critic import CriticConfig
from unmask.recipes.engine import EngineConfig
from unmask.recipes.keys import TABLES, find_class
from unmask.recipes.speed import SpeedConfig
from unmask.tasks import TASKS, Task


def _or_by_path(base: type[Named]) -> WrapValidator:
    """Return a validator that loads the class if `type` holds a path, and passes the names of the
    table on to the union."""

    def validate(value: Any, by_name: Callable[[Any], Any]) -> Any:
        kind: Any = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        if isinstance(kind, type) and issubclass(kind, Named):
            kind = kind.model_fields["type"].default
            value = {**value, "type": kind}
        if not is_path(kind) or kind.partition(":")[0] in TABLES[base.section]:
            return by_name(value)
        cls = find_class(base, kind)
        return value if isinstance(value, base) else cls.model_validate(value)

    return WrapValidator(validate)


if TYPE_CHECKING:
    AnyMethod = Method
    AnyTask = Task
else:
    # The unions are built from the tables, so a new method or task needs no change here.
    AnyMethod = Annotated[reduce(or_, METHODS.values()), Field(discriminator="type"), _or_by_path(Method)]
    AnyTask = Annotated[reduce(or_, TASKS.values()), Field(discriminator="type"), _or_by_path(Task)]


class RunRecipe(Config):
    """Settings that training and pretraining share."""

    task: SerializeAsAny[AnyTask]
    """Task to learn. `type` is a name in `TASKS` or the path of a class, such as my_task.py:MyTask;
    the other keys are its options."""
    output_dir: str | None = None
    """Run folder. The default is runs/NAME, where NAME is the name of the recipe."""
    seed: int = 0
    """Seed of all random draws: examples, completions, initial weights."""
    num_rows: int = Field(8000, ge=1)
    """Number of training examples to generate or read."""
    save_steps: int = Field(25, ge=1)
    """Number of training steps between checkpoints."""
    save_total_limit: int = Field(2, ge=1)
    """Number of checkpoints to keep; older ones are deleted."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and learning-rate schedule."""
    report_to: tuple[str, ...] = ()
    """Trackers to use in addition to metrics.jsonl, by accelerate's names: tensorboard, wandb,
    trackio, mlflow, ..."""
    push_to_hub: str | None = None
    """Hub repository, as owner/name, that the finished model and its card are pushed to. Log in
    first: hf auth login."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of weights and forward passes. With bf16, logits, log-probabilities and losses are
    float32, and the optimizer updates float32 copies of the trained weights. `auto` is bf16 on a
    CUDA GPU that supports it, and float32 elsewhere."""
    deterministic: bool = False
    """True to make results on a GPU repeatable: torch's deterministic kernels, and batches whose
    rows stay when they end, so that their shapes do not depend on other rows. It makes rollouts
    with early ends slower. On a CPU, results are repeatable without it."""
    stuck_timeout: float = Field(600.0, gt=0)
    """Time limit in seconds. If no rank of a distributed run makes progress for this time, the run
    ends and names the stuck rank. The limit must be longer than the slowest forward, backward, save
    or reward call."""
    lora: LoraConfig | None = None
    """Settings of low-rank adapters, which are then trained instead of all weights."""
    train_router: bool = False
    """True to train the routers of a mixture of experts, too. By default they stay as they are, because
    an update that moves a token to another expert changes its prediction by a jump."""
    gradient_checkpointing: bool = False
    """True to recompute each block's activations in the backward pass: this needs less memory and
    about a third more time."""
    compile: bool = False
    """True to apply torch.compile to the layers of the trunk. Compilation takes about a minute,
    makes training on a GPU faster, and does not help a tiny model."""

    @model_validator(mode="after")
    def _check_mixtures(self) -> RunRecipe:
        if self.lora and self.train_router:
            raise ValueError(
                "train_router needs all weights trained, and lora trains adapters. Set one of them to false."
            )
        if self.lora and self.lora.experts and self.compile:
            raise ValueError(
                "compile does not work with lora.experts, whose adapters replace the weights of a layer in each forward pass. "
                "Set one of them to false."
            )
        return self

    @field_validator("push_to_hub", mode="before")
    @classmethod
    def _check_repository(cls, name: object) -> object:
        if name is None or name is False:
            return None
        if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", str(name)) or name is True:
            raise ValueError(f'"{name}" is not the name of a hub repository. Write it as owner/name.')
        return name

    @field_validator("report_to", mode="before")
    @classmethod
    def _none_is_no_tracker(cls, names: object) -> object:
        return () if names in (["none"], [None]) else names


class TrainRecipe(RunRecipe):
    """Reinforcement learning of a denoiser on a task with a reward."""

    command: ClassVar[str] = "train"

    model: str
    """Folder or hub id of the model to start from."""
    method: SerializeAsAny[AnyMethod]
    """Method of the updates. `type` is a name in `METHODS` or the path of a class, such as
    my_method.py:MyMethod; the other keys are its options."""
    sampler: SamplerConfig = SamplerConfig()
    """Settings of the denoising loop, for rollouts and for evaluation. The temperatures of
    evaluation are set separately."""
    behaviour: BehaviourConfig = BehaviourConfig()
    """Correction for rollouts that are not sampled exactly from the policy."""
    rollout_engine: EngineConfig = EngineConfig()
    """Place where rollouts and evaluations are sampled."""
    speed: SpeedConfig = SpeedConfig()
    """Reward for few denoising steps, beside the reward of the task."""
    critic: CriticConfig = CriticConfig()
    """Critic of the methods that need one, such as egspo with `baseline: critic`."""
    evaluation: EvalConfig = EvalConfig()
    """Evaluation during the run."""
    max_steps: int = Field(200, ge=1)
    """Maximum number of training steps; each consists of a rollout, its rewards and an update."""
    max_token_passes: int | None = Field(None, ge=1)
    """Limit of compute: the number of token passes that the training steps may use. A token counts
    once in a forward pass, and three times in a forward pass that has a backward pass; evaluations
    do not count. The run ends when the rest of the limit is less than the cost of its most
    expensive step so far, or after `max_steps`. The learning-rate schedule follows the limit that
    is nearer to its end."""
    num_prompts: int = Field(16, ge=1)
    """Number of prompts in a training step, over all ranks; a multiple of the number of ranks."""
    num_generations: int = Field(8, ge=1)
    """Number G of completions for each prompt."""
    refill_rounds: int = Field(0, ge=0)
    """Maximum number of extra rollouts in a training step. Each replaces the groups whose advantages
    are all 0 with groups of other prompts (dynamic sampling, arXiv:2503.14476). Groups without signal
    that are left after the last round stay."""
    num_iterations: int = Field(1, ge=1)
    """Number μ of passes over the views (masked versions of completions) of a training step."""
    num_minibatches: int = Field(1, ge=1)
    """Number of optimizer steps in each pass."""
    rollout_batch_size: int = Field(256, ge=1)
    """Number of completions denoised together; changes speed and memory, not results."""
    rollout_weights: Literal["merged", "whole", "sharded"] = "merged"
    """Weights that rollouts and evaluations read. `merged`: each rank holds the whole weights
    during a rollout, with the adapters of `lora` added, so a forward pass costs what it costs
    without adapters and ranks do not wait for each other. `whole`: whole weights, and the adapters
    stay separate. `sharded`: each forward pass gathers the shards of `zero3` or `fsdp2`, for models
    that do not fit into the memory of one rank. Weights that `lora.quantize` keeps in 4 bits are
    not merged. The results are the same up to rounding."""
    views_per_forward: int | None = Field(None, ge=1)
    """Number of views (masked versions of completions) scored together; changes speed and memory,
    not results. By default it is 256, and on a CPU as many as its cache holds. Views of a
    block-causal model share their clean blocks; with 1, each has a forward pass of its own."""
    max_tokens_per_forward: Literal["auto"] | int | None = None
    """Maximum number of tokens in one forward pass of rollouts and updates: sequences times (prompt
    + completion) tokens. A forward pass always has at least one sequence. This limit replaces
    rollout_batch_size and views_per_forward. `auto` measures before the first step how many tokens
    memory holds."""
    reference_offload: bool = False
    """True to keep the reference policy's weights in CPU memory between its passes. With `lora`
    this has no effect, because there is no separate copy of the weights."""
    sync_ref_model: bool = False
    """True to let the reference policy follow the policy slowly; otherwise the reference policy
    stays the initial model. The names of this setting and of the next two are TRL's."""
    ref_model_sync_steps: int = Field(64, ge=1)
    """Number of training steps between two updates of the reference policy."""
    ref_model_mixup_alpha: float = Field(1.0, gt=0, le=1)
    """α in the update reference ← α policy + (1 - α) reference (arXiv:2404.09656), applied with
    `lora` to each adapter matrix."""
    logprob_temperature: Literal["sampling"] | Annotated[float, Field(gt=0)] = "sampling"
    """Temperature of the log-probabilities in the loss: `sampling` for that of the sampler, or a
    number. Published code uses 1.0."""
    reward_funcs: tuple[str, ...] = ()
    """Paths of reward functions (`package.module:function` or `file.py:function`); default the
    reward functions of the task."""
    reward_weights: tuple[float, ...] = ()
    """Weight of each reward function; default 1."""
    reward_timeout: float = Field(60.0, gt=0)
    """Time limit in seconds for one call of a reward function with all completions of a training
    step."""
    reward_workers: int = Field(1, ge=0)
    """Number of worker processes for each function of `reward_funcs`. If a function hangs or
    crashes on a completion in a worker, that completion scores 0 and the run continues. Several
    workers share the completions if the function scores each one independently. 0 calls functions
    in the training process, where a function that hangs ends the run."""
    reward_item_timeout: float = Field(5.0, gt=0)
    """Time limit in seconds for one completion in a worker process, if the function scores
    completions independently."""
    log_rollouts_steps: int = Field(25, ge=0)
    """Number of training steps between saved rollouts; 0 saves none."""
    log_rollouts_groups: int = Field(2, ge=1)
    """Number of groups in a saved rollout."""
    log_rollouts_guesses: int = Field(32, ge=0)
    """Number of evenly spaced denoising steps whose greedy one-step completion and its reward are
    saved with a rollout."""

    @field_validator("max_tokens_per_forward", mode="before")
    @classmethod
    def _check_token_limit(cls, value: object) -> object:
        if value in (None, "auto") or (isinstance(value, int) and value > 0):
            return value
        raise ValueError(f"{value!r} is not a valid limit. Set a number of tokens above 0, auto or null.")

    @property
    def weighted_level(self) -> Level | None:
        """Level at which rollouts are weighted; see `BehaviourConfig.weighted`."""
        return self.behaviour.weighted(self.method, self.sampler, self._is_exact)

    @property
    def measured_level(self) -> Level | None:
        """Level at which rollouts are compared with the old policy; see `BehaviourConfig.measured`."""
        return self.behaviour.measured(self.method, self.sampler, self._is_exact)

    @property
    def _is_exact(self) -> bool:
        """True if rollouts are sampled exactly from the old policy, up to rounding."""
        return self.sampler.is_exact and not self.rollout_engine.max_staleness

    def evaluation_sampler(self, temperature: float) -> SamplerConfig:
        """Return the sampler of the evaluations at a temperature."""
        setting, own = self.evaluation, self.sampler
        changes = {"num_steps": setting.num_steps or own.num_steps, "schedule": setting.schedule or own.schedule}
        return SamplerConfig(**own.model_dump() | changes | {"temperature": temperature})

    @model_validator(mode="after")
    def _check_together(self) -> TrainRecipe:
        check_order(self.sampler)
        try:
            self.evaluation_sampler(0.0)
        except ConfigError as error:
            raise ValueError(
                f"evaluation.num_steps and evaluation.schedule do not fit the sampler: {error} Or leave them out; evaluations "
                "then decode as rollouts do."
            ) from None
        self.method.check(self.sampler, self.num_generations)
        self.method.check_batch(self.num_prompts * self.num_generations)
        _ = self.measured_level
        self.speed.check(self.method, self.sampler, self.num_generations)
        self.critic.check(self.method, self.refill_rounds)
        _check_engine(self)
        if not self.sampler.temperature:
            raise ValueError(
                "sampler.temperature = 0 makes all completions of a prompt equal, so there is nothing to compare. "
                "Use a temperature above 0; the papers use 0.9."
            )
        if self.method.reads().anchor == "rollout" and self.logprob_temperature != "sampling":
            raise ValueError(
                f"method.anchor = rollout compares with probabilities at the sampler's temperature, but logprob_temperature = "
                f"{self.logprob_temperature:g} scores at another. Set logprob_temperature = sampling, or method.anchor = old."
            )
        # A rollout with top_k records the tokens that it chooses from, and all policies keep these.
        has_own = self.logprob_temperature == "sampling" and self.sampler.top_p < 1 and not self.sampler.top_k
        exact = "method.kl = exact" if self.method.needs().reference == "distribution" else ""
        if has_own and (exact or self.method.reads().divergence == "kl"):
            raise ValueError(
                f"{exact or 'method.divergence = kl'} compares whole distributions. With sampler.top_p alone, each policy keeps "
                "other tokens, and the KL is infinite. Set sampler.top_k too, or sample without top_p."
            )
        if self.sync_ref_model and self.method.needs().reference == "none":
            raise ValueError(
                f"sync_ref_model updates the reference policy, but {self.method.type} uses none with these settings. "
                "Set method.beta above 0 if the method has a KL penalty, or set sync_ref_model to false."
            )
        limit, length = self.max_tokens_per_forward, self.sampler.max_completion_length
        if isinstance(limit, int) and limit < length:
            raise ValueError(
                f"max_tokens_per_forward = {limit} is less than one completion of {length} tokens. Set it to the tokens of a "
                "prompt and a completion, times the number of sequences that memory holds, or to auto."
            )
        if self.reward_weights and self.reward_funcs and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"{len(self.reward_weights)} reward_weights for {len(self.reward_funcs)} reward_funcs. "
                "Give one weight for each function."
            )
        return self


def _check_engine(recipe: TrainRecipe) -> None:
    """Refuse settings that servers cannot sample with.

    Raises:
        ValueError: names the setting.
    """
    engine, sampler = recipe.rollout_engine, recipe.sampler
    if engine.type == "local":
        return
    if is_path(sampler.order):
        raise ValueError(
            f"sampler.order = {sampler.order} is code of yours, which a server does not run. Use an order of the package, or "
            "rollout_engine.type = local."
        )
    if recipe.lora is not None and recipe.lora.quantize != "none":
        raise ValueError(
            "lora.quantize = 4bit does not work with rollout_engine.type = http: a server merges the adapter into whole weights, "
            "which differ from the quantized ones. Set one of the two to its default."
        )
    if engine.max_staleness and recipe.refill_rounds:
        raise ValueError(
            f"refill_rounds = {recipe.refill_rounds} does not fit rollout_engine.max_staleness = 1: extra rollouts would "
            "have newer weights than the groups that they replace. Set one of the two to 0."
        )
    if engine.server == "sglang" and (sampler.guidance or sampler.cache != "off" or sampler.order in DRAWN_ORDERS):
        raise ValueError(
            "server = sglang has no guidance, no approximate cache and no order that draws positions. Use the defaults of "
            "sampler.guidance, sampler.cache and sampler.order, or unmask serve."
        )
    branches = recipe.method.needs().branches
    if engine.server == "sglang" and branches is not None and branches.finish == "rollout":
        raise ValueError(
            "method.finish = rollout denoises given states further, which server = sglang cannot. Set method.finish to greedy or "
            "sampled, or use unmask serve."
        )
    if engine.server == "sglang" and recipe.method.needs().value_steps:
        raise ValueError(
            "method.value_steps denoises given states further, which server = sglang cannot. Set method.value_steps to 0, or "
            "use unmask serve."
        )


class PretrainRecipe(RunRecipe):
    """Training on a task's demonstrations with the masked-diffusion ELBO, from scratch or from a
    checkpoint (SFT)."""

    command: ClassVar[str] = "pretrain"

    model: str | None = None
    """Folder or hub id of the model to start from; default a new model of the shape `tiny`."""
    tiny: TinyConfig = TinyConfig()
    """Shape of the new model."""
    max_steps: int = Field(260, ge=1)
    """Number of training steps. Each training step makes one optimizer step."""
    batch_size: int = Field(96, ge=1)
    """Number of demonstrations in a training step, over all ranks."""
    max_tokens_per_forward: int | None = Field(None, ge=1)
    """Maximum number of tokens in one forward pass: sequences times (prompt + completion) tokens. A
    forward pass always has at least one sequence. The gradients of the parts of a batch are added
    up. By default one forward pass contains the whole batch."""
    noise_share: float = Field(0.0, ge=0, le=1)
    """Share of demonstrations that are plausible but mostly wrong, which leaves room for RL to
    improve the model. The recipes of the shipped tiny base models set it."""
    max_completion_length: int | None = Field(None, ge=1)
    """Length L of a completion in tokens; default the length of the task."""
    min_time: float = Field(0.03, gt=0, lt=1)
    """Lower end of the mask ratio t ~ U(min_time, 1)."""
    muon_learning_rate: float = Field(0.0, ge=0)
    """Peak learning rate of Muon for the block matrices, for training from scratch; with 0 AdamW
    trains all weights."""
    optim: OptimConfig = OptimConfig()
    """Settings of AdamW for the weights that Muon does not train, and of the learning-rate schedule
    for both optimizers."""

    @model_validator(mode="after")
    def _check_adapters(self) -> PretrainRecipe:
        if self.lora and self.model is None:
            raise ValueError(
                "lora adapts an existing model, but this recipe builds a new one. Set model, or set lora to null."
            )
        if self.lora and self.muon_learning_rate:
            raise ValueError("muon_learning_rate is for training from scratch. With lora, set it to 0.")
        return self


def check_order(sampler: SamplerConfig) -> None:
    """Raise ConfigError if `order` is a path and no function can be loaded from it."""
    if is_path(sampler.order):
        load_callable(sampler.order, "order")
