"""The shape of a recipe's model, without its weights: from its config.json, a table of released models, or a few numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unmask.core.errors import ConfigError, ModelError
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.models.families import FAMILIES, family_of
from unmask.models.from_run import base_of, locate
from unmask.models.layout import native_config
from unmask.models.native import NATIVE_CLASSES
from unmask.models.source import local_folder, read_json
from unmask.recipes.schema import PretrainRecipe, TrainRecipe, load, shipped_recipes
from unmask.runs.checkpoints import is_checkpoint
from unmask.sampling.generation import encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHAPES: dict[str, dict[str, Any]] = {
    "LLaDA-8B": {"family": "llada", "vocab": 126464, "width": 4096, "ffn": 12288, "layers": 32, "heads": 32},
    "Dream-7B": {"family": "dream", "vocab": 152064, "width": 3584, "ffn": 18944, "layers": 28, "heads": 28, "kv_heads": 4},
    "Qwen3-0.6B": {
        "family": "a2d-qwen3", "vocab": 151936, "width": 1024, "ffn": 3072, "layers": 28, "heads": 16, "kv_heads": 8,
        "head_dim": 128, "tied": True,
    },
    "Qwen2.5-Coder-0.5B": {
        "family": "a2d-qwen2", "vocab": 151936, "width": 896, "ffn": 4864, "layers": 24, "heads": 14, "kv_heads": 2,
        "tied": True,
    },
    "ModernBERT-base": {
        "family": "modernbert-chat", "vocab": 50368, "width": 768, "ffn": 1152, "layers": 22, "heads": 12, "tied": True,
    },
    "ModernBERT-large": {
        "family": "modernbert-chat", "vocab": 50368, "width": 1024, "ffn": 2624, "layers": 28, "heads": 16, "tied": True,
    },
}  # fmt: skip
"""Shapes of released models, as their configs have them, so that nothing has to be fetched."""

RELEASED = {"LLaDA-1.5": "LLaDA-8B", "Dream": "Dream-7B", "DiffuCoder-7B": "Dream-7B"}
"""Beginnings of model names of another shape's name."""

NUMBERS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "tied": "tie_word_embeddings",
}
"""What --shape takes, and transformers' names."""


def config_of(recipe: TrainRecipe, shape: str = "") -> tuple[PreTrainedConfig, str]:
    """The native config of a recipe's model, and where it is from in words.

    Args:
        recipe: what names the model.
        shape: of a Llama-like model instead, as in "layers=32,width=4096,heads=32,ffn=12288,vocab=126464".

    Raises:
        ModelError: the model is neither here, nor known, nor to be had from the hub.
        ConfigError: a shape that cannot be read.
    """
    if shape:
        return _built(_numbers(shape)), f"--shape {shape}"
    model = _described(recipe.model)
    name = Path(model).name.lower()
    if not Path(model).exists():
        # By name, as the hub has it or as `unmask convert` is told to write it.
        for beginning, key in [*((key, key) for key in SHAPES), *RELEASED.items()]:
            if name.startswith(beginning.lower()):
                return _built(SHAPES[key]), f"{model}: {key}, whose shape is known"
    for stem in shipped_recipes():
        if model == f"runs/{stem}/final" and not Path(model).exists():
            return _tiny(load(PretrainRecipe, stem)), f"what unmask pretrain {stem} builds"
    try:
        raw = read_json(local_folder(model) / "config.json")
    except ModelError as error:
        raise ModelError(
            f"{error} To estimate without it, give its shape: --shape layers=32,width=4096,heads=32,ffn=12288,vocab=126464"
        ) from error
    family = family_of(raw)
    if family is None:
        raise ModelError(f"{model} is of no family that unmask knows ({', '.join(FAMILIES)}). Give --shape instead.")
    return native_config(raw, family, FAMILIES[family]), f"{model}/config.json"


def _described(model: str) -> str:
    """The folder that holds the config and the tokenizer of a model: of a run's, or of the one under a checkpoint's adapter."""
    place = locate(model)
    return (base_of(Path(place)) or place) if is_checkpoint(Path(place)) else place


def build(config: PreTrainedConfig, recipe: TrainRecipe, num_layers: int) -> Denoiser:
    """A denoiser of a config with another number of layers and random weights, equipped as the recipe says."""
    import transformers

    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    native = NATIVE_CLASSES[(config.architectures or [""])[0]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = getattr(transformers, native.auto_class).from_config(config, dtype=getattr(torch, recipe.dtype))
    # MASK for EOS as well: it is never drawn, so no row ends.
    denoiser = Denoiser(backbone, 0, 0, 0)
    if recipe.lora:
        Adapters(denoiser, recipe.lora)
    if recipe.gradient_checkpointing:
        denoiser.checkpoint_gradients()
    return denoiser.eval()


def build_fake(config: PreTrainedConfig, recipe: TrainRecipe, num_layers: int) -> Denoiser:
    """The same with weights that have a shape and a type and no numbers, to be made and used within torch's fake mode."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.device("meta"):
        denoiser = build(config, recipe, num_layers)
    made: dict[int, torch.Tensor] = {}
    for module in denoiser.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                own[name] = made[id(tensor)]  # type: ignore[assignment]
    return denoiser


def _numbers(shape: str) -> dict[str, Any]:
    found: dict[str, Any] = {"family": "llada"}
    for part in shape.split(","):
        key, _, value = part.strip().partition("=")
        if key not in NUMBERS or not value:
            raise ConfigError(f'--shape "{part}": give {", ".join(NUMBERS)} as name=number, separated by commas.')
        try:
            found[key] = value.lower() == "true" if key == "tied" else int(value)
        except ValueError:
            raise ConfigError(f'--shape "{part}": {value} is no whole number.') from None
    missing = [key for key in ("layers", "width", "heads", "ffn", "vocab") if key not in found]
    if missing:
        raise ConfigError(f"--shape lacks {', '.join(missing)}.")
    return found


def _built(shape: dict[str, Any]) -> PreTrainedConfig:
    family = FAMILIES[shape["family"]]
    values = {NUMBERS[key]: value for key, value in shape.items() if key != "family"}
    values["num_key_value_heads"] = shape.get("kv_heads", shape["heads"])
    raw = {"model_type": family.native_type, "architectures": [family.native_class], **values}
    raw["tie_word_embeddings"] = shape.get("tied", False)
    return native_config(raw | {"max_position_embeddings": 4096}, shape["family"], family)


def _tiny(recipe: PretrainRecipe) -> PreTrainedConfig:
    from unmask.models import char_tokenizer, tiny_denoiser

    config: PreTrainedConfig = tiny_denoiser(recipe.tiny, char_tokenizer(recipe.task.alphabet), 0).backbone.config
    config.architectures = ["GPT2LMHeadModel"]
    return config


def prompt_tokens(recipe: TrainRecipe) -> tuple[int, str]:
    """P, the tokens of a prompt with its template, and where the number is from: the task's first rows where the tokenizer is
    here, otherwise 200, to which the EGSPO release cuts its prompts."""
    model = _described(recipe.model)
    try:
        if not Path(model).exists():
            if not model.startswith("runs/"):
                # Its task's rows may be on the hub as well, which would be asked in vain.
                raise ModelError("not here")
            own = recipe.task.rows("train", 64, recipe.seed)
            # A tiny model has a token for each character.
            return max(len(str(row["prompt"])) for row in own), "the longest of 64 rows, a token a character"
        from transformers import AutoTokenizer

        own = recipe.task.rows("train", 64, recipe.seed)
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        ids, _ = encode_batch(tokenizer, [row["prompt"] for row in own], 0)
        return ids.shape[1], "the longest of 64 rows"
    except Exception:  # no tokenizer, no rows, no network: an estimate needs none of them
        return 200, "assumed; --prompt-length says otherwise"
