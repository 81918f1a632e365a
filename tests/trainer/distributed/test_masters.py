"""Tests of the float32 master copies of bfloat16 weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unmask.trainer.distributed.masters import add_masters, master_of


def layer(dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    linear = nn.Linear(3, 1, bias=False, dtype=dtype)
    linear.weight.data.fill_(1.0)
    return linear


def step(linear: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    linear(torch.ones(1, 3, dtype=linear.weight.dtype)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_updates_below_the_spacing_of_bfloat16_add_up(kind: str) -> None:
    def optimizer_of(linear: nn.Linear) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(linear.parameters(), lr=1e-4)
        return torch.optim.AdamW(linear.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    linear, exact, plain = layer(), layer(torch.float32), layer()
    optimizers = {module: optimizer_of(module) for module in (linear, exact, plain)}
    add_masters(linear, [optimizers[linear]])
    for _ in range(100):
        for module, optimizer in optimizers.items():
            step(module, optimizer)
    torch.testing.assert_close(master_of(linear.weight), exact.weight, rtol=0, atol=1e-6)
    assert torch.equal(linear.weight, exact.weight.bfloat16())
    # Without master copies each update is rounded away.
    assert torch.equal(plain.weight, torch.ones_like(plain.weight))


def test_gradients_of_several_backward_passes_add_up_in_float32() -> None:
    linear = layer()
    optimizer = torch.optim.SGD(linear.parameters(), lr=1.0)
    add_masters(linear, [optimizer])
    parts = [torch.tensor([[1.0, 256.0, 3.0]]), torch.tensor([[1 / 256, 1.0, 5.0]])]
    for part in parts:
        linear(part.bfloat16()).sum().backward()
    assert linear.weight.grad is None
    assert torch.equal(master_of(linear.weight).grad, parts[0] + parts[1])
    assert not torch.equal(parts[0].bfloat16() + parts[1].bfloat16(), parts[0] + parts[1])
    optimizer.zero_grad()
    assert master_of(linear.weight).grad is None


def test_frozen_weights_and_float32_weights_have_no_copy() -> None:
    module = nn.ModuleList([layer(), layer(torch.float32)])
    module[0].requires_grad_(False)
    optimizer = torch.optim.SGD(module[1].parameters(), lr=0.1)
    add_masters(module, [optimizer])
    assert all(master_of(p) is p for p in module.parameters())
    assert optimizer.param_groups[0]["params"][0] is module[1].weight
