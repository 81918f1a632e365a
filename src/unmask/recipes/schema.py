"""Recipes: one validated tree for a run, from YAML, with `key=value` overrides; saved in the run folder and accepted back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from importlib import resources
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, WrapValidator, field_validator, model_validator

from unmask.core.by_path import is_path, load_callable
from unmask.core.config import Config, EvalConfig, LoraConfig, Named, OptimConfig, SamplerConfig
from unmask.core.errors import ConfigError, no_file, unknown_name
from unmask.core.files import YamlError, parse_yaml, read_yaml
from unmask.methods import METHODS, Method
from unmask.models.tiny import TinyConfig
from unmask.recipes.keys import TABLES, find_class
from unmask.recipes.messages import explain
from unmask.tasks import TASKS, Task


def _or_by_path(base: type[Named]) -> WrapValidator:
    """Returns a validator that uses the class at the path that `type` holds, and leaves the names of the table to the union."""

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
    # The tables are the unions: a new method or task needs no change here.
    AnyMethod = Annotated[reduce(or_, METHODS.values()), Field(discriminator="type"), _or_by_path(Method)]
    AnyTask = Annotated[reduce(or_, TASKS.values()), Field(discriminator="type"), _or_by_path(Task)]


class RunRecipe(Config):
    """What training and pretraining have in common."""

    task: SerializeAsAny[AnyTask]
    """What is learnt: under `type` a name in `TASKS` or the path of a class, as in my_task.py:MyTask; and its options."""
    output_dir: str | None = None
    """Run folder; default runs/NAME of the recipe."""
    seed: int = 0
    """Of everything that is drawn: rows, completions, initial weights."""
    num_rows: int = Field(8000, ge=1)
    """Training rows to generate or read."""
    save_steps: int = Field(25, ge=1)
    """Run steps between checkpoints."""
    save_total_limit: int = Field(2, ge=1)
    """Checkpoints that are kept, the newest."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and schedule."""
    report_to: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl, by accelerate's names: tensorboard, wandb, trackio, mlflow, ..."""
    push_to_hub: str | None = None
    """Repository of the hub, as owner/name, for the finished model and its card. Log in before: hf auth login."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights as loaded; adapters stay float32. Without `lora`, bfloat16 weights round small updates away: keep float32
    then, and set mixed_precision."""
    stuck_timeout: float = Field(600.0, gt=0)
    """Seconds after which a run of several processes, none of which has got any further, ends and names the one that is stuck.
    Longer than the slowest single forward, backward, save or call of the rewards."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Of all forwards, whatever the weights are kept in. On a CPU without bfloat16 units `no` is the fastest by far."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    gradient_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory, a third more time."""
    compile: bool = False
    """torch.compile the trunk. Worth its minute or so on a GPU; no help to a tiny model."""

    @field_validator("push_to_hub", mode="before")
    @classmethod
    def _check_repository(cls, name: object) -> object:
        if name is None or name is False:
            return None
        if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", str(name)) or name is True:
            raise ValueError(f'"{name}" is not a repository of the hub. Write it as owner/name.')
        return name

    @field_validator("report_to", mode="before")
    @classmethod
    def _none_is_no_tracker(cls, names: object) -> object:
        return () if names in (["none"], [None]) else names

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value


class TrainRecipe(RunRecipe):
    """Reinforcement learning of a denoiser on a task with a reward."""

    command: ClassVar[str] = "train"

    model: str
    """Folder or hub id of the model to start from."""
    method: SerializeAsAny[AnyMethod]
    """How it learns: under `type` a name in `METHODS` or the path of a class, as in my_method.py:MyMethod; and its options."""
    sampler: SamplerConfig = SamplerConfig()
    """How rollouts are denoised; evaluation uses the same but for its own temperature."""
    evaluation: EvalConfig = EvalConfig()
    """What is measured on the way."""
    max_steps: int = Field(200, ge=1)
    """Run steps: rollout, score, update."""
    num_prompts: int = Field(16, ge=1)
    """Prompts of a step, over all processes; the number of processes must divide it."""
    num_generations: int = Field(8, ge=1)
    """G, completions of each prompt."""
    num_iterations: int = Field(1, ge=1)
    """μ, passes over a step's views."""
    num_minibatches: int = Field(1, ge=1)
    """Optimizer updates in each pass."""
    rollout_batch_size: int = Field(256, ge=1)
    """Completions denoised together; changes speed and memory, not results."""
    views_per_forward: int = Field(256, ge=1)
    """Views scored together; changes speed and memory, not results."""
    max_tokens_per_forward: Literal["auto"] | int | None = None
    """Rows times (prompt + completion) tokens in one forward of the rollout and of the update, in place of rollout_batch_size and
    views_per_forward; never less than one row. `auto` finds the most that memory holds with a probe before the first step."""
    reference_offload: bool = False
    """Keep the reference's weights in the CPU's memory and move them in for its pass. With `lora` there is no copy to move."""
    sync_ref_model: bool = False
    """Let the reference follow the policy slowly instead of staying where the run began; TRL's name, as the next two."""
    ref_model_sync_steps: int = Field(64, ge=1)
    """Run steps between its moves."""
    ref_model_mixup_alpha: float = Field(1.0, gt=0, le=1)
    """α of a move, reference ← α policy + (1 - α) reference (arXiv:2404.09656); of each adapter matrix with `lora`."""
    logprob_temperature: Literal["sampling"] | Annotated[float, Field(gt=0)] = "sampling"
    """Temperature of the log-probabilities that are differentiated: that of the sampler, or a number (published codes: 1.0)."""
    reward_funcs: tuple[str, ...] = ()
    """Dotted paths (`package.module:function` or `file.py:function`); default the task's own."""
    reward_weights: tuple[float, ...] = ()
    """One for each reward function; default 1."""
    reward_timeout: float = Field(60.0, gt=0)
    """Seconds that one call of a reward function, for all completions of a step, may take."""
    reward_workers: int = Field(1, ge=0)
    """Processes for each function of `reward_funcs`. A completion on which a function hangs or dies there scores 0, and the run
    goes on. More than one share the completions of a function that judges each by itself. 0: in the training process, where a
    function that hangs ends the run."""
    reward_item_timeout: float = Field(5.0, gt=0)
    """Seconds for each completion in a worker process, where a function judges each by itself."""
    log_rollouts_steps: int = Field(25, ge=0)
    """Run steps between kept rollouts; 0 keeps none."""
    log_rollouts_groups: int = Field(2, ge=1)
    """Groups kept of each."""
    log_rollouts_guesses: int = Field(32, ge=0)
    """Denoising steps at which a kept completion's greedy one-step completion and its reward are kept too, evenly spaced."""

    @field_validator("max_tokens_per_forward", mode="before")
    @classmethod
    def _check_room(cls, value: object) -> object:
        if value in (None, "auto") or (isinstance(value, int) and value > 0):
            return value
        raise ValueError(f"{value!r} is neither a number of tokens above 0, nor auto, nor null.")

    @model_validator(mode="after")
    def _check_together(self) -> TrainRecipe:
        _check_order(self.sampler)
        self.method.check(self.sampler, self.num_generations)
        if not self.sampler.temperature:
            raise ValueError(
                "sampler.temperature = 0 makes all completions of a prompt alike, so there is nothing to compare. "
                "Use a temperature above 0; 0.9 is the papers'."
            )
        narrowed = self.logprob_temperature == "sampling" and (self.sampler.top_k > 0 or self.sampler.top_p < 1)
        if narrowed and self.method.needs().reference == "distribution":
            raise ValueError(
                "method.kl = exact compares whole distributions, and with sampler.top_k or top_p the policy and the reference "
                "keep different tokens, which makes it infinite. Use method.kl = k3, or sample without top_k and top_p."
            )
        if self.sync_ref_model and self.method.needs().reference == "none":
            raise ValueError(
                f"sync_ref_model moves a reference policy, and {self.method.type} reads none with these settings. "
                "Give it a KL weight (method.beta above 0, where it has one), or set sync_ref_model to false."
            )
        room, length = self.max_tokens_per_forward, self.sampler.max_completion_length
        if isinstance(room, int) and room < length:
            raise ValueError(
                f"max_tokens_per_forward = {room} does not hold one completion of {length} tokens. Set it to the tokens of a "
                "prompt and a completion, times the rows that memory holds, or to auto."
            )
        if self.reward_weights and self.reward_funcs and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"{len(self.reward_weights)} reward_weights for {len(self.reward_funcs)} reward_funcs; give one for each."
            )
        return self


class PretrainRecipe(RunRecipe):
    """Masked-diffusion ELBO training on a task's demonstrations: a tiny base from scratch, or SFT of a checkpoint."""

    command: ClassVar[str] = "pretrain"

    model: str | None = None
    """Checkpoint to start from; none builds `tiny`."""
    tiny: TinyConfig = TinyConfig()
    """Shape of the model that is built."""
    max_steps: int = Field(260, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(96, ge=1)
    """Demonstrations a step."""
    max_tokens_per_forward: int | None = Field(None, ge=1)
    """Rows times (prompt + completion) tokens in one forward, never less than one row; the gradients of a batch's parts are added
    up. Default: the whole batch at once."""
    noise_share: float = Field(0.0, ge=0, le=1)
    """Share of demonstrations that are plausible but mostly wrong: a base for RL to raise. The shipped tiny bases set it."""
    max_completion_length: int | None = Field(None, ge=1)
    """L; default the task's own."""
    min_time: float = Field(0.03, gt=0, lt=1)
    """Lower end of the mask ratio t ~ U(min_time, 1)."""
    muon_learning_rate: float = Field(0.0, ge=0)
    """Peak rate of Muon for the block matrices, for training from scratch; 0 leaves all to AdamW."""
    optim: OptimConfig = OptimConfig()
    """AdamW for all that Muon does not take, and the schedule of both."""

    @model_validator(mode="after")
    def _check_adapters(self) -> PretrainRecipe:
        if self.lora and self.model is None:
            raise ValueError(
                "lora adapts a checkpoint, and this recipe builds a new model. Set model, or lora to null."
            )
        if self.lora and self.muon_learning_rate:
            raise ValueError("muon_learning_rate is for training from scratch. With lora, set it to 0.")
        return self


RecipeT = TypeVar("RecipeT", bound=RunRecipe)
ConfigT = TypeVar("ConfigT", bound=Config)


Source = str | os.PathLike[str] | Mapping[str, Any] | RunRecipe
"""Where a recipe comes from: a shipped name, a YAML file, a dict of its keys, or a recipe that is loaded already."""

Overrides = Sequence[str] | Mapping[str, Any]
"""Changes to a recipe: `key=value` texts, or a dict, whose keys may be dotted and whose values may be dicts."""


def load_recipe(source: Source, overrides: Overrides = (), **settings: Any) -> TrainRecipe:
    """Load a training recipe.

    Args:
        source: a shipped name, a YAML file, a dict, or a recipe to change.
        overrides: `key=value` texts, applied in order, or a dict such as {"max_steps": 2, "optim.learning_rate": 1e-4}.
        settings: further changes by keyword; one that is a dict changes only the keys that it holds.

    Raises:
        ConfigError: there is no such recipe, or something in it cannot be used.
    """
    return load(TrainRecipe, source, overrides, **settings)


def load(kind: type[RecipeT], source: Source, overrides: Overrides = (), **settings: Any) -> RecipeT:
    """Read, override and validate a recipe of a kind; the arguments are those of `load_recipe`.

    Raises:
        ConfigError: no such recipe, unreadable YAML, a recipe of the other kind, a malformed override, or anything that
            validation refuses.
    """
    tree = recipe_tree(kind, source)
    override(tree, overrides)
    override(tree, settings)
    return validate(kind, tree)


def recipe_tree(kind: type[RunRecipe], source: Source) -> dict[str, Any]:
    """The keys and values of a recipe as its source has them, not yet validated."""
    if isinstance(source, RunRecipe):
        return source.model_dump()
    if isinstance(source, Mapping):
        tree: dict[str, Any] = {}
        override(tree, source)
        _check_kind(kind, "", tree)
        return tree
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"a recipe is a shipped name, a YAML file or a dict of its settings, not {type(source).__name__}: "
            'load_recipe("sudoku-tiny", {"max_steps": 3}).'
        )
    path = find_recipe(str(source))
    tree = read_tree(path)
    _check_kind(kind, str(source), tree)
    tree.setdefault("output_dir", f"runs/{path.stem}")
    return tree


def read_tree(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    return read_yaml(path, ConfigError)


def _check_kind(kind: type[RunRecipe], source: str, tree: Mapping[str, Any]) -> None:
    """Refuse a whole recipe of the other command in one sentence, rather than key by key."""
    only_pretrain = PretrainRecipe.model_fields.keys() - TrainRecipe.model_fields.keys()
    is_train, is_pretrain = "method" in tree, "method" not in tree and bool(only_pretrain & tree.keys())
    if (kind is TrainRecipe and is_pretrain) or (kind is PretrainRecipe and is_train):
        command = "train" if is_train else "pretrain"
        raise ConfigError(
            f"{source or 'this dict'} is a recipe for the other command: unmask {command} {source or 'RECIPE'}"
        )


COLLECTIONS = ("published", "single-gpu")
"""Folders of recipes of runs, whose names begin with the folder's."""


def find_recipe(source: str, kind: str = "") -> Path:
    """The file of a shipped recipe of a kind (see `shipped_recipes`), by name, or the file itself.

    A recipe of a collection may be named without its folder.
    """
    file = Path(source).expanduser()
    if file.is_dir():
        inside = file / "config.yaml"
        hint = f" The recipe of the run in it is {inside}." if inside.is_file() else ""
        raise ConfigError(f"{file} is a folder; a recipe is a YAML file or a shipped name.{hint}")
    if source.endswith((".yaml", ".yml")) or file.is_file():
        if not file.is_file():
            shipped = f" The shipped recipe is called {file.stem}." if file.stem in shipped_recipes(kind) else ""
            raise ConfigError(no_file(file, "recipe file") + shipped)
        return file
    if "=" in source:
        raise ConfigError(f"the recipe comes first, and then settings such as {source}.")
    return find_shipped(source, kind)


def find_shipped(source: str, kind: str = "") -> Path:
    """The file of a shipped recipe of a kind, by name.

    Raises:
        ConfigError: there is none.
    """
    own = shipped_recipes(kind)
    further = {} if kind else {f"{c}/{name}": path for c in COLLECTIONS for name, path in shipped_recipes(c).items()}
    by_stem = {path.stem: path for path in further.values()}
    for names in (own, further, by_stem):
        if source in names:
            return names[source]
    if command := _other_command(source, kind):
        raise ConfigError(f"{source} is a recipe for another command: unmask {command} {source}")
    near = get_close_matches(source, [*own, *further, *by_stem], n=1, cutoff=0.5)
    listed = unknown_name("recipe", source, [*own, *near] if near and near[0] not in own else own)
    raise ConfigError(
        f"{listed} Or give a .yaml file." + ("" if kind else " unmask recipes lists all that are shipped.")
    )


def _other_command(source: str, kind: str) -> str | None:
    """Which command takes the shipped recipe of this name, if it is of a run and a comparison is looked for, or the reverse."""
    if kind == "" and source in shipped_recipes("compare"):
        return "compare"
    if kind == "compare" and (path := shipped_recipes().get(source)):
        return "train" if "method" in read_tree(path) else "pretrain"
    return None


def shipped_recipes(kind: str = "") -> dict[str, Path]:
    """The recipes that come with the package, by name: those of a run, or of another kind, which has a folder of its own."""
    folder = Path(str(resources.files("unmask") / "recipes")) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def override(tree: dict[str, Any], changes: Overrides) -> None:
    """Write changes into a tree of dicts; a method's or task's type first, because it drops the options of the one before.

    Example:
        >>> tree = {"optim": {"warmup_steps": 5}}
        >>> override(tree, {"optim": {"learning_rate": 1e-3}, "evaluation.num_rows": 8})
        >>> tree
        {'optim': {'warmup_steps': 5, 'learning_rate': 0.001}, 'evaluation': {'num_rows': 8}}
    """
    if isinstance(changes, Mapping):
        flat = list(_flat(changes))
        for key, value in sorted(flat, key=lambda change: not change[0].endswith(".type")):
            write_key(tree, key, value)
        return
    if isinstance(changes, str):
        changes = [changes]
    for change in sorted(changes, key=lambda text: not str(text).partition("=")[0].strip().endswith(".type")):
        apply_override(tree, change)


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        # Not every mapping is a section: rows that are given in Python may be one.
        if type(value) is dict and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Write one `a.b.c=value` into a tree of dicts; the value is YAML.

    Example:
        >>> tree = {"optim": {"learning_rate": 1.0}}
        >>> apply_override(tree, "optim.learning_rate=3e-4")
        >>> apply_override(tree, "seed=1")
        >>> tree
        {'optim': {'learning_rate': '3e-4'}, 'seed': 1}
    """
    key, equals, value = str(override).partition("=")
    if not equals or not key:
        raise ConfigError(f'override "{override}" is not of the form key=value, such as optim.learning_rate=3e-4.')
    try:
        write_key(tree, key.strip(), parse_yaml(value))
    except YamlError as error:
        raise ConfigError(f'override "{override[:200]}": the value is not valid YAML ({error}).') from error
    except ConfigError as error:
        raise ConfigError(f'override "{override}": {error}') from error


def write_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Write a value under a dotted key into a tree of dicts; another `type` drops what was beside the one before.

    Raises:
        ConfigError: something on the way is no dict.
    """
    *parents, leaf = key.split(".")
    for name in parents:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"{name} is a single value and has nothing below it.")
    if leaf == "type" and tree.get("type", value) != value:
        # Options of one name mean different things to different methods and tasks.
        if parents[-1:] == ["optim"]:
            tree.pop("options", None)
        else:
            tree.clear()
    tree[leaf] = value


def validate(kind: type[ConfigT], tree: Mapping[str, Any]) -> ConfigT:
    """The recipe that `tree` describes, or one ConfigError with a line for each fault."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(kind, fault, tree) for fault in error.errors())) from error


def completed(kind: type[ConfigT]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Gives a recorded recipe the defaults of keys that did not exist when it was recorded; one that is none stays as it is."""

    def complete(tree: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return validate(kind, tree).model_dump(mode="json")
        except ConfigError:
            return tree

    return complete


def make_task(name: str, options: Sequence[str] = ()) -> Task:
    """The task `name` with `key=value` options; see `task_settings`."""
    tree = task_settings(name)
    for option in options:
        apply_override(tree, option)
    return validate(RunRecipe, {"task": tree}).task


def task_settings(name: str) -> dict[str, Any]:
    """Returns the settings that a task's name on the command line stands for: TYPE:NAME also sets the option `name`.

    Example:
        >>> task_settings("reasoning_gym:chain_sum"), task_settings("my_task.py:Mine")
        ({'type': 'reasoning_gym', 'name': 'chain_sum'}, {'type': 'my_task.py:Mine'})
    """
    kind, colon, own_name = name.partition(":")
    return {"type": kind, "name": own_name} if colon and kind in TASKS else {"type": name}


def make_sampler(**settings: Any) -> SamplerConfig:
    """A sampler from keyword settings, with faults as ConfigErrors."""
    try:
        sampler = SamplerConfig(**settings)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(SamplerConfig, fault, settings) for fault in error.errors())) from error
    _check_order(sampler)
    return sampler


def _check_order(sampler: SamplerConfig) -> None:
    """Raise ConfigError if the order is a path under which no function can be loaded."""
    if is_path(sampler.order):
        load_callable(sampler.order, "order")


def dump(recipe: Config) -> str:
    """YAML that `load` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
