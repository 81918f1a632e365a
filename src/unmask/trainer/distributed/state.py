"""A run's state on disk: one format, whatever the number of processes that wrote it and however its weights were shared out.

Parameters are gathered one at a time and written whole, so a run goes on with another number of processes or another preset. They
lie in safetensors files of a bounded size (no pickle), which bounds what the main process holds at a time, too. Random numbers
need no state: all draws are functions of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.core.config import OptimConfig
from unmask.core.errors import RunError
from unmask.models.state_files import BUFFER, EXTRA, STATE, WEIGHT, StateFiles
from unmask.runs.checkpoints import check_disk_space, damage_explained, step_of
from unmask.runs.folder import RunFolder
from unmask.trainer.distributed.backend import is_sharded
from unmask.trainer.distributed.ranks import Ranks
from unmask.trainer.distributed.shards import Holder, holder_of
from unmask.trainer.optimizer import state_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARD_BYTES = 2 * 2**30
"""Of a file, unless one tensor alone is larger."""


class RunState:
    """The weights and the optimizer's state of a run, to be written and read.

    Only what training changes is kept: parameters with a gradient, the optimizer's state of them, buffers, and what else is
    named. The rest comes from the model that the run began with.

    Args:
        accelerator: of the run.
        module: the policy itself.
        model: the policy as it was prepared.
        optimizers: as they were prepared.
        optim: the settings that they were made by.
        extra: tensors besides, by name, that every process holds whole; read back in place.
        describe: writes into a checkpoint what `load_model` needs to read a model from it; default nothing.
        ranks: of the run; default the accelerator's.
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

    def save(self, folder: RunFolder, step: int, keep: int, notes: Mapping[str, str] | None = None) -> None:
        """Add a checkpoint to a run folder, unless there is one of this step.

        Args:
            folder: where to.
            step: steps done.
            keep: good checkpoints that are kept, the newest.
            notes: texts that lie in it, by file name.

        Raises:
            RunError: the disk has no room for it, or fills up on the way; on all processes.
        """
        if self.ranks.largest(int(folder.is_main and folder.last_step() == step)):
            return

        def write(target: Path) -> None:
            self.write(target, folder.working)
            if folder.is_main:
                self.describe(target)
                for name, text in (notes or {}).items():
                    (target / name).write_text(text, encoding="utf-8")

        self._check_disk_space(folder)
        with self.ranks.agreed():
            if folder.is_main:
                folder.check_writable()
        # The gathering within is collective: what could keep the main process from coming to it was looked at just now.
        with self.ranks.agreed():
            folder.save_checkpoint(step, write, keep)

    def resume(self, folder: RunFolder) -> int:
        """Load the newest checkpoint of a run folder and return its step; 0 if there is none.

        Raises:
            RunError: it is damaged, or of another model, or the disk has no room for the next one; on all processes.
        """
        # Now, not after hours of work.
        self._check_disk_space(folder)
        with self.ranks.agreed():
            newest = folder.newest_checkpoint() if folder.is_main else None
        newest = self.ranks.from_main(newest)
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
        """Returns about how many bytes a checkpoint takes: float32 weights, the optimizer's state and everything else."""
        weights = 4 * sum(getattr(p, "ds_numel", p.numel()) for _, p in self._parameters())
        plain = sum(value.numel() * value.element_size() for _, value in self._plain())
        return weights + int(state_bytes(weights, self.optim)) + plain

    def write(self, folder: Path, working: Callable[[], None] = lambda: None) -> None:
        """Write the state's files; the main process writes, all gather. `working` is called before each file is written."""
        waiting: dict[str, Tensor] = {}
        num_files = size = 0
        fault: Exception | None = None
        for name, value in self._gathered():
            # Where the disk is full the others are still waiting for this process's part of what is left to gather.
            if self.ranks.index or fault is not None:
                continue
            # A copy: safetensors refuses tensors that share memory, and a parameter may be a view of a flat one.
            waiting[name] = value.detach().to("cpu", copy=True).contiguous()
            size += value.numel() * value.element_size()
            if size >= SHARD_BYTES:
                working()
                fault = _fault_of_writing(folder, num_files, waiting)
                num_files, size, waiting = num_files + 1, 0, {}
        if self.ranks.index == 0:
            fault = fault or _fault_of_writing(folder, num_files, waiting)
        if fault is not None:
            raise fault

    @torch.no_grad()
    def load(self, folder: Path, working: Callable[[], None] = lambda: None) -> None:
        """Read what `write` wrote, on however many processes; the main process reads, and sends it to the others.

        `working` is called before each parameter is read.

        Raises:
            RunError: it is of another model.
        """
        with self.ranks.agreed():
            files = StateFiles(folder) if self.ranks.index == 0 else None
        names = self.ranks.from_main(files.names() if files else {})
        mine, plain = dict(self._parameters()), dict(self._plain())
        wanted = {WEIGHT + name for name in mine} | plain.keys()
        found = {name for name in names if not name.startswith(STATE)}
        if wanted != found:
            odd = sorted(wanted ^ found)
            raise RunError(
                f"it holds the weights of another model: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''} "
                "are in only one of the two."
            )

        def read(name: str) -> Tensor:
            return self._sent(files.read(name) if files else None, *names[name])

        states: dict[nn.Parameter, dict[str, Tensor]] = {}
        for name, parameter in mine.items():
            working()
            self.holder.set_weight(parameter, read(WEIGHT + name))
            prefix = f"{STATE}{name}:"
            keys = [each.removeprefix(prefix) for each in names if each.startswith(prefix)]
            states[parameter] = {key: read(prefix + key) for key in keys}
        self.holder.set_states(states)
        for name, tensor in plain.items():
            tensor.copy_(read(name))

    def whole_weights(self) -> dict[str, Tensor] | None:
        """The policy's state dict with all weights whole, on the main process's CPU; empty on the others.

        None where the policy itself holds them whole.
        """
        if not is_sharded(self.accelerator):
            return None
        whole: dict[int, Tensor] = {}
        found = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            if isinstance(value, nn.Parameter) and id(value) not in whole:
                gathered = self.holder.weight(value).to(value.dtype)
                whole[id(value)] = gathered.cpu() if self.ranks.index == 0 else gathered[:0]
            if self.ranks.index == 0:
                found[name] = whole.get(id(value), value)
        return found

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters():
            yield WEIGHT + name, self.holder.weight(parameter)
            for key, value in self.holder.state(parameter).items():
                yield f"{STATE}{name}:{key}", value
        yield from self._plain()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def _plain(self) -> Iterator[tuple[str, Tensor]]:
        """What every process holds whole: buffers that belong to the state, and the extra tensors."""
        kept = self.module.state_dict().keys()
        for name, buffer in self.module.named_buffers():
            if name in kept:
                yield BUFFER + name, buffer
        for name, tensor in self.extra.items():
            yield EXTRA + name, tensor

    def _sent(self, value: Tensor | None, dtype: torch.dtype, shape: list[int]) -> Tensor:
        """The main process's tensor, on all."""
        device = self.accelerator.device
        if value is None:
            value = torch.empty(shape, dtype=dtype, device=device)
        value = value.to(device)
        if self.ranks.count > 1:
            torch.distributed.broadcast(value, 0)
        return value


def _fault_of_writing(folder: Path, number: int, tensors: dict[str, Tensor]) -> Exception | None:
    """Write one file; what went wrong, if anything did."""
    from safetensors.torch import save_file

    try:
        save_file(tensors, folder / f"state-{number:05d}.safetensors", {"format": "unmask-state-1"})
    except Exception as error:  # safetensors wraps the system's errors in one of its own
        return error
    return None
