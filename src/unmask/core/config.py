"""Building blocks of a recipe: the settings that every run has.

Each setting has one place. The options of a method or a task are fields of its own class, and the
settings that every run has are here. `unmask.recipes.schema` builds the tree from the tables of
methods and tasks. Keys have TRL's names where TRL has the same setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from unmask.core.by_path import is_path, load_callable
from unmask.core.errors import ConfigError, unknown_name
from unmask.core.schedules import Schedule
from unmask.core.settings import Config

LEARNED = "learned"
"""Name of the order that a position head of the model learns."""
DRAWN_ORDERS = (LEARNED, "plackett_luce")
"""Orders that draw positions with a probability that can be trained."""
ORDER_NAMES = ("entropy", "left_to_right", "low_confidence", "margin", "max_probability", *DRAWN_ORDERS, "random")
"""Names in `unmask.sampling.ORDERS`, repeated here because settings are checked without importing
torch."""


class SamplerConfig(Config):
    """Settings of the denoising process."""

    section: ClassVar[str] = "sampler"

    max_completion_length: int = Field(256, ge=1)
    """Number of completion positions, L."""
    num_steps: int | None = Field(None, ge=1)
    """Number of denoising steps, T. The default is L / 2, which commits two tokens per step as in
    arXiv:2603.12554. Under an adaptive `schedule` it is an upper limit, whose default is L."""
    schedule: str = "fixed"
    """Rule for the number of positions that a step commits, in the order of `order`. `fixed` shares
    the positions of a block evenly over its steps. The others are adaptive: `threshold=0.9` commits
    positions while their probability is at least 0.9, `factor=1` while (n + 1)(1 - p_n) < 1 for the
    n-th (arXiv:2505.22618), and `entropy_bound=0.3` while the sum of their entropies exceeds the
    largest by at most 0.3 nats (arXiv:2505.24857). A step commits at least one position, and as
    many as the limit `num_steps` requires."""
    block_length: int | None = Field(None, ge=1)
    """Number of positions in a semi-autoregressive block. This number must divide L, and the number
    of blocks must divide T. The default is L, a single block."""
    order: str = "low_confidence"
    """Remasking strategy, which decides the positions that a step commits: entropy, learned,
    left_to_right, low_confidence, margin, max_probability, plackett_luce or random, or the path of a
    function, as in my_order.py:mine."""
    order_temperature: float = Field(0.5, gt=0)
    """Temperature τ of the orders `plackett_luce` and `learned`, which draw positions in proportion
    to exp(confidence / τ) and exp(confidence / τ + score); the default is that of
    arXiv:2607.15200."""
    temperature: float = Field(0.9, ge=0)
    """Temperature of the token distribution; 0 takes the most likely token. The default is that of
    the released code of EGSPO."""
    top_k: int = Field(0, ge=0)
    """Number of most likely tokens that may be sampled; 0 allows all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability mass of the smallest set of most likely tokens to sample from; 1 allows all."""
    guidance: float = Field(0.0, ge=0)
    """Weight w of classifier-free guidance: logits become u + (1 + w)(c - u), where u comes from a
    masked prompt. 0 switches guidance off and saves a forward pass."""
    cache: Literal["off", "prefix", "dual"] = "off"
    """Approximate cache of keys and values (arXiv:2505.22618), for bidirectional models. The first
    step of a block runs all positions. With `prefix`, the other steps of the block run the block
    and what follows it; with `dual`, only the block. Keys and values of the other positions are
    those of the last full forward pass."""
    cache_refresh_steps: int | None = Field(None, ge=1)
    """Number of steps between full forward passes within a block, counted from the first step of
    the block. By default only the first step is a full forward pass; 1 is exact and saves
    nothing."""

    if not TYPE_CHECKING:  # type checkers read the arguments off the fields

        def __init__(self, **settings: Any) -> None:
            """Raise ConfigError, with a line for each fault, if a setting is not valid."""
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError("\n".join(map(_fault, error.errors()))) from error

        # pydantic does not call this method when it validates a recipe, which reports its own faults.
        __init__.__pydantic_base_init__ = True

    @property
    def steps(self) -> int:
        """Number of denoising steps T, with the default filled in; an upper limit under an adaptive
        schedule."""
        return self.num_steps or max(1, self.max_completion_length // (1 if self.is_adaptive else 2))

    @property
    def is_adaptive(self) -> bool:
        """True if the number of steps depends on the predictions, and so differs between rows."""
        return Schedule.parse(self.schedule).is_adaptive

    @property
    def block(self) -> int:
        """Block length, with the default filled in."""
        return self.block_length or self.max_completion_length

    @property
    def steps_per_block(self) -> int:
        """Number of denoising steps in a block; under an adaptive schedule the block's share of the
        upper limit."""
        return self.steps * self.block // self.max_completion_length

    @property
    def is_exact(self) -> bool:
        """True if no forward pass of a rollout reads stale keys and values of a cache.

        This is about the sampler alone. The weights that it reads may differ from those of training
        by rounding: adapters that are merged into bfloat16 weights are rounded once more."""
        return self.cache == "off" or self.cache_refresh_steps == 1

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: str) -> str:
        # A path is not loaded here, so that a saved rollout can be read without the file of its
        # order.
        if order not in ORDER_NAMES and not is_path(order):
            raise ConfigError(
                f"{unknown_name('order', order, ORDER_NAMES)} Or give the path of a function, as in my_order.py:mine."
            )
        return order

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, schedule: str) -> str:
        return str(Schedule.parse(schedule))

    @model_validator(mode="after")
    def _check_order_of_schedule(self) -> SamplerConfig:
        if self.is_adaptive and self.order in DRAWN_ORDERS:
            raise ValueError(
                f"schedule = {self.schedule} does not fit order = {self.order}: where it stops drawing positions depends on "
                "the first one that it leaves out, so the probability of the choice is unknown. "
                "Set order to max_probability, or schedule to fixed."
            )
        return self

    @model_validator(mode="after")
    def _check_tiling(self) -> SamplerConfig:
        length, steps, block = self.max_completion_length, self.steps, self.block
        if steps > length:
            raise ValueError(
                f"num_steps = {steps} is more than max_completion_length = {length}: each step commits at least one token. "
                f"Set num_steps to {length} or less."
            )
        if length % block:
            divisors = [d for d in range(1, length + 1) if length % d == 0]
            raise ValueError(
                f"block_length = {block} does not tile max_completion_length = {length}. "
                f"Use a divisor of {length} ({', '.join(map(str, divisors[-6:]))}) or another length."
            )
        if steps % (length // block):
            raise ValueError(
                f"num_steps = {steps} cannot be shared evenly by {length // block} blocks of {block} positions. "
                f"Use a multiple of {length // block}."
            )
        if self.cache == "off" and self.cache_refresh_steps is not None:
            raise ValueError(
                f"cache_refresh_steps = {self.cache_refresh_steps} has no effect without a cache. "
                "Set cache to prefix or dual, or leave out cache_refresh_steps."
            )
        return self


def _fault(fault: Mapping[str, Any]) -> str:
    """Return one line about a setting of a sampler that is not valid."""
    name, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return unknown_name("setting of the sampler", name, SamplerConfig.model_fields)
    return f"{name} = {fault['input']!r}: {message[0].lower()}{message[1:]}." if name else message


class LoraConfig(Config):
    """Low-rank adapters (LoRA, arXiv:2106.09685): W + (alpha / r) B A, of which only A and B are
    trained."""

    section: ClassVar[str] = "lora"

    r: int = Field(128, ge=1)
    """Rank of the adapters. The defaults of rank and alpha are those of the published LLaDA runs
    (arXiv:2504.12216)."""
    alpha: float = Field(64.0, gt=0)
    """Scale of the update before division by the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the adapters' inputs, in SFT only. Dropout is never active in reinforcement
    learning, where it would make the ratio of an unchanged policy differ from one."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: `all-linear` for every linear layer of the trunk without the
    head, or a list of names, as in [q_proj, v_proj]. A name that matches no module is an error. In a
    mixture of experts, `all-linear` is every linear layer of the attention."""
    experts: bool = False
    """True to adapt the stacked experts of a mixture as well, each expert with matrices of its
    own."""
    quantize: Literal["none", "4bit"] = "none"
    """Storage of the frozen weights: `4bit` is 4-bit NormalFloat (QLoRA, arXiv:2305.14314) and
    needs bitsandbytes."""

    @field_validator("targets", mode="before")
    @classmethod
    def _check_targets(cls, value: object) -> object:
        if value == "all-linear" or (isinstance(value, list | tuple) and value):
            return value
        if isinstance(value, str) and value:
            return [value]
        raise ValueError(f"{value!r} is neither all-linear nor a list of module names, such as [q_proj, v_proj].")


class OptimConfig(Config):
    """Settings of the optimizer and of the learning-rate schedule."""

    section: ClassVar[str] = "optim"

    learning_rate: float = Field(3e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(10, ge=0)
    """Length of the linear warm-up, in training steps."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning-rate schedule after the warm-up. The schedule ends at `lr_floor` times
    the peak."""
    lr_floor: float = Field(0.1, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum global L2 norm of the gradient; a larger gradient is scaled down."""
    type: str = "adamw"
    """Optimizer: `adamw`, or the path of a class or function that makes one, as in torch.optim.SGD
    or my_optim.py:make. The class or function is called with the parameters, with those of `lr`,
    `betas` and `weight_decay` that it accepts, and with `options`."""
    options: dict[str, Any] = {}
    """Further arguments of an optimizer that is named by path, as in {momentum: 0.9}."""

    @property
    def path(self) -> str:
        """Path of an optimizer outside the package; a dotted name such as torch.optim.SGD counts as
        a path."""
        return self.type if is_path(self.type) else ":".join(self.type.rpartition(".")[::2])

    @model_validator(mode="after")
    def _check_type(self) -> OptimConfig:
        if self.type == "adamw":
            if self.options:
                raise ValueError(
                    f"optim.options = {self.options} is for an optimizer that optim.type names by its path."
                )
        elif not is_path(self.type) and (self.type.endswith(".py") or "." not in self.type):
            raise ValueError(
                f"type = {self.type} is neither adamw nor the path of an optimizer, as in torch.optim.SGD or my_optim.py:make."
            )
        else:
            load_callable(self.path, "optimizer")
        return self


class EvalConfig(Config):
    """Settings of the evaluations during and after a run, on rows that training never uses."""

    section: ClassVar[str] = "evaluation"

    split: Literal["validation", "test"] = "test"
    """Split to evaluate on. With `validation`, the checkpoint of the highest mean accuracy is kept
    in best/; with `test`, none is selected."""
    num_rows: int = Field(256, ge=1)
    """Number of examples."""
    eval_steps: int = Field(50, ge=0)
    """Number of training steps between evaluations; 0 evaluates only at the end."""
    eval_token_passes: int | None = Field(None, ge=1)
    """Number of token passes of training between evaluations, in addition to those of `eval_steps`;
    the first is before the first step."""
    num_steps: int | None = Field(None, ge=1)
    """Number of denoising steps of a completion in an evaluation; by default that of the rollouts."""
    schedule: str | None = None
    """Schedule of the evaluations, as in `sampler.schedule`; by default that of the rollouts."""
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    """Sampling temperatures at which the model is evaluated; 0 means greedy decoding."""
    batch_size: int | None = Field(None, ge=1)
    """Maximum number of completions that are denoised together; by default 256, on a CPU 64, and fewer
    if the tokens or the logits would take much memory."""
