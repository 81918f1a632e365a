"""The peak memory of a function call on the CPU, exact to the byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unmask.trainer.peak import free_bytes, peak_bytes

KIB = 1024


def block() -> torch.Tensor:
    return torch.zeros(256)  # 1 KiB


@pytest.mark.slow
def test_tensors_that_live_together_add_up_and_freed_ones_do_not() -> None:
    def together() -> None:
        held = [block(), block(), block()]
        del held

    def one_after_another() -> None:
        for _ in range(3):
            block()

    assert peak_bytes(together) == 3 * KIB
    assert peak_bytes(one_after_another) == KIB


def test_views_and_changes_in_place_need_no_memory() -> None:
    def work() -> None:
        x = block()
        x.view(16, 16).t().add_(1.0)

    assert peak_bytes(work) == KIB


def test_weights_and_earlier_tensors_do_not_count() -> None:
    layer, x = nn.Linear(256, 256, bias=False), torch.zeros(1, 256)
    with torch.no_grad():
        assert peak_bytes(lambda: layer(x), layer) == KIB
        assert peak_bytes(lambda: layer.weight.t().t(), layer) == 0


def test_tensors_that_autograd_keeps_for_the_backward_pass_count() -> None:
    x = torch.zeros(256, requires_grad=True)

    def forward(steps: int) -> torch.Tensor:
        y = x
        for _ in range(steps):
            y = y.exp()  # keeps its result
        return y.sum()

    with torch.no_grad():
        assert peak_bytes(lambda: forward(8)) == 2 * KIB
    assert peak_bytes(lambda: forward(8)) == 8 * KIB + 4
    # The backward pass holds the gradients of two neighbours at a time, and the rest of the forward
    # pass.
    assert 8 * KIB < peak_bytes(lambda: forward(8).backward()) <= 12 * KIB


def test_some_memory_is_free() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50
