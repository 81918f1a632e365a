"""Weights of a served model, which are replaced as a whole: either all of them are new, or, if the
new ones cannot be used, all of them stay."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from unmask.core.errors import ModelError, no_file, reason
from unmask.core.files import read_json_object
from unmask.models import Denoiser, Policy
from unmask.models.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapters, fingerprint, remove_layers
from unmask.models.from_run import adapter_in
from unmask.models.loading import load_folder
from unmask.models.position_head import HEAD_FILE, is_of_position_head, set_position_head
from unmask.models.shell import filled, without_weights
from unmask.sampling.remote.format import quoted


class ServedWeights:
    """The weights that a server samples from.

    Args:
        policy: model and tokenizer that the server starts with. With adapters, its weights are those
            of their base model.
    """

    def __init__(self, policy: Policy) -> None:
        self._base, self._tokenizer = policy
        self._adapters: Adapters | None = None
        self._config: dict[str, object] = {}
        self._shell: Denoiser | None = None
        self._filled = ExitStack()

    @property
    def policy(self) -> Policy:
        """The model to sample from, with its tokenizer."""
        return Policy(self._shell or self._base, self._tokenizer)

    def replace(self, folder: Path) -> str:
        """Replace the weights by those of a folder: a model, or an adapter of the model that the
        server started with.

        The sums of weights and adapters are those of a run with `rollout_weights: merged`, bit for
        bit on devices of one kind.

        Returns:
            The fingerprint of the base model of an adapter; empty for a model.

        Raises:
            ModelError: the folder has no weights for this model. The weights stay as they were.
        """
        if not folder.is_dir():
            raise ModelError(no_file(folder, "folder"))
        if (adapter := adapter_in(folder)) is not None:
            return self._replace_adapter(adapter)
        self._replace_model(folder)
        return ""

    @torch.no_grad()
    def _replace_model(self, folder: Path) -> None:
        if self._adapters is not None:
            raise ModelError("the server has the weights of an adapter. Start it again to serve a whole model.")
        model = load_folder(folder, str(self._base.backbone.dtype).removeprefix("torch.")).denoiser
        state, new = (
            {name: tensor for name, tensor in one.state_dict().items() if not is_of_position_head(name)}
            for one in (self._base, model)
        )
        differing = sorted(new.keys() ^ state.keys()) or [
            name for name in state if new[name].shape != state[name].shape
        ]
        if differing:
            raise ModelError(
                f"{folder} holds another model than the one that is served: {differing[0]} is in only one of them, or has "
                "another shape. Start a server with that model."
            )
        for name, tensor in state.items():
            tensor.copy_(new[name])
        # The run may have added a position head to the model that the server started with.
        set_position_head(self._base.backbone, model.position_head)

    @torch.no_grad()
    def _replace_adapter(self, folder: Path) -> str:
        config = read_json_object(folder / CONFIG_FILE, ModelError)
        settings = {name: config.get(name) for name in ("r", "lora_alpha", "fan_in_fan_out")}
        for name in ("target_modules", "target_parameters"):
            if not isinstance(targets := config.get(name) or [], str | list):
                raise ModelError(
                    f"{folder / CONFIG_FILE} has {name} = {quoted(targets)}, which is not a list of names."
                )
            settings[name] = sorted(map(str, targets))
        settings[HEAD_FILE] = (folder / HEAD_FILE).is_file()
        _check_file(folder)
        if self._adapters is not None and self._shell is not None:
            if settings != self._config:
                raise ModelError(
                    f"the adapter {folder} has other settings than the one that is served. Start the server again."
                )
            self._fill(self._adapters, self._shell, folder)
            return fingerprint(self._base)
        before = self._base.position_head
        try:
            adapters, shell = Adapters.load(self._base, folder), without_weights(self._base)
            remove_layers(shell)
            self._fill(adapters, shell, folder)
        except BaseException:
            remove_layers(self._base)
            set_position_head(self._base.backbone, before)
            raise
        self._adapters, self._shell, self._config = adapters, shell, settings
        return fingerprint(self._base)

    def _fill(self, adapters: Adapters, shell: Denoiser, folder: Path) -> None:
        """Give a shell the sums of the base model and the adapter of a folder."""
        own = dict(self._base.state_dict(keep_vars=True))
        own |= self._read(adapters, folder)
        backbone = {name.removeprefix("backbone."): tensor.detach() for name, tensor in own.items()}
        merged = {f"backbone.{name}": tensor for name, tensor in adapters.merging(backbone, lambda tensor: tensor)}
        merged |= dict(self._base.named_buffers(remove_duplicate=False))
        self._filled.close()
        self._filled.enter_context(filled(shell, merged))

    def _read(self, adapters: Adapters, folder: Path) -> dict[str, Tensor]:
        """Return the matrices of an adapter by their names in the model."""
        try:
            new = adapters.read(folder)
        except KeyError as error:
            raise ModelError(
                f"the adapter {folder} lacks the tensor {error.args[0]}. Copy the adapter again."
            ) from error
        except Exception as error:  # a damaged file can make safetensors raise any error
            raise ModelError(f"the adapter {folder} cannot be read: {error}.") from error
        state = self._base.state_dict()
        for name, tensor in new.items():
            if tensor.shape != state[name].shape:
                raise ModelError(
                    f"the adapter {folder} has the shape {list(tensor.shape)} for {name}, not {list(state[name].shape)}."
                )
            new[name] = tensor.to(state[name].device)
        return new


def _check_file(folder: Path) -> None:
    """Check that the matrices of an adapter are in a whole file of safetensors. Without it, peft
    would read a pickled file.

    Raises:
        ModelError: there is no such file, or it is damaged.
    """
    from safetensors import safe_open

    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise ModelError(f"{no_file(file)} Pickled weights are not read.")
    try:
        with safe_open(file, framework="pt"):
            pass
    except Exception as error:  # a damaged file can make safetensors raise any error
        raise ModelError(f"the adapter {folder} cannot be read: {reason(error)}. Copy the adapter again.") from error
