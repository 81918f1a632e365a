"""Cooperation between the ranks of a run: which items each rank owns, how ranks exchange values and
errors, and how they run forward passes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """The ranks of a run, seen from one of them.

    Every method except `share` is collective: all ranks call it, in the same order.

    Args:
        accelerator: the accelerator of the run.
        meeting: function that is called whenever this rank enters a collective.
    """

    def __init__(self, accelerator: Accelerator, meeting: Callable[[], None] = lambda: None) -> None:
        self.accelerator, self.meeting = accelerator, meeting
        self.index: int = accelerator.process_index
        self.count: int = accelerator.num_processes

    def share(self, total: int) -> slice:
        """Return the slice of `total` items that this rank owns. The numbers of items of any two
        ranks differ by at most one."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def counts(self, value: int) -> list[int]:
        """Return the numbers that the ranks pass, one for each rank."""
        if self.count == 1:
            return [value]
        self.meeting()
        gathered: list[int] = self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).tolist()
        return gathered

    def largest(self, value: int) -> int:
        """Return the largest of the numbers that the ranks pass."""
        return max(self.counts(value))

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensors that the ranks pass, which have equal shapes."""
        if self.count == 1:
            return value
        self.meeting()
        total: torch.Tensor = self.accelerator.reduce(value, "sum")
        return total

    def objects(self, value: T) -> list[T]:
        """Return the values that the ranks pass, one for each rank. The values must be
        picklable."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        self.meeting()
        gathered: list[T] = gather_object([value])
        return gathered

    def gathered(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, in the order of the ranks."""
        return [item for part in self.objects(items) for item in part]

    def from_main(self, value: T) -> T:
        """Return the value that the main rank passes."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        self.meeting()
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]

    def rollout(self, own: Rollout | None) -> Rollout:
        """Return the rollout of all ranks, with the rows in the order of the ranks. A rank without
        rows passes None; at least one rank has some.

        If all ranks use equal generators, the plan that they make from it is the plan that a single
        rank would make, whatever random numbers the method draws. A rollout is small, about 20
        bytes for each token, so every rank can hold all of it.
        """
        if self.count == 1:
            assert own is not None
            return own
        parts = self.objects(None if own is None else own.to("cpu"))
        return Rollout.cat([part for part in parts if part is not None]).to(self.accelerator.device)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run a block in which an error for the user on any rank is raised on all ranks.

        The block must not enter a collective after a point where it may fail.

        Raises:
            UnmaskError: the error of the block, if the run has one rank or all ranks raise it.
            AgreedError: the error of the first rank that has an error, with the same message.
        """
        error: UnmaskError | None = None
        try:
            yield
        except UnmaskError as caught:
            error = caught
        if not self.largest(int(error is not None)):
            return
        if error is not None and (error.is_agreed or self.count == 1):
            raise error
        facts = self.objects(error and (error.kind, str(error), list(getattr(error, "__notes__", ()))))
        rank = next(rank for rank, each in enumerate(facts) if each)
        kind, message, notes = facts[rank] or ("", "", [])
        raise AgreedError(kind, message, [*notes, f"(rank {rank} of {self.count})"]) from error

    @contextmanager
    def lockstep(self, denoiser: nn.Module) -> Iterator[None]:
        """Run a block in which every rank runs as many forward passes of `denoiser` as the rank
        that runs most.

        With sharded weights a forward pass is a collective, so a rank that has finished its rows
        must take part in the forward passes of the others. Before each forward pass, the ranks
        check whether any rank has one to run. A rank that has finished the block's body runs blank
        forward passes until no rank has any left. Code inside the block therefore does not need to
        know how many forward passes other ranks run. Without sharded weights this does nothing.
        """
        if self.count == 1 or not is_sharded(self.accelerator):
            yield
            return

        def announce(*_: object) -> None:
            self._any_forward(True)

        # First among the hooks: those of FSDP2 and ZeRO-3 start to gather weights, and no rank may
        # do that before all ranks know of the forward pass.
        handle = denoiser.register_forward_pre_hook(announce, prepend=True)
        try:
            yield
        finally:
            # This holds after an error, too: the other ranks learn of the error only when they have
            # finished.
            handle.remove()
            while self._any_forward(False):
                _blank_forward(denoiser)

    def _any_forward(self, is_mine: bool) -> bool:
        """Return whether any rank is about to run a forward pass."""
        flag = torch.tensor([int(is_mine)], device=self.accelerator.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


class AgreedError(UnmaskError):
    """Error of one rank, which all ranks raise with the same message.

    Args:
        kind: class name of the original error.
        message: its message.
        notes: its notes.
    """

    def __init__(self, kind: str, message: str, notes: Sequence[str]) -> None:
        super().__init__(message, agreed=True)
        self._kind = kind
        for note in notes:
            self.add_note(note)

    @property
    def kind(self) -> str:
        """Class name of the original error."""
        return self._kind


@torch.no_grad()
def _blank_forward(denoiser: nn.Module) -> None:
    """Run the smallest possible forward pass, for its collectives."""
    mask_id: int = denoiser.mask_id  # type: ignore[assignment]
    ids = torch.full((1, 2), mask_id, device=next(denoiser.parameters()).device)
    denoiser(ids, None, torch.ones(1, 1, dtype=torch.long, device=ids.device))
