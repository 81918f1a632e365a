"""Tests of the reduction of view values to completions, against a loop."""

from __future__ import annotations

import torch

from unmask.functional.completions import one_by_completion, sum_by_completion


def test_views_are_summed_within_their_completion_in_any_order() -> None:
    row = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0))
    row[row == 2] = 7
    value = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    present = sorted(set(row.tolist()))
    expected = torch.stack([value[row == b].sum() for b in present])
    found = sum_by_completion(value, row)
    torch.testing.assert_close(found, expected)
    scale = torch.arange(1.0, len(present) + 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * scale).sum(), value)
    assert gradient.tolist() == [float(1 + present.index(b)) for b in row.tolist()]
    shared = torch.tensor([float(b * b) for b in row.tolist()])
    assert one_by_completion(shared, row).tolist() == [float(b * b) for b in present]


def test_no_views_give_no_completions() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    assert sum_by_completion(torch.zeros(0), empty).shape == one_by_completion(torch.zeros(0), empty).shape == (0,)
