"""Tests of the blocks that a masked completion needs, against loops over blocks and sizes."""

from __future__ import annotations

import pytest
import torch

from unmask.functional.noisy_blocks import cheapest_noisy_columns, noisy_spans


def spans_by_loop(hidden, target, sees_clean_past, block_length):
    """Return the spans of all views as triples, by the definition."""
    spans = []
    starts = range(0, hidden.shape[1], block_length)
    for view in range(len(hidden)):
        masked = [s for s in starts if hidden[view, s : s + block_length].any()]
        read = [s for s in starts if target[view, s : s + block_length].any()] or [0]
        if sees_clean_past[view]:
            spans += [(view, s, s + block_length) for s in read]
        else:
            spans.append((view, min([*masked, read[-1]]), read[-1] + block_length))
    return spans


@pytest.mark.parametrize(("length", "block_length"), [(12, 4), (6, 1), (5, 5), (8, 2)])
def test_spans_are_those_of_a_loop_over_the_blocks(length, block_length):
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(60, 1, generator=generator)
    hidden = torch.rand(60, length, generator=generator) < share
    target = hidden & (torch.rand(60, length, generator=generator) < share)
    clean = torch.rand(60, generator=generator) < 0.5
    assert (~target.any(-1)).any()
    spans = zip(*(values.tolist() for values in noisy_spans(hidden, target, clean, block_length)), strict=True)
    assert list(spans) == spans_by_loop(hidden, target, clean, block_length)


def test_blocks_that_do_not_divide_the_completion_are_refused():
    masks = torch.ones(1, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="blocks of 4 positions do not divide 6"):
        noisy_spans(masks, masks, torch.ones(1, dtype=torch.bool), 4)


@pytest.mark.parametrize(("num_clean", "width"), [(30, 8), (256, 64), (512, 4096), (2048, 1024)])
def test_no_other_number_of_noisy_columns_is_cheaper(num_clean, width):
    def cost(noisy: int) -> float:
        """Return the operations of a layer for each noisy column: 24 D² and 4 D S for each of S."""
        total = num_clean + noisy
        return total * (24 * width**2 + 4 * width * total) / noisy

    best = cheapest_noisy_columns(num_clean, width)
    assert cost(best) <= min(cost(n) for n in range(1, 8 * (num_clean + width))) * (1 + 1e-6)
    assert cost(best) < 0.99 * min(cost(2 * best), cost(best // 2))
