"""The building blocks of a recipe: frozen pydantic models that refuse unknown keys.

Each setting has one home. What belongs to a method or a task lives in that method's or task's own class; what every run
has lives here; `unmask.recipe` puts the tree together from the tables of methods and tasks.
Names are TRL's where TRL has one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Config(BaseModel):
    """Base of everything that can stand in a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class SamplerConfig(Config):
    """How a completion is denoised."""

    max_completion_length: int = Field(256, ge=1)
    """L, completion positions."""
    num_steps: int | None = Field(None, ge=1)
    """T, denoising steps; default L / 2, the two tokens a step of the papers (arXiv:2603.12554)."""
    block_length: int | None = Field(None, ge=1)
    """Positions of one semi-autoregressive block; must tile L, and the blocks must share T evenly. Default L: one block."""
    order: str = "low_confidence"
    """Which masked positions are committed at a step: a name of `unmask.samplers.ORDERS`."""
    order_temperature: float = Field(0.5, gt=0)
    """τ of order `plackett_luce`, which draws positions in proportion to exp(confidence / τ); default of arXiv:2607.15200."""
    temperature: float = Field(0.9, ge=0)
    """Of the token distribution; 0 is argmax. Default of the EGSPO release."""
    top_k: int = Field(0, ge=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of likeliest tokens whose probability reaches top_p; 1 keeps all."""
    guidance: float = Field(0.0, ge=0)
    """w of classifier-free guidance: logits become u + (1 + w)(c - u), u from a masked prompt. 0 is off and saves a forward."""

    @property
    def steps(self) -> int:
        """T, with its default filled in."""
        return self.num_steps or max(1, self.max_completion_length // 2)

    @property
    def block(self) -> int:
        """Block length, with its default filled in."""
        return self.block_length or self.max_completion_length

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
        return self


class LoraConfig(Config):
    """Low-rank adapters (LoRA, arXiv:2106.09685): W + (alpha / r) B A, of which A and B alone are trained."""

    r: int = Field(128, ge=1)
    """Rank. Default, with alpha, of the published LLaDA runs (arXiv:2504.12216)."""
    alpha: float = Field(64.0, gt=0)
    """Scale of the update, divided by the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapters' inputs, in SFT only: in reinforcement learning it would make the ratio of an unchanged policy differ from
    one, so there it is never active."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: `all-linear` is every linear map of the trunk, not the head; or names, as in [q_proj, v_proj].
    A name that no module has is an error."""
    quantize: Literal["none", "4bit"] = "none"
    """`4bit` keeps the frozen weights in 4-bit NormalFloat (QLoRA, arXiv:2305.14314); needs a CUDA GPU and bitsandbytes."""

    @field_validator("targets", mode="before")
    @classmethod
    def _check_targets(cls, value: object) -> object:
        if value == "all-linear" or (isinstance(value, (list, tuple)) and value):
            return value
        raise ValueError(f"{value!r} is neither all-linear nor a list of module names, such as [q_proj, v_proj].")


class OptimConfig(Config):
    """Optimizer and learning-rate schedule."""

    learning_rate: float = Field(3e-5, gt=0)
    """Peak rate of AdamW."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's moment decays."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(10, ge=0)
    """Linear warm-up, in run steps."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape after warm-up, down to `lr_floor` of the peak at the last step."""
    lr_floor: float = Field(0.1, ge=0, le=1)
    """Share of the peak rate that is left at the end."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping, by global L2 norm."""


class EvalConfig(Config):
    """Evaluation during and after a run, on rows that training never sees."""

    split: Literal["validation", "test"] = "test"
    """Rows to take. With `validation` the model of the highest mean accuracy is kept in best/; on `test` none is chosen."""
    num_rows: int = Field(256, ge=1)
    """How many rows."""
    eval_steps: int = Field(50, ge=0)
    """Run steps between evaluations; 0 evaluates at the end only."""
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    """One result for each: 0 is greedy."""
    batch_size: int = Field(256, ge=1)
    """Completions denoised together."""
