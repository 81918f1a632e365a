"""The state of a run on disk, in one format for any number of ranks and any sharding of the
weights.

Each rank writes what it holds into files of its own, and the manifest, which makes the checkpoint
complete, comes last. A rank reads one tensor at a time: of a tensor that is stored in parts only
what it will hold, and a tensor that is stored whole as a whole. A run can therefore resume with
another number of ranks or another preset, and no rank needs memory for the whole state. All ranks
must see the run folder. Checkpoints are safetensors files of a bounded size, without pickles. Random numbers
need no state, because all draws are functions of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.config import OptimConfig
from unmask.core.errors import RunError
from unmask.models.state_files import BUFFER, EXTRA, STATE, WEIGHT, StateFiles, StateWriter, StoredTensor
from unmask.runs.checkpoints import check_disk_space, damage_explained, step_of
from unmask.runs.folder import RunFolder
from unmask.trainer.distributed.backend import is_sharded
from unmask.trainer.distributed.deepspeed_zero import whole_numel, whole_shape
from unmask.trainer.distributed.part import Part
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import Holder, holder_of
from unmask.trainer.optimizer import state_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARD_BYTES = 2 * 2**30
"""Size of a file in bytes, and so of the memory that a rank needs to write one."""


class RunState:
    """Writes and reads the weights and the optimizer's state of a run.

    A checkpoint of a run with adapters holds only what training changes: trained parameters, their
    optimizer state, buffers, and the extra tensors. Everything else comes from the model that the run
    began with. A checkpoint of a run without adapters holds all parameters, so that a model can be
    read from it.

    Args:
        accelerator: accelerator of the run.
        module: the policy without a wrapper.
        model: the policy, as accelerate prepared it.
        optimizers: the optimizers, as accelerate prepared them.
        optim: settings of the optimizers.
        extra: further tensors by name, which every rank holds whole; they are read back in place.
        describe: function that writes into a checkpoint the files that `load_model` needs to read a
            model from it; by default nothing is written.
        ranks: exchange between the ranks of the run; default a `Ranks` of the accelerator.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        model: nn.Module,
        optimizers: list[Any],
        optim: OptimConfig,
        extra: Mapping[str, Tensor] | None = None,
        describe: Callable[[Path], None] = lambda _: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.describe, self.optim = describe, optim
        self.accelerator, self.module, self.extra = accelerator, module, dict(extra or {})
        self.ranks = ranks or Ranks(accelerator)
        self.holder: Holder = holder_of(accelerator, model, optimizers)

    def save(self, folder: RunFolder, step: int, keep: int) -> None:
        """Add a checkpoint to a run folder, unless it already has one of this step.

        Args:
            folder: folder of the run.
            step: number of training steps done.
            keep: number of intact checkpoints to keep, the newest first.

        Raises:
            RunError: the disk is full or becomes full. All ranks raise the error.
        """
        if self.ranks.largest(int(folder.is_main and folder.last_step() == step)):
            return

        def write(target: Path) -> list[Path]:
            paths = self.write(target, folder.working)
            if folder.is_main:
                self.describe(target)
            return paths

        self._check_disk_space(folder)
        folder.save_checkpoint(step, write, keep, self.ranks)

    def resume(self, folder: RunFolder) -> int:
        """Load the newest checkpoint of a run folder.

        Returns:
            The step of the checkpoint; 0 if there is none.

        Raises:
            RunError: the checkpoint is damaged or belongs to another model, or the disk has no
                space for the next checkpoint. All ranks raise the error.
        """
        # A full disk is reported now, not after hours of work.
        self._check_disk_space(folder)
        newest = folder.newest_checkpoint(self.ranks)
        if newest is None:
            return 0
        with self.ranks.agreed(), damage_explained(newest):
            self.load(newest, folder.working)
        return step_of(newest)

    def _check_disk_space(self, folder: RunFolder) -> None:
        size = self.size()
        with self.ranks.agreed():
            if folder.is_main:
                check_disk_space(folder.path, size, folder.last_step())

    def size(self) -> int:
        """Return the approximate size of a checkpoint in bytes: float32 weights, optimizer state
        and buffers."""
        weights = 4 * sum(whole_numel(p) for _, p in self._parameters())
        plain = sum(value.numel() * value.element_size() for _, value in self._plain())
        return weights + int(state_bytes(weights, self.optim, self.accelerator.device)) + plain

    def write(self, folder: Path, working: Callable[[], None] = lambda: None) -> list[Path]:
        """Write this rank's files of the state, and return their paths. All ranks call this.

        Tensors that every rank holds whole are divided among the ranks.

        Args:
            folder: folder of the checkpoint.
            working: function that is called before each file is written.
        """
        files = StateWriter(folder, self.ranks.index, self.ranks.count, SHARD_BYTES, working)
        written = [0] * self.ranks.count
        for name, shape, part in self._own():
            if part.start is None:
                writer = written.index(min(written))
                written[writer] += part.values.numel() * part.values.element_size()
                if writer == self.ranks.index:
                    files.add(name, part.values)
            elif len(part.values):
                files.add(name, part.values, part.start, shape)
        return files.close()

    @torch.no_grad()
    def load(self, folder: Path, working: Callable[[], None] = lambda: None) -> None:
        """Read a state that any number of ranks wrote. All ranks read.

        Args:
            folder: folder of the checkpoint.
            working: function that is called before each parameter is read.

        Raises:
            RunError: the state belongs to another model.
        """
        with self.ranks.agreed():
            stored = StateFiles(folder).tensors
            mine, plain = dict(self._parameters()), dict(self._plain())
            expected = {WEIGHT + name for name in mine} | plain.keys()
            differing = sorted(expected ^ {name for name in stored if not name.startswith(STATE)})
            if differing:
                raise RunError(
                    f"it holds the weights of another model: only one of the two has {', '.join(differing[:3])}"
                    f"{', ...' if len(differing) > 3 else ''}."
                )
        states: dict[nn.Parameter, dict[str, StoredTensor]] = {}
        for name, parameter in mine.items():
            working()
            self.holder.set_weight(parameter, stored[WEIGHT + name])
            prefix = f"{STATE}{name}:"
            states[parameter] = {
                each.removeprefix(prefix): tensor for each, tensor in stored.items() if each.startswith(prefix)
            }
        self.holder.set_states(states)
        for name, tensor in plain.items():
            tensor.copy_(stored[name].whole())

    def whole_weights(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """Gather the weights of a policy that is sharded, or whose adapters have master copies.

        Args:
            dtype: dtype in which the policy computes. Trained weights are converted to it, except
                adapters, which stay float32.

        All ranks call this.

        Returns:
            The policy's state dict, with whole weights. If the policy is sharded, they are on the
            CPU of the main rank, and the state dict of other ranks is empty. None if the policy
            itself has these weights.
        """
        if not is_sharded(self.accelerator):
            masters = {name: self._gathered(p) for name, p in self._parameters() if ".lora_" in name}
            return self.module.state_dict() | masters if masters else None
        is_main, seen = self.ranks.index == 0, set()
        # A head that is tied to the embeddings is gathered once.
        whole: dict[int, Tensor] = {}
        weights = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            if isinstance(value, nn.Parameter) and id(value) not in seen:
                seen.add(id(value))
                gathered = self._gathered(value)
                if is_main and ".lora_" not in name:
                    gathered = gathered.to(dtype if value.requires_grad else value.dtype)
                if is_main:
                    whole[id(value)] = gathered.cpu()
            if is_main:
                weights[name] = whole.get(id(value), value)
        return weights

    def adapter_weights(self) -> dict[str, Tensor]:
        """Gather the trained adapters, in float32 on the CPU. All ranks call this."""
        return {name: self._gathered(parameter).cpu() for name, parameter in self._parameters()}

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        """Return the whole weight in the precision that the optimizer updates. All ranks call this,
        and it counts as a collective, so that the gathering of a large model counts as progress."""
        self.ranks.meeting()
        return self.holder.weight(parameter).detach()

    def _own(self) -> Iterator[tuple[str, Sequence[int], Part]]:
        """Yield the name and the shape of each tensor of the state, and what this rank holds of
        it."""
        for name, parameter in self._parameters():
            shape = whole_shape(parameter)
            yield WEIGHT + name, shape, self.holder.own_weight(parameter)
            for key, part in self.holder.own_state(parameter).items():
                yield f"{STATE}{name}:{key}", shape, part
        for name, tensor in self._plain():
            yield name, tensor.shape, Part(tensor)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapters, or all parameters if there are none. Some of these may be frozen, such
        as the routers of a mixture of experts."""
        parameters = dict(self.module.named_parameters())
        has_adapters = any(".lora_" in name for name in parameters)
        for name, parameter in parameters.items():
            if parameter.requires_grad or not has_adapters:
                yield name, parameter

    def _plain(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that every rank holds whole: persistent buffers and the extra
        tensors."""
        persistent = self.module.state_dict().keys()
        for name, buffer in self.module.named_buffers():
            if name in persistent:
                yield BUFFER + name, buffer
        for name, tensor in self.extra.items():
            yield EXTRA + name, tensor
