"""LoRA on a denoiser: adapters that are put into its backbone in place, so that its class and its forward stay what they were.

W x + (alpha / r) B A x, with A and B alone trained (arXiv:2106.09685). The backbone without them is the policy that the run began
with, so a reference policy costs no memory; a reference that moves is a second, frozen pair of matrices.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.config import LoraConfig
from unmask.core.errors import ConfigError, ModelError, no_file, reason, unknown_name
from unmask.models.denoiser import Denoiser
from unmask.models.from_run import ADAPTER_CONFIG, base_of, load_checkpoint, locate
from unmask.models.loading import load_folder, load_model, save_model
from unmask.models.source import read_json
from unmask.runs.checkpoints import is_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLICY, REFERENCE = "default", "reference"
"""Names of the adapter that is trained and of the one that follows it."""

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_CONFIG, "adapter_model.safetensors"
"""What peft reads and writes."""

_PREFIX = "base_model.model."
"""Of every name in peft's own state dicts."""


class Adapters:
    """The adapters of one denoiser; every other weight of it is frozen.

    Args:
        denoiser: gets them in place.
        config: rank, scale, dropout and targets.
        seed: of A's initial weights; B starts at 0, so that nothing changes at first.
        base: name or folder of the model, kept in what is saved.

    Raises:
        ConfigError: peft is not installed, or a target that no linear module of the model has.
    """

    def __init__(self, denoiser: Denoiser, config: LoraConfig, seed: int = 0, base: str | None = None) -> None:
        peft = _peft()
        targets = target_modules(denoiser, config)
        lora = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets,
            # GPT-2 keeps its matrices transposed.
            fan_in_fan_out=type(denoiser.backbone.get_submodule(targets[0])).__name__ == "Conv1D",
            base_model_name_or_path=base,
        )
        with _unnoticed():
            torch.manual_seed(seed)
            self._peft: Any = peft.PeftModel(denoiser.backbone, lora, adapter_name=POLICY)
        self.backbone: PreTrainedModel = denoiser.backbone
        self._lora = lora

    @classmethod
    def load(cls, denoiser: Denoiser, folder: Path) -> Adapters:
        """Put the adapter that a folder holds, ours or any LoRA that peft saved, into a denoiser.

        Raises:
            ModelError: no adapter there, or one of another model.
        """
        peft = _peft()
        if not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"{folder} holds no adapter: it has no {CONFIG_FILE}.")
        self = cls.__new__(cls)
        try:
            with _unnoticed():
                self._peft = peft.PeftModel.from_pretrained(denoiser.backbone, str(folder), adapter_name=POLICY)
        except Exception as error:  # whatever a foreign folder makes peft raise is a fault of the folder
            raise ModelError(f"the adapter {folder} does not fit the model: {reason(error)}") from error
        more = [key for key in denoiser.backbone.state_dict() if f".{POLICY}" in key and not _is_matrix(key)]
        if more:
            raise ModelError(
                f"the adapter {folder} has more than LoRA's two matrices, such as {more[0]}, and is not merged here. "
                "Where it was trained, peft's merge_and_unload makes a plain checkpoint of it."
            )
        self.backbone = denoiser.backbone
        self._lora = self._peft.peft_config[POLICY]
        return self

    @classmethod
    def restore(cls, denoiser: Denoiser, folder: Path, weights: Mapping[str, Tensor]) -> Adapters:
        """Put the adapter of a checkpoint into a denoiser.

        Args:
            denoiser: the model that the adapter was trained on.
            folder: the checkpoint, which holds the adapter's config.
            weights: the adapter's matrices, under the backbone's names.

        Raises:
            ModelError: it does not fit the model.
        """
        peft = _peft()
        self = cls.__new__(cls)
        try:
            self._lora = peft.LoraConfig.from_pretrained(str(folder))
            with _unnoticed():
                self._peft = peft.PeftModel(denoiser.backbone, self._lora, adapter_name=POLICY)
            self.backbone = denoiser.backbone
            for key, parameter in self.parameters():
                parameter.data.copy_(weights[key])
        except Exception as error:  # whatever a foreign folder makes peft raise is a fault of the folder
            raise ModelError(f"the adapter in {folder} does not fit the model: {reason(error)}") from error
        return self

    def merge_in_place(self) -> None:
        """Add the adapter into the weights and take it away, so that the denoiser is a plain one; see `merged`."""
        merged = self.merged()
        with _unnoticed():
            self._peft.unload()
        self.backbone.load_state_dict(merged)
        self.backbone.requires_grad_(True)

    def parameters(self, name: str = POLICY) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights of an adapter, in an order that all adapters of the model share."""
        for key, parameter in self.backbone.named_parameters():
            if ".lora_" in key and f".{name}." in f"{key}.":
                yield key, parameter

    def add_reference(self) -> None:
        """Add a frozen second adapter, for now a copy of the policy's."""
        with _unnoticed():
            self._peft.add_adapter(REFERENCE, self._lora)
        self.move_reference(1.0)

    @torch.no_grad()
    def move_reference(self, alpha: float) -> None:
        """Each matrix of the reference ← α policy's + (1 - α) its own."""
        for (_, its), (_, policys) in zip(self.parameters(REFERENCE), self.parameters(), strict=True):
            its.lerp_(policys, alpha)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it, the model is the one without adapters."""
        with self._peft.disable_adapter():
            yield

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within it, the model is the one with the reference's adapter."""
        self._peft.base_model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self._peft.base_model.set_adapter(POLICY)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter as peft's `PeftModel.from_pretrained` reads it; `weights` is the denoiser's whole state dict, if
        that is kept in parts."""
        from safetensors.torch import save_file

        own = dict(self.parameters()) if weights is None else _without_prefix(weights)
        keys = [key for key, _ in self.parameters()]
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {_PREFIX + key.replace(f".{POLICY}.", "."): own[key].detach().cpu().contiguous() for key in keys}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        self.save_config(folder)

    def save_config(self, folder: Path) -> None:
        """Write peft's description of the adapter."""
        # In peft's own file format a saved adapter is one to be run, not trained on.
        self._lora.inference_mode = True
        try:
            self._lora.save_pretrained(str(folder))
        finally:
            self._lora.inference_mode = False

    @torch.no_grad()
    def merged(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The backbone's state dict with the adapter added in, W + (alpha / r) B A, under the plain model's names and on the CPU.

        The model itself is left as it is: adding and taking away again would round.

        Args:
            weights: the denoiser's whole state dict, if it is kept in parts; default the model's own.

        Raises:
            ConfigError: the weights are quantized; `merge_adapter` merges into the model that they were made from.
        """
        own = self.backbone.state_dict() if weights is None else _without_prefix(weights)
        plain = {key: value for key, value in own.items() if ".lora_" not in key}
        merged = {}
        for key, value in plain.items():
            value = value.detach().cpu()
            stem = key.removesuffix(".base_layer.weight")
            if stem != key:
                if not value.is_floating_point():
                    raise ConfigError("quantized weights cannot be merged into; merge the saved adapter instead.")
                a, b = (own[f"{stem}.lora_{x}.{POLICY}.weight"].detach().cpu().float() for x in "AB")
                layer: Any = self.backbone.get_submodule(stem)
                update = layer.scaling[POLICY] * (b @ a)
                value = (value.float() + (update.T if layer.fan_in_fan_out else update)).to(value.dtype)
            merged[key.replace(".base_layer.", ".")] = value
        return merged


def target_modules(denoiser: Denoiser, config: LoraConfig) -> list[str]:
    """Full names, within the backbone, of the linear modules that get an adapter.

    Raises:
        ConfigError: a target that no linear module has; the message lists those there are.
    """
    backbone = denoiser.backbone
    linear = [name for name, module in backbone.named_modules() if _is_linear(module)]
    if config.targets == "all-linear":
        trunk = f"{backbone.base_model_prefix}."
        return [name for name in linear if name.startswith(trunk)]
    found: list[str] = []
    for target in config.targets:
        matching = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not matching:
            available = {name.rpartition(".")[2] for name in linear}
            raise ConfigError(
                f"lora.targets: {unknown_name('linear module', target, available)} These are what a {type(backbone).__name__} "
                "has; all-linear takes all of the trunk."
            )
        found += [name for name in matching if name not in found]
    head = backbone.get_output_embeddings()
    tied = head is not None and head.weight is backbone.get_input_embeddings().weight
    if tied and any(backbone.get_submodule(name) is head for name in found):
        raise ConfigError("lora.targets names the head, whose weights are also the embeddings'. Leave it out.")
    return found


def save_adapted(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Adapters | None,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a denoiser as a plain transformers checkpoint, adapters merged in; the adapter alone is kept in `folder`/adapter.

    Args:
        denoiser: the policy.
        tokenizer: its tokenizer.
        adapters: of it, if it has any.
        folder: to be written.
        weights: the denoiser's whole state dict, if it is kept in parts.
    """
    if adapters is None:
        save_model(denoiser, tokenizer, folder, weights)
        return
    adapters.save(folder / "adapter", weights=weights)
    if getattr(denoiser.backbone, "is_quantized", False):
        merge_adapter(folder / "adapter", folder)
    else:
        save_model(denoiser, tokenizer, folder, adapters.merged(weights))


def merge_adapter(adapter: Path, target: Path, base: str | None = None) -> str:
    """Write the plain checkpoint that an adapter makes of its base model, and return the base's name.

    Args:
        adapter: folder that peft reads; see `find_adapter`.
        target: folder to write into.
        base: the model under it; default the one that the adapter names.

    Raises:
        ModelError: no adapter there, or no model, or the two do not fit.
    """
    under = base or read_json(adapter / CONFIG_FILE).get("base_model_name_or_path")
    if not under:
        raise ModelError(f"the adapter {adapter} does not say which model it was made for. Name it with --base.")
    try:
        denoiser, tokenizer = load_model(under)
    except ModelError as error:
        if not base:
            error.add_note(
                f"{under} is the model that the adapter names; if it is elsewhere by now, name it with --base."
            )
        raise
    save_model(denoiser, tokenizer, target, Adapters.load(denoiser, adapter).merged())
    return under


def merge(source: Path, target: Path, base: str | None = None) -> str:
    """Write the plain checkpoint of a LoRA adapter or of a checkpoint of a run, and return a sentence of what was done.

    Args:
        source: folder of an adapter, of a model that keeps one, of a run, or of a checkpoint of a run, with adapters or without.
        target: folder to write into.
        base: the model under the adapter; default the one that it names.

    Raises:
        ModelError: no adapter there, or no model, or the two do not fit.
    """
    place = Path(locate(source))
    if not is_checkpoint(place):
        adapter = find_adapter(place if source.is_dir() else source)
        return f"{adapter} merged into {merge_adapter(adapter, target, base)}"
    under = base_of(place)
    if base and under is None:
        raise ModelError(f"{place} holds all weights of its model, not an adapter. Leave --base out.")
    denoiser, tokenizer = load_checkpoint(place, load_folder, base=base)
    save_model(denoiser, tokenizer, target)
    return f"{place} merged into {base or under}" if under else f"{place} written as a model folder"


def find_adapter(source: Path) -> Path:
    """The folder of an adapter: `source` itself, or what a model folder keeps.

    Raises:
        ModelError: there is none; the message says what is there.
    """
    for place in (source, source / "adapter"):
        if (place / CONFIG_FILE).is_file():
            return place
    if not source.exists():
        raise ModelError(no_file(source, "folder"))
    if list(source.glob("model*.safetensors")):
        raise ModelError(f"{source} holds a plain checkpoint, without an adapter: there is nothing to merge.")
    raise ModelError(f"{source} holds no adapter: neither it nor adapter/ in it has an {CONFIG_FILE}.")


def fingerprint(denoiser: Denoiser) -> str:
    """Of the frozen weights: what adapters learnt on one model means nothing on another.

    A few numbers of each tensor are read, so it takes no time on a large model; training or converting again changes them all.
    """
    digest = hashlib.sha256()
    for name, parameter in denoiser.named_parameters():
        if not parameter.requires_grad and ".lora_" not in name:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // 64)][:64].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {sample.tolist()}".encode())
    return digest.hexdigest()[:16]


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a denoiser's state dict."""
    return {key.removeprefix("backbone."): value for key, value in weights.items()}


def _is_linear(module: nn.Module) -> bool:
    # Conv1D is GPT-2's transposed linear map; quantized linears are subclasses.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_matrix(key: str) -> bool:
    """Whether a tensor of an adapter is A or B; DoRA's magnitudes, biases and whole modules are not."""
    return key.endswith((f".lora_A.{POLICY}.weight", f".lora_B.{POLICY}.weight"))


@contextmanager
def _unnoticed() -> Iterator[None]:
    """peft draws from the global generator, and asks transformers for a property by the name that it had before."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError('lora needs peft, which is not installed: pip install "unmask[lora]"') from error
    return peft
