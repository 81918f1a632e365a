"""The most memory that a piece of work holds at once, counted on the CPU to the byte."""

from __future__ import annotations

import torch
from torch import nn

from unmask.trainer.peak import free_bytes, peak_bytes

KIB = 1024


def block() -> torch.Tensor:
    return torch.zeros(256)  # 1 KiB


def test_what_lives_together_is_added_up_and_what_has_died_is_not() -> None:
    def together() -> None:
        held = [block(), block(), block()]
        del held

    def one_after_another() -> None:
        for _ in range(3):
            block()

    assert peak_bytes(together) == 3 * KIB
    assert peak_bytes(one_after_another) == KIB


def test_views_and_changes_in_place_cost_nothing() -> None:
    def work() -> None:
        x = block()
        x.view(16, 16).t().add_(1.0)

    assert peak_bytes(work) == KIB


def test_weights_and_what_was_there_before_do_not_count() -> None:
    layer, x = nn.Linear(256, 256, bias=False), torch.zeros(1, 256)
    with torch.no_grad():
        assert peak_bytes(lambda: layer(x), layer) == KIB
        assert peak_bytes(lambda: layer.weight.t().t(), layer) == 0


def test_what_autograd_keeps_for_the_backward_pass_counts() -> None:
    x = torch.zeros(256, requires_grad=True)

    def forward(steps: int) -> torch.Tensor:
        y = x
        for _ in range(steps):
            y = y.exp()  # keeps its result
        return y.sum()

    with torch.no_grad():
        assert peak_bytes(lambda: forward(8)) == 2 * KIB
    assert peak_bytes(lambda: forward(8)) == 8 * KIB + 4
    # Backwards, the gradients of two neighbours are there at a time, beside what is left of the forward.
    assert 8 * KIB < peak_bytes(lambda: forward(8).backward()) <= 12 * KIB


def test_there_is_memory_to_be_had() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50
