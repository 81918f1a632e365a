"""Shape of a recipe's model, found without the weights: from a config.json, from a table of
released models, or from a few numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unmask.cli.estimate.fake_experts import use_fake_experts
from unmask.core.errors import ConfigError, ModelError
from unmask.models import Denoiser
from unmask.models.adapters import Adapters
from unmask.models.experts import freeze_routers
from unmask.models.families import FAMILIES, family_of
from unmask.models.from_run import base_of, locate
from unmask.models.layout import native_config
from unmask.models.native import NATIVE_CLASSES
from unmask.models.source import local_folder, read_json
from unmask.recipes.load import load, shipped_recipes
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.runs.checkpoints import is_checkpoint
from unmask.sampling.encoding import encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHAPES: dict[str, dict[str, Any]] = {
    "LLaDA-8B": {"family": "llada", "vocab": 126464, "width": 4096, "ffn": 12288, "layers": 32, "heads": 32},
    "Dream-7B": {"family": "dream", "vocab": 152064, "width": 3584, "ffn": 18944, "layers": 28, "heads": 28, "kv_heads": 4},
    "iLLaDA-8B": {
        "family": "illada", "vocab": 155136, "width": 4096, "ffn": 14336, "layers": 32, "heads": 32, "kv_heads": 8,
        "tied": True,
    },
    "Fast_dLLM_v2_7B": {
        "family": "fast-dllm-v2", "vocab": 152064, "width": 3584, "ffn": 18944, "layers": 28, "heads": 28, "kv_heads": 4,
    },
    "LLaDA2.0-mini": {
        "family": "llada2", "vocab": 157184, "width": 2048, "ffn": 5120, "layers": 20, "heads": 16, "kv_heads": 4,
        "head_dim": 128, "experts": 256, "experts_per_token": 8, "expert_ffn": 512,
        "more": {
            "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 8, "topk_group": 4, "use_qk_norm": True,
            "num_nextn_predict_layers": 0,
        },
    },
    "SDAR-30B-A3B": {
        "family": "sdar-moe", "vocab": 151936, "width": 2048, "ffn": 6144, "layers": 48, "heads": 32, "kv_heads": 4,
        "head_dim": 128, "experts": 128, "experts_per_token": 8, "expert_ffn": 768,
    },
    "LLaDA-MoE-7B-A1B": {
        "family": "llada-moe", "vocab": 157184, "width": 2048, "ffn": 8192, "layers": 16, "heads": 16, "experts": 64,
        "experts_per_token": 8, "expert_ffn": 1024,
    },
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
"""Shapes of released models, copied from their configs, so that an estimate downloads nothing."""

RELEASED = {
    "LLaDA-1.5": "LLaDA-8B",
    "Dream": "Dream-7B",
    "DiffuCoder-7B": "Dream-7B",
    "LLaDA2.1-mini": "LLaDA2.0-mini",
}
"""Shapes of further models. A key is the beginning of a model's name, and its value is a key of
`SHAPES`."""

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
"""Keys of --shape, and transformers' names for them."""

EXPERT_NUMBERS = {
    "Glm4MoeForCausalLM": {"experts": "n_routed_experts"},
    "Qwen3MoeForCausalLM": {"experts": "num_experts"},
}
"""Names of the number of experts in the mixtures of `SHAPES`."""


def config_of(recipe: TrainRecipe, shape: str = "") -> tuple[PreTrainedConfig, str]:
    """Return the native config of a recipe's model, and its source in words.

    Args:
        recipe: the recipe that names the model.
        shape: shape of a Llama-like model to use instead, as in
            "layers=32,width=4096,heads=32,ffn=12288,vocab=126464".

    Raises:
        ModelError: the model is not on this machine, not known by name and not on the hub.
        ConfigError: the shape cannot be read.
    """
    if shape:
        return _built(_numbers(shape)), f"--shape {shape}"
    model = _described(recipe.model)
    name = Path(model).name.lower()
    if not Path(model).exists():
        # The model is known by its hub name, or by a folder that `unmask convert` will write.
        for beginning, key in [*((key, key) for key in SHAPES), *RELEASED.items()]:
            if name.startswith(beginning.lower()):
                return _built(SHAPES[key], model), f"{model}: {key}, a known shape"
    for stem in shipped_recipes():
        if model == f"runs/{stem}/final" and not Path(model).exists():
            return _tiny(load(PretrainRecipe, stem)), f"the tiny model of unmask pretrain {stem}"
    try:
        raw = read_json(local_folder(model) / "config.json")
    except ModelError as error:
        raise ModelError(
            f"{error} To estimate without its files, give its shape: --shape layers=32,width=4096,heads=32,ffn=12288,vocab=126464"
        ) from error
    family = family_of(raw)
    if family is None:
        raise ModelError(f"{model} is not of a supported family ({', '.join(FAMILIES)}). Give --shape instead.")
    return native_config(raw, family, FAMILIES[family]), f"{model}/config.json"


def _described(model: str) -> str:
    """Return the folder with the config and the tokenizer of a model. For the checkpoint of an
    adapter, this is the folder of the base model."""
    path = locate(model)
    return (base_of(Path(path)) or path) if is_checkpoint(Path(path)) else path


def build(config: PreTrainedConfig, recipe: TrainRecipe, num_layers: int) -> Denoiser:
    """Build a denoiser with `num_layers` layers and random weights, with the adapters and the
    checkpointing of the recipe."""
    import transformers

    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    native = NATIVE_CLASSES[(config.architectures or [""])[0]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        backbone = getattr(transformers, native.auto_class).from_config(config, dtype=dtype)
    denoiser = Denoiser(backbone, 0, 0, 0)
    if recipe.lora:
        Adapters(denoiser, recipe.lora)
    elif not recipe.train_router:
        freeze_routers(denoiser)
    if recipe.gradient_checkpointing:
        denoiser.checkpoint_gradients()
    return denoiser.eval()


def build_fake(config: PreTrainedConfig, recipe: TrainRecipe, num_layers: int) -> Denoiser:
    """Build a denoiser as `build` does, out of fake tensors, which have shapes but no numbers.

    The caller must be in torch's fake mode.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.device("meta"):
        denoiser = build(config, recipe, num_layers)
    if denoiser.backbone.dtype != torch.bfloat16:
        use_fake_experts(denoiser.backbone)
    copies: dict[int, torch.Tensor] = {}
    for module in denoiser.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in copies:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    copies[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                own[name] = copies[id(tensor)]  # type: ignore[assignment]
    return denoiser


def _numbers(shape: str) -> dict[str, Any]:
    values: dict[str, Any] = {"family": "llada"}
    for part in shape.split(","):
        key, _, value = part.strip().partition("=")
        if key not in NUMBERS or not value:
            raise ConfigError(f'--shape has "{part}". Give {", ".join(NUMBERS)} as name=number, separated by commas.')
        try:
            values[key] = value.lower() == "true" if key == "tied" else int(value)
        except ValueError:
            raise ConfigError(
                f'--shape has "{part}", but "{value}" is not written as a whole number. Use digits.'
            ) from None
    missing = [key for key in ("layers", "width", "heads", "ffn", "vocab") if key not in values]
    if missing:
        raise ConfigError(f"--shape lacks {', '.join(missing)}. Add them as name=number.")
    return values


def _built(shape: dict[str, Any], model: str = "") -> PreTrainedConfig:
    """Build the config of a shape. The block length of a block-causal model is the one in its name, or
    that of its first release."""
    family = FAMILIES[shape["family"]]
    names = NUMBERS | EXPERT_NUMBERS.get(family.native_class, {})
    names |= {"experts_per_token": "num_experts_per_tok", "expert_ffn": "moe_intermediate_size"}
    values = {names[key]: value for key, value in shape.items() if key not in ("family", "more")}
    values["num_key_value_heads"] = shape.get("kv_heads", shape["heads"])
    raw = {"model_type": family.native_type, "architectures": [family.native_class], **values, **shape.get("more", {})}
    raw["tie_word_embeddings"] = shape.get("tied", False)
    length = None
    if family.block_causal:
        try:
            length = family.block_length_of(model, None)
        except ModelError:
            length = family.checkpoints[0].block_length
    return native_config(raw | {"max_position_embeddings": 4096}, shape["family"], family, length)


def _tiny(recipe: PretrainRecipe) -> PreTrainedConfig:
    from unmask.models import tiny_denoiser, word_tokenizer

    config: PreTrainedConfig = tiny_denoiser(recipe.tiny, word_tokenizer(recipe.task.tokens), 0).backbone.config
    config.architectures = ["GPT2LMHeadModel"]
    return config


def prompt_tokens(recipe: TrainRecipe) -> tuple[int, str]:
    """Return P, the number of tokens in a prompt with its template, and its source in words.

    If the tokenizer is on this machine, P is the length of the longest of the task's first prompts.
    Otherwise P is 200, to which the released code of EGSPO cuts its prompts.
    """
    model = _described(recipe.model)
    is_here = Path(model).exists()
    try:
        # A model on the hub is not downloaded for an estimate, and the rows of its task may be on
        # the hub as well.
        if is_here or model.startswith("runs/"):
            prompts = [row["prompt"] for row in recipe.task.rows("train", 64, recipe.seed)]
            if not is_here:
                from unmask.models import word_tokenizer

                encoded = word_tokenizer(recipe.task.tokens)([str(prompt) for prompt in prompts]).input_ids
                return max(map(len, encoded)), "the longest of 64 prompts, in the tokens of a tiny model"
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            return encode_batch(tokenizer, prompts, 0)[0].shape[1], "the longest of 64 prompts"
    except Exception:  # an estimate needs neither a tokenizer nor rows nor a network
        pass
    return 200, "assumed; --prompt-length sets it"
