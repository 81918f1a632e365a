"""Batches of views (masked versions of completions), each small enough for one forward pass. Every
rank has the same number of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.core.records import Trajectory, ViewLogprobs, Views
from unmask.sampling.encoding import batches_by_length
from unmask.sampling.noisy_copies import Packing


@dataclass(frozen=True, slots=True)
class ViewBatches:
    """Views of one rank, divided into batches. Iteration gives pairs of an index and the views of
    one batch.

    The index of a dummy batch is empty, and its views are one placeholder. A rank that has fewer
    batches than another rank runs dummy batches, because every forward pass may be a collective.
    """

    views: Views
    """The views that are divided."""
    path: Trajectory
    """Completions that the views show."""
    indices: list[Tensor]
    """[C] int64 each, on the CPU: the views of each batch."""

    @classmethod
    def of(
        cls,
        views: Views,
        path: Trajectory,
        size: int,
        max_tokens: int | None,
        *,
        by_completion: bool = False,
        packing: Packing | None = None,
    ) -> ViewBatches:
        """Divide views into batches.

        Args:
            views: the views of one rank.
            path: completions that the views show.
            size: number of views in a batch.
            max_tokens: maximum number of tokens in a batch, which replaces `size` if given.
            by_completion: True to keep the views of a completion together, even if they are more
                than `size`.
            packing: rule that decides which views share a row of a forward pass; None gives each view
                a row of its own.
        """
        if not len(views):
            return cls(views, path, [])
        if packing is not None:
            pack, sizes = packing.packs(views, path, size, max_tokens)
            indices = _whole_packs(pack, sizes, views.row.cpu() if by_completion else pack, size, max_tokens)
            return cls(replace(views, pack=pack.to(views.row.device)), path, indices)
        if by_completion:
            return cls(views, path, _whole_completions(views, path, size, max_tokens))
        if max_tokens is None:
            return cls(views, path, list(torch.arange(len(views)).split(size)))
        lengths = path.prompt_mask[views.row].sum(-1).tolist()
        batches = batches_by_length(lengths, path.tokens.shape[1], size, max_tokens)
        # Views keep their order within a batch: the loss of whole groups relies on it.
        return cls(views, path, [torch.tensor(sorted(batch)) for batch in batches])

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Views]]:
        for index in self.indices:
            yield index, self.views.take(index) if len(index) else _placeholder(self.path)

    def padded(self, count: int) -> ViewBatches:
        """Return the same batches, followed by dummy batches so that there are `count` of them."""
        dummy = torch.zeros(0, dtype=torch.long)
        return replace(self, indices=self.indices + [dummy] * (count - len(self)))

    def in_order(self, parts: list[ViewLogprobs]) -> ViewLogprobs:
        """Join the log-probabilities of all batches except the dummy batches, in the order of the
        views."""
        if not parts:
            return ViewLogprobs(self.path.logprob[:0])
        logprob = torch.cat([part.logprob for part in parts])
        choice, distribution = _joined([p.choice for p in parts]), _joined([p.distribution for p in parts])
        index = torch.cat(self.indices)
        back = index.argsort()
        if torch.equal(back, torch.arange(len(back))):
            return ViewLogprobs(logprob, choice, distribution)
        if distribution is not None:
            # One row for each target; the targets of a view are adjacent.
            by_view = distribution.split(self.views.target.sum(-1)[index].tolist())
            distribution = torch.cat([by_view[int(i)] for i in back])
        return ViewLogprobs(logprob[back], None if choice is None else choice[back], distribution)


def _whole_completions(views: Views, path: Trajectory, size: int, max_tokens: int | None) -> list[Tensor]:
    """Return the indices of batches of `size` views or `max_tokens` tokens, without dividing the
    views of a completion."""
    rows, place = views.row.cpu().unique(return_inverse=True)
    lengths = path.prompt_mask[rows.to(path.prompt_mask.device)].sum(-1).tolist()
    # With a limit on tokens the shortest prompts come first, so the added completion is the widest
    # of its batch.
    order = range(len(rows)) if max_tokens is None else sorted(range(len(rows)), key=lambda i: lengths[i])
    counts = place.bincount().tolist()
    batches: list[list[int]] = []
    num_views = 0
    for i in order:
        capacity = size if max_tokens is None else max_tokens // (lengths[i] + path.tokens.shape[1])
        if not batches or num_views + counts[i] > capacity:
            batches.append([])
            num_views = 0
        batches[-1].append(i)
        num_views += counts[i]
    return [torch.isin(place, torch.tensor(batch)).nonzero().squeeze(-1) for batch in batches]


def _whole_packs(
    pack: Tensor, sizes: list[tuple[int, int]], unit: Tensor, size: int, max_tokens: int | None
) -> list[Tensor]:
    """Return the indices of batches of `size` views or `max_tokens` tokens, without dividing a unit.

    Args:
        pack: [N] int64: pack of each view.
        sizes: number of prompt tokens and of other columns of each pack.
        unit: [N] int64: a completion or a pack of each view.
        size: number of views in a batch.
        max_tokens: maximum number of tokens in a batch after padding, which replaces `size` if given.
    """
    _, unit = unit.unique(return_inverse=True)
    packs: list[set[int]] = [set() for _ in range(int(unit.max()) + 1)]
    for of_view, i in zip(pack.tolist(), unit.tolist(), strict=True):
        packs[i].add(of_view)
    counts = unit.bincount().tolist()
    widest = [tuple(max(sizes[p][side] for p in members) for side in (0, 1)) for members in packs]
    batches: list[list[int]] = []
    num_views = rows = prompt = columns = 0
    # Rows of similar length share a batch.
    for i in sorted(range(len(packs)), key=lambda i: sum(widest[i])):
        num_views, rows = num_views + counts[i], rows + len(packs[i])
        prompt, columns = max(prompt, widest[i][0]), max(columns, widest[i][1])
        is_over = num_views > size if max_tokens is None else rows * (prompt + columns) > max_tokens
        if not batches or is_over:
            batches.append([])
            num_views, rows, (prompt, columns) = counts[i], len(packs[i]), widest[i]
        batches[-1].append(i)
    # Views keep their order within a batch: the loss of whole groups relies on it.
    return [torch.isin(unit, torch.tensor(batch)).nonzero().squeeze(-1) for batch in batches]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _placeholder(path: Trajectory) -> Views:
    """Return one view that masks the first position of the first completion and has it as its
    target."""
    tokens = path.tokens[:1]
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    zero = torch.zeros(1, dtype=torch.long, device=tokens.device)
    return Views(row=zero, hidden=first, target=first, weight=zero.float(), slot=zero)
