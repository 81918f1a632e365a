"""The building blocks of a recipe: frozen pydantic models that refuse unknown keys.

Each setting has one place. The options of a method or a task are fields of its own class, the settings of every run are here,
and `unmask.recipes.schema` builds the tree from the tables of methods and tasks. Names are TRL's where TRL has one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from unmask.core.by_path import is_path, load_callable, load_object, path_of
from unmask.core.errors import ConfigError, unknown_name

ORDER_NAMES = ("entropy", "left_to_right", "low_confidence", "margin", "plackett_luce", "random")
"""The names of `unmask.sampling.ORDERS`, repeated here because settings are checked without importing torch."""


class Config(BaseModel):
    """Base of everything that can stand in a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    section: ClassVar[str] = ""
    """The key in a recipe under which the settings of this class stand, for messages."""
    command: ClassVar[str] = ""
    """The command that takes a whole recipe of this class, for messages."""
    leads_to: ClassVar[Mapping[str, type[Config]]] = {}
    """Fields that hold changes to a recipe as dotted keys, with the kind of that recipe."""

    @model_validator(mode="before")
    @classmethod
    def _read_values(cls, settings: object) -> object:
        """Take one value where a list of one is meant, and read ~ at the start of a path as the user's home folder."""
        if not isinstance(settings, Mapping):
            return settings
        return {key: _at_home(_listed(value, cls.model_fields.get(key))) for key, value in settings.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            key = f"{self.section}.{name}" if self.section else name
            raise ConfigError(
                f"{key} cannot be set on a recipe that is already loaded. "
                f'Load it again with the other value: load_recipe(recipe, {{"{key}": {value!r}}}).'
            )
        super().__setattr__(name, value)


class Named(Config):
    """Base of methods and tasks, which a recipe selects by `type`: a name in the package's table, or the path of a class.

    A class outside the package needs no `type` of its own. It gets its path, whatever it derives from.
    """

    type: str

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        super().__pydantic_init_subclass__(**settings)
        if cls.is_outside():
            cls.model_fields["type"] = FieldInfo(annotation=str, default=path_of(cls))
            cls.model_rebuild(force=True)

    @classmethod
    def is_outside(cls) -> bool:
        """Returns whether the class is defined outside the package."""
        return cls.__module__.partition(".")[0] != __name__.partition(".")[0]

    @property
    def type_name(self) -> str:
        """The type without the path: of a class outside the package, the name of the class."""
        return self.type.rpartition(":")[2]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_path(self.type):
            # Another process has to read the file before it knows the class.
            return _restored, (self.type, self.section, self.__getstate__())
        return super().__reduce_ex__(protocol)


def _restored(path: str, what: str, state: dict[Any, Any]) -> Named:
    """Unpickle settings whose class lives outside the package."""
    cls = load_object(path, what)
    settings: Named = cls.__new__(cls)
    settings.__setstate__(state)
    return settings


def _listed(value: Any, field: FieldInfo | None) -> Any:
    """The value in a list if the field holds a list of any length and the value is a single one; nothing is an empty list."""
    if field is None or not _holds_list(field.annotation):
        return value
    if value is None:
        return () if field.default == () else None
    return [value] if isinstance(value, str | int | float | os.PathLike) else value


def _holds_list(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_holds_list(option) for option in get_args(annotation) if option is not type(None))
    return get_origin(annotation) is tuple and get_args(annotation)[-1] is Ellipsis


def _at_home(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_at_home(item) for item in value)
    if isinstance(value, str | os.PathLike) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))  # type: ignore[call-arg]
    return value


class SamplerConfig(Config):
    """How a completion is denoised."""

    section: ClassVar[str] = "sampler"

    max_completion_length: int = Field(256, ge=1)
    """L, completion positions."""
    num_steps: int | None = Field(None, ge=1)
    """T, denoising steps; default L / 2, the two tokens a step of the papers (arXiv:2603.12554)."""
    block_length: int | None = Field(None, ge=1)
    """Positions of one semi-autoregressive block; must tile L, and the blocks must share T evenly. Default L: one block."""
    order: str = "low_confidence"
    """Which masked positions are committed at a step: entropy, left_to_right, low_confidence, margin, plackett_luce or random, or
    the path of a function, as in my_order.py:mine."""
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

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: str) -> str:
        # A recorded path is not loaded here: a saved rollout can be read where the file of its order is not.
        if order not in ORDER_NAMES and not is_path(order):
            raise ConfigError(
                f"{unknown_name('order', order, ORDER_NAMES)} Or give the path of a function, as in my_order.py:mine."
            )
        return order

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

    section: ClassVar[str] = "lora"

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
        if value == "all-linear" or (isinstance(value, list | tuple) and value):
            return value
        if isinstance(value, str) and value:
            return [value]
        raise ValueError(f"{value!r} is neither all-linear nor a list of module names, such as [q_proj, v_proj].")


class OptimConfig(Config):
    """Optimizer and learning-rate schedule."""

    section: ClassVar[str] = "optim"

    learning_rate: float = Field(3e-5, gt=0)
    """Peak learning rate."""
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
    type: str = "adamw"
    """`adamw`, or the path of an optimizer class or of a function that makes one, as in torch.optim.SGD or my_optim.py:make. It
    is called with the parameters, `lr`, those of `betas` and `weight_decay` that it has arguments for, and `options`."""
    options: dict[str, Any] = {}
    """Further arguments of an optimizer that is given by path, as in {momentum: 0.9}."""

    @property
    def path(self) -> str:
        """The path of an optimizer outside the package; a dotted name such as torch.optim.SGD is one too."""
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
    """Evaluation during and after a run, on rows that training never sees."""

    section: ClassVar[str] = "evaluation"

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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree of settings as values by dotted key. Keys may be dotted already; later entries win.

    Example:
        >>> flat({"method": {"type": "egspo", "beta": 0.0}, "optim.learning_rate": 1e-3})
        {'method.type': 'egspo', 'method.beta': 0.0, 'optim.learning_rate': 0.001}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
