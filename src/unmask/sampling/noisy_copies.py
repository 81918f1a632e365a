"""Views (masked versions of completions) of a block-causal model as noisy copies of blocks behind a
clean completion.

A view needs the blocks that hold its targets, and the clean blocks before them. Views of one
completion can therefore share a row of a forward pass, as a pack: prompt, clean completion, and a
copy of the noisy blocks of each view. The doubled sequence on which block diffusion models are trained is the case of one
copy of every block (arXiv:2503.09573). The log-probabilities are those of one view at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.denoising import NoisyCopies
from unmask.core.records import Trajectory, Views
from unmask.functional.noisy_blocks import cheapest_noisy_columns, noisy_spans


@dataclass(frozen=True, slots=True)
class Packing:
    """Rule that decides which views of a block-causal model share a row of a forward pass."""

    block_length: int
    """Number of positions in a block of the model."""
    width: int
    """Size of the hidden states."""

    def packs(
        self, views: Views, path: Trajectory, max_views: int, max_columns: int | None = None
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Divide views into packs. Views of the same completion, with the same prompt, fill a pack
        until a further copy would make a noisy column dearer; see `cheapest_noisy_columns`.

        Args:
            views: N views.
            path: completions that the views show.
            max_views: maximum number of views in a pack.
            max_columns: maximum number of columns of a pack that holds more than one view.

        Returns:
            [N] int64 on the CPU: the pack of each view; and for each pack the number of its prompt
            tokens, and of its other columns.
        """
        noisy, clean = (values.tolist() for values in _columns_of(views, self.block_length))
        prompts = path.prompt_mask[views.row].sum(-1).tolist()
        pack, sizes = torch.zeros(len(views), dtype=torch.long), []
        for members in _same_context(views):
            count = total = 0
            for i in sorted(members, key=lambda i: clean[i]):
                longer = clean[i] + total + noisy[i]
                best = cheapest_noisy_columns(prompts[i] + clean[i], self.width)
                is_full = count == max_views or total + noisy[i] > best
                if not count or is_full or (max_columns is not None and prompts[i] + longer > max_columns):
                    sizes.append((0, 0))
                    count = total = 0
                count, total = count + 1, total + noisy[i]
                pack[i] = len(sizes) - 1
                sizes[-1] = (prompts[i], clean[i] + total)
        return pack, sizes

    def widest_completion(self, views: Views, path: Trajectory, max_columns: int) -> int:
        """Return the largest number of columns, after padding, that the views of one completion take
        in packs of at most `max_columns`."""
        pack, sizes = self.packs(views, path, len(views), max_columns)
        of_completion: dict[int, set[int]] = {}
        for row, number in zip(views.row.tolist(), pack.tolist(), strict=True):
            of_completion.setdefault(row, set()).add(number)
        return max(len(packs) * max(sum(sizes[p]) for p in packs) for packs in of_completion.values())


@dataclass(frozen=True, slots=True)
class PackedViews:
    """N views as the R rows of a forward pass, one for each pack."""

    first: Tensor
    """[R] int64: the first view of each pack; all of its views show the same completion and prompt."""
    tokens: Tensor
    """[R, W] int64: the columns after the prompt, MASK at masked positions and at padding."""
    copies: NoisyCopies
    """The columns after the prompt."""
    row: Tensor
    """[N] int64: row of each view."""
    column: Tensor
    """[N, L] int64: column, from 0 after the prompt, that holds a position of the view's copies; -1
    at positions that are not in its copies."""

    @classmethod
    def of(cls, views: Views, path: Trajectory, block_length: int) -> PackedViews:
        """Lay out views, in the packs that `views.pack` names."""
        device, num_views = views.row.device, len(views)
        pack = torch.arange(num_views, device=device) if views.pack is None else views.pack
        _, row = pack.unique(return_inverse=True)
        view, start, stop = noisy_spans(views.hidden, views.target, _sees_clean_past(views), block_length)
        first = torch.full((int(row.max()) + 1,), num_views, device=device)
        first = first.scatter_reduce(0, row, torch.arange(num_views, device=device), "amin")
        # The clean completion, as far as a copy of the pack needs it, comes before the copies.
        clean = torch.zeros_like(first).scatter_reduce(0, row[view], start, "amax")
        view, start = torch.cat([first, view]), torch.cat([torch.zeros_like(clean), start])
        stop, is_copy = torch.cat([clean, stop]), torch.arange(len(view), device=device) >= len(first)
        order = row[view].argsort(stable=True)
        spans = _Spans(view[order], start[order], stop[order], is_copy[order])
        return cls._laid_out(views, path, first, row, spans)

    @classmethod
    def _laid_out(cls, views: Views, path: Trajectory, first: Tensor, row: Tensor, spans: _Spans) -> PackedViews:
        """Lay out spans, which are in the order of their rows; the first of each row is clean."""
        device, size = row.device, spans.stop - spans.start
        of_span = row[spans.view]
        span = torch.arange(len(size), device=device).repeat_interleave(size)
        place = torch.arange(len(span), device=device)
        position = spans.start[span] + place - _before(size)[span]
        width = torch.zeros_like(first).scatter_add(0, of_span, size)
        column = place - _before(width)[of_span[span]]
        # The number of a span within its row: 0 is the clean one.
        copy = torch.arange(len(size), device=device)
        copy = copy - copy[~spans.is_copy][of_span]

        view, noisy, index = spans.view[span], spans.is_copy[span], (of_span[span], column)
        shown = path.tokens[views.row[view], position]
        shown = shown.masked_fill(views.hidden[view, position] & noisy, path.mask_id)
        empty = torch.zeros(len(first), int(width.max()), dtype=torch.long, device=device)
        copies = NoisyCopies(
            empty.index_put(index, position),
            (empty - 1).index_put(index, copy[span]),
            empty.index_put(index, torch.where(spans.is_copy, spans.start, 0)[span]),
        )
        nowhere = torch.full_like(views.hidden, -1, dtype=torch.long)
        return cls(
            first,
            (empty + path.mask_id).index_put(index, shown),
            copies,
            row,
            nowhere.index_put((view[noisy], position[noisy]), column[noisy]),
        )

    def behind(self, prompt_length: int) -> NoisyCopies:
        """Return the description of all columns, those of a prompt of P columns included."""
        of_prompt = torch.arange(-prompt_length, 0, device=self.first.device).expand(len(self.first), -1)
        none, copies = torch.zeros_like(of_prompt), self.copies
        pairs = ((of_prompt, copies.position), (none, copies.copy), (none, copies.start))
        return NoisyCopies(*(torch.cat(pair, dim=1) for pair in pairs))

    def reads(self, positions: Tensor, is_valid: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the columns that are read in each row, [R, m], and the row and the place among these
        m columns of each valid entry of [N, n] positions, in the order of the entries."""
        row = self.row.unsqueeze(-1).expand_as(positions)[is_valid]
        order, count = row.argsort(stable=True), row.bincount(minlength=len(self.first))
        place = torch.empty_like(row)
        place[order] = torch.arange(len(row), device=row.device) - _before(count)[row[order]]
        columns = torch.zeros(len(self.first), max(1, int(count.max())), dtype=torch.long, device=row.device)
        return columns.index_put((row, place), self.column.gather(1, positions)[is_valid]), (row, place)


@dataclass(frozen=True, slots=True)
class _Spans:
    """Spans of blocks that are laid out one after the other, [n] each."""

    view: Tensor
    """View that the span belongs to; for a clean span, the first view of the pack."""
    start: Tensor
    """First position."""
    stop: Tensor
    """Position after the last."""
    is_copy: Tensor
    """False for the clean span that begins each row, which may be empty."""


def _before(sizes: Tensor) -> Tensor:
    """Return the sum of the sizes before each."""
    return sizes.cumsum(0) - sizes


def _columns_of(views: Views, block_length: int) -> tuple[Tensor, Tensor]:
    """Return the number of noisy and of clean columns that each view needs behind the prompt, [N]
    each."""
    view, start, stop = noisy_spans(views.hidden, views.target, _sees_clean_past(views), block_length)
    none = torch.zeros_like(views.row)
    return none.scatter_add(0, view, stop - start), none.scatter_reduce(0, view, start, "amax")


def _sees_clean_past(views: Views) -> Tensor:
    none = torch.zeros(len(views), dtype=torch.bool, device=views.row.device)
    return none if views.sees_clean_past is None else views.sees_clean_past


def _same_context(views: Views) -> Sequence[list[int]]:
    """Return the views of each completion and prompt, in the order of the first of them."""
    keys = views.row.tolist()
    if views.prompt_hidden is not None:
        keys = list(zip(keys, (bytes(mask) for mask in views.prompt_hidden.tolist()), strict=True))
    groups: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values())
