"""LoRA adapters, which are put into the backbone of a denoiser in place, so that the denoiser keeps
its class and interface.

An adapted layer computes W x + (alpha / r) B A x, where only A and B are trained
(arXiv:2106.09685). The backbone without adapters is the policy that the run began with, so a
reference policy costs no memory. A reference policy that moves during the run is a second pair of
matrices, which is frozen.
"""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.config import LoraConfig
from unmask.core.errors import ConfigError, ModelError, reason
from unmask.functional.merging import merged_weight
from unmask.models.adapter_targets import target_experts, target_modules
from unmask.models.denoiser import Denoiser
from unmask.models.from_run import ADAPTER_CONFIG
from unmask.models.position_head import (
    HEAD_FILE,
    POSITION_HEAD,
    head_tensors,
    is_of_position_head,
    read_position_head,
    restore_position_head,
    save_position_head,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, REFERENCE = "default", "reference"
"""Names of the trained adapter, and of the adapter of the moving reference policy."""

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_CONFIG, "adapter_model.safetensors"
"""Names of the files that peft reads and writes."""

_PREFIX, _BACKBONE = "base_model.model.", "backbone."
"""Prefixes of all names in peft's state dicts, and in a denoiser's."""


class Adapters:
    """Adapters of one denoiser, whose other weights are frozen.

    Args:
        denoiser: denoiser that gets the adapters in place.
        config: rank, scale, dropout and targets.
        seed: seed of the initial weights of A. B starts at 0, so the model does not change at
            first.
        base: name or folder of the model, which is recorded in saved adapters.

    Raises:
        ConfigError: peft is not installed, or no linear module of the model matches a target.
    """

    def __init__(self, denoiser: Denoiser, config: LoraConfig, seed: int = 0, base: str | None = None) -> None:
        peft = _peft()
        targets, experts = target_modules(denoiser, config), target_experts(denoiser, config)
        lora = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets,
            target_parameters=experts or None,
            # GPT-2 stores its matrices transposed.
            fan_in_fan_out=type(denoiser.backbone.get_submodule(targets[0])).__name__ == "Conv1D",
            base_model_name_or_path=base,
        )
        with _without_side_effects():
            torch.manual_seed(seed)
            self._peft: Any = peft.PeftModel(denoiser.backbone, lora, adapter_name=POLICY)
        self.backbone: PreTrainedModel = denoiser.backbone
        self._lora = lora
        self._convert(POLICY)

    @classmethod
    def load(cls, denoiser: Denoiser, folder: Path) -> Adapters:
        """Load a saved LoRA adapter, of this package or of peft, into a denoiser. If a position head
        was trained with it, the denoiser gets that head.

        Raises:
            ModelError: the folder holds no adapter, or the adapter of another model.
        """
        peft = _peft()
        if not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"{folder} holds no adapter: it has no {CONFIG_FILE}.")
        self = cls.__new__(cls)
        try:
            with _without_side_effects():
                self._peft = peft.PeftModel.from_pretrained(denoiser.backbone, str(folder), adapter_name=POLICY)
        except Exception as error:  # any error that peft raises is a fault of the folder
            raise ModelError(f"the adapter {folder} does not fit the model: {reason(error)}") from error
        more = [key for key in denoiser.backbone.state_dict() if f".{POLICY}" in key and not _is_matrix(key)]
        if more:
            raise ModelError(
                f"the adapter {folder} has tensors other than LoRA's two matrices, such as {more[0]}, and cannot be merged here. "
                "Make a plain checkpoint with peft's merge_and_unload where it was trained."
            )
        self.backbone = denoiser.backbone
        self._lora = self._peft.peft_config[POLICY]
        if (folder / HEAD_FILE).is_file():
            restore_position_head(self.backbone, read_position_head(folder), folder)
        return self

    @classmethod
    def restore(cls, denoiser: Denoiser, folder: Path, weights: Mapping[str, Tensor]) -> Adapters:
        """Put the adapter of a checkpoint into a denoiser.

        Args:
            denoiser: model that the adapter was trained on.
            folder: checkpoint with the config of the adapter.
            weights: matrices of the adapter, under the backbone's names.

        Raises:
            ModelError: the adapter does not fit the model.
        """
        peft = _peft()
        self = cls.__new__(cls)
        try:
            self._lora = peft.LoraConfig.from_pretrained(str(folder))
            with _without_side_effects():
                self._peft = peft.PeftModel(denoiser.backbone, self._lora, adapter_name=POLICY)
            self.backbone = denoiser.backbone
            for key, parameter in self.parameters():
                parameter.data.copy_(weights[key])
        except Exception as error:  # any error that peft raises is a fault of the folder
            raise ModelError(f"the adapter in {folder} does not fit the model: {reason(error)}") from error
        return self

    def merge_in_place(self) -> None:
        """Add the adapter to the weights and remove the adapter, which leaves a plain denoiser; see
        `merged`."""
        merged = self.merged()
        remove_layers(self.backbone)
        self.backbone.load_state_dict(merged)
        self.backbone.requires_grad_(True)

    def parameters(self, name: str = POLICY) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and weights of an adapter, in the same order for all adapters of a model."""
        for key, parameter in self.backbone.named_parameters():
            if ".lora_" in key and f".{name}." in f"{key}.":
                yield key, parameter

    def add_reference(self) -> None:
        """Add a frozen second adapter, which starts as a copy of the policy's."""
        with _without_side_effects():
            self._peft.add_adapter(REFERENCE, self._lora)
        self._convert(REFERENCE)
        for (_, its), (_, policys) in zip(self.parameters(REFERENCE), self.parameters(), strict=True):
            its.data.copy_(policys.detach())

    def _convert(self, name: str) -> None:
        """Convert an adapter to the precision of the model. peft makes adapters in float32, and
        would convert the input of every adapted layer to float32."""
        for _, parameter in self.parameters(name):
            parameter.data = parameter.data.to(self.backbone.dtype)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Open a block in which the model has no adapters."""
        with self._peft.disable_adapter():
            yield

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Open a block in which the model has the adapter of the reference."""
        self._peft.base_model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self._peft.base_model.set_adapter(POLICY)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter in the format of peft's `PeftModel.from_pretrained`, and the position head
        if it is trained.

        Args:
            folder: folder to write into.
            weights: whole state dict of the denoiser, if the model is sharded.
        """
        from safetensors.torch import save_file

        own = dict(self.parameters()) if weights is None else _without_prefix(weights)
        keys = [key for key, _ in self.parameters()]
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {_file_name(key): own[key].detach().cpu().contiguous() for key in keys}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        if self._trains_head:
            _, head = head_tensors(self.backbone.state_dict() if weights is None else own)
            save_position_head(folder, head)
        self.save_config(folder)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Return the tensors that `save` wrote, under the names of the denoiser's state dict."""
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS_FILE)
        found = {f"{_BACKBONE}{key}": tensors[_file_name(key)] for key, _ in self.parameters()}
        head = read_position_head(folder) if (folder / HEAD_FILE).is_file() else {}
        return found | {f"{_BACKBONE}{POSITION_HEAD}.{name}": tensor for name, tensor in head.items()}

    @property
    def _trains_head(self) -> bool:
        """True if the model has a position head that is trained beside the adapters."""
        return any(p.requires_grad for name, p in self.backbone.named_parameters() if name.startswith(POSITION_HEAD))

    def save_config(self, folder: Path) -> None:
        """Write peft's description of the adapter."""
        # In peft's file format, a saved adapter is marked for inference.
        self._lora.inference_mode = True
        try:
            self._lora.save_pretrained(str(folder))
        finally:
            self._lora.inference_mode = False

    @torch.no_grad()
    def merged(
        self, weights: Mapping[str, Tensor] | None = None, working: Callable[[], None] = lambda: None
    ) -> dict[str, Tensor]:
        """Return the backbone's state dict with the adapter added, W + (alpha / r) B A, under the
        plain model's names and on the CPU.

        The sums are made on the device of the model, where rollouts make them, so they are the same
        bits. The model itself does not change: adding the adapters and subtracting them again would
        leave rounding errors.

        Args:
            weights: whole state dict of the denoiser, if the model is sharded; default the model's
                own.
            working: function that is called before each tensor, to report progress.

        Raises:
            ConfigError: the weights are quantized; `merge_adapter` merges into the original model
                instead.
        """
        own = self.backbone.state_dict() if weights is None else _without_prefix(weights)
        device = self.backbone.device
        found = {}
        for name, tensor in self.merging(own, lambda tensor: tensor.detach().to(device)):
            working()
            found[name] = tensor.cpu()
        return found

    @torch.no_grad()
    def merging(
        self, tensors: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor], *, at_random: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the plain model's tensors one by one, with the adapter added.

        The sum is W + (alpha / r) B A with A and B in the precision of W, in which the adapter
        computes. A bfloat16 sum is rounded at random (see `merged_weight`), because rounding to
        nearest would drop most of a small update. The draws depend on the name of the layer, so
        equal weights give equal sums at every call, on devices of one kind.

        Args:
            tensors: tensors of the backbone with its adapters, by name.
            whole: function that returns the tensor to merge for one of these, such as a whole
                tensor for a shard.
            at_random: False to round bfloat16 sums to nearest, for comparisons.

        Raises:
            ConfigError: the weights are quantized.
        """
        adapted = self._adapted()
        for key, value in tensors.items():
            if ".lora_" in key:
                continue
            merged = whole(value)
            if (stem := adapted.get(key)) is not None:
                a, b = (whole(tensors[f"{stem}.lora_{x}.{POLICY}.weight"]) for x in "AB")
                merged = self._with_adapter(stem, merged, a, b, at_random=at_random)
            yield key.replace(".base_layer", ""), merged

    def _adapted(self) -> dict[str, str]:
        """Return the adapted weights by name, each with the name of the layer that adapts it.

        Two stacks of experts are weights of one module, so the layer of the one is wrapped in that of
        the other.
        """
        found = {}
        for stem, layer in self.backbone.named_modules():
            if hasattr(layer, "base_layer"):
                base, path = layer, stem
                while hasattr(base, "base_layer"):
                    base, path = base.base_layer, f"{path}.base_layer"
                found[f"{path}.{getattr(layer, 'parameter_name', 'weight')}"] = stem
        return found

    def _with_adapter(self, stem: str, weight: Tensor, a: Tensor, b: Tensor, *, at_random: bool) -> Tensor:
        """Return the weight of the layer `stem` with its adapter added."""
        if not weight.is_floating_point():
            raise ConfigError("an adapter cannot be merged into quantized weights. Merge the saved adapter instead.")
        layer: Any = self.backbone.get_submodule(stem)
        # A generator for each layer, so that the draws do not depend on the order of the layers.
        seed = zlib.crc32(stem.encode())
        generator = torch.Generator(weight.device).manual_seed(seed) if at_random else None
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        if weight.dim() == 3:
            # As peft stores them: the rows of A are those of one expert after another, and the columns
            # of B take turns among the experts.
            a = a.view(len(weight), -1, a.shape[-1])
            b = b.view(len(b), -1, len(weight)).permute(2, 0, 1)
        plain = weight.T if layer.fan_in_fan_out else weight
        merged = merged_weight(plain, a, b, layer.scaling[POLICY], generator)
        return merged.T.contiguous() if layer.fan_in_fan_out else merged


def remove_layers(module: nn.Module) -> None:
    """Replace each adapted layer below a module by the plain layer under it, and drop the
    adapters and peft's settings of them."""
    for name, layer in list(module.named_modules()):
        layer.__dict__.pop("peft_config", None)
        parent, _, leaf = name.rpartition(".")
        if leaf != "base_layer" and hasattr(layer, "base_layer"):
            base = layer
            while hasattr(base, "base_layer"):
                base = base.base_layer
            setattr(module.get_submodule(parent), leaf, base)


def fingerprint(denoiser: Denoiser) -> str:
    """Return a fingerprint of the frozen weights, by which an adapter of another model is detected.

    The fingerprint depends on a few numbers of each tensor, so it is fast for a large model.
    Training or converting the model changes these numbers.
    """
    digest = hashlib.sha256()
    for name, parameter in denoiser.named_parameters():
        # A position head is trained or replaced without any change to the model that an adapter needs.
        if not parameter.requires_grad and ".lora_" not in name and not is_of_position_head(name):
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // 64)][:64].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {sample.tolist()}".encode())
    return digest.hexdigest()[:16]


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's part of a denoiser's state dict."""
    return {key.removeprefix(_BACKBONE): value for key, value in weights.items()}


def _file_name(key: str) -> str:
    """Return the name that peft's files give to a matrix of the policy's adapter."""
    return _PREFIX + key.replace(f".{POLICY}.", ".")


def _is_matrix(key: str) -> bool:
    """Return True if a tensor of an adapter is A or B, and not a DoRA magnitude, a bias or a whole
    module."""
    return key.endswith((f".lora_A.{POLICY}.weight", f".lora_B.{POLICY}.weight"))


@contextmanager
def _without_side_effects() -> Iterator[None]:
    """Protect the global generator from peft, and hide a warning of transformers about a renamed
    property."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError('lora needs peft, which is not installed: pip install "unmask[lora]"') from error
    return peft
