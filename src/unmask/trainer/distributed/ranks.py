"""What the processes of a run agree on: shares, numbers, whole rollouts, mistakes, and how many forwards each runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from unmask.core.errors import UnmaskError
from unmask.core.records import Rollout
from unmask.trainer.distributed.backend import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Ranks:
    """The processes of a run, seen from one of them.

    All methods but `share` are collective: every process calls them, in the same order.

    Args:
        accelerator: of the run.
        meeting: called whenever this rank enters a collective.
    """

    def __init__(self, accelerator: Accelerator, meeting: Callable[[], None] = lambda: None) -> None:
        self.accelerator, self.meeting = accelerator, meeting
        self.index: int = accelerator.process_index
        self.count: int = accelerator.num_processes

    def share(self, total: int) -> slice:
        """Which of `total` things are this process's: consecutive ones, as even as can be."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def counts(self, value: int) -> list[int]:
        """A number of every process."""
        if self.count == 1:
            return [value]
        self.meeting()
        gathered: list[int] = self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).tolist()
        return gathered

    def largest(self, value: int) -> int:
        """The largest value over the processes."""
        return max(self.counts(value))

    def objects(self, value: T) -> list[T]:
        """A picklable value of every process."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        self.meeting()
        gathered: list[T] = gather_object([value])
        return gathered

    def gathered(self, items: list[T]) -> list[T]:
        """The items of all processes, in their order."""
        return [item for part in self.objects(items) for item in part]

    def from_main(self, value: T) -> T:
        """The main process's value."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        self.meeting()
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]

    def rollout(self, own: Rollout) -> Rollout:
        """The rollout of all processes, rows in their order.

        A plan made from it with one generator is the plan that one process alone would make, whatever it draws and however it
        spreads its draws over the completions. The record is small (some 20 bytes a token), so every process can hold it all.
        """
        if self.count == 1:
            return own
        return Rollout.cat(self.objects(own.to("cpu"))).to(self.accelerator.device)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block in which a user's mistake on any process is raised on all of them, as one.

        What the block does must not be collective where it can fail. An error so raised has `is_agreed` set: the main process
        speaks for all.
        """
        mistake: UnmaskError | None = None
        try:
            yield
        except UnmaskError as error:
            mistake = error
        if not self.largest(int(mistake is not None)):
            return
        if mistake is not None and mistake.is_agreed:
            raise mistake
        told = [(place, each) for place, each in enumerate(self.objects(_told(mistake))) if each]
        place, (kind, message, notes) = told[0]
        if mistake is None or place != self.index:
            # Another process's error as its own type would want that type's arguments; its name and its words are what counts.
            mistake = AgreedError(kind, message)
            for note in notes:
                mistake.add_note(note)
        if self.count > 1:
            mistake.add_note(f"(process {place} of {self.count})")
            mistake.is_agreed = True
        raise mistake

    @contextmanager
    def lockstep(self, denoiser: nn.Module) -> Iterator[None]:
        """A block in which every process runs as many forwards of `denoiser` as the one that runs most.

        Where the weights lie in shards, each forward is a collective: a process whose rows have ended, or that owns fewer
        batches, has to take part in the forwards of the others. Before a forward the processes agree that there is one; those
        that have left the block's body run a blank one, until nobody has any left. So samplers, branches and evaluations need
        know nothing of each other. Without shards this does nothing.
        """
        if self.count == 1 or not is_sharded(self.accelerator):
            yield
            return

        def announce(*_: object) -> None:
            self._some_forward(True)

        handle = denoiser.register_forward_pre_hook(announce)
        try:
            yield
        finally:
            # Also after an error here: the others are still on their way, and are told of it when they are through.
            handle.remove()
            while self._some_forward(False):
                _blank_forward(denoiser)

    def _some_forward(self, is_mine: bool) -> bool:
        """Whether any process is about to run a forward."""
        flag = torch.tensor([int(is_mine)], device=self.accelerator.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


class AgreedError(UnmaskError):
    """A mistake that another process met, in its words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self._kind = kind

    @property
    def kind(self) -> str:
        """Name of the error's class there."""
        return self._kind


def _told(mistake: UnmaskError | None) -> tuple[str, str, list[str]] | None:
    if mistake is None:
        return None
    return mistake.kind, str(mistake), list(getattr(mistake, "__notes__", ()))


@torch.no_grad()
def _blank_forward(denoiser: nn.Module) -> None:
    """The smallest forward there is, for its collectives."""
    mask_id: int = denoiser.mask_id  # type: ignore[assignment]
    ids = torch.full((1, 2), mask_id, device=next(denoiser.parameters()).device)
    denoiser(ids, None, torch.ones(1, 1, dtype=torch.long, device=ids.device))
