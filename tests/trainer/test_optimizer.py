"""The optimizer of a run: which weights each optimizer takes, the size of its state, and its
learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unmask.core.config import OptimConfig
from unmask.models import Denoiser
from unmask.trainer import optimizer as module
from unmask.trainer.optimizer import make_optimizer, make_optimizers, set_learning_rate, state_bytes

OPTIM = OptimConfig(learning_rate=3e-3, warmup_steps=2, lr_schedule="linear", lr_floor=0.0)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(lively: Denoiser) -> None:
    names = {id(p): name for name, p in lively.named_parameters()}
    adamw, muon = make_optimizers(lively, OPTIM, muon_learning_rate=0.03)
    taken = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (adamw, muon)]
    assert taken[0] | taken[1] == set(names.values())
    assert not taken[0] & taken[1]
    assert taken[1] == {
        name for name in names.values() if ".h." in name and name.endswith("weight") and ".ln_" not in name
    }
    assert [o.param_groups[0]["lr"] for o in (adamw, muon)] == [3e-3, 0.03]


def test_without_muon_adamw_takes_all_weights(lively: Denoiser) -> None:
    (adamw,) = make_optimizers(lively, OPTIM)
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(lively.parameters()))


def test_one_schedule_sets_the_rates_of_all_optimizers_from_the_peak_of_each(lively: Denoiser) -> None:
    optimizers = make_optimizers(lively, OPTIM, muon_learning_rate=0.03)
    assert set_learning_rate(optimizers, OPTIM, 0, 4) == pytest.approx(1.5e-3)
    assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([1.5e-3, 0.015])
    assert set_learning_rate(optimizers, OPTIM, 3, 4) == 0.0
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.0, 0.0]


def test_the_size_of_the_state_is_that_after_a_step(lively: Denoiser) -> None:
    parameters = list(lively.parameters())
    optimizer = make_optimizer(parameters, OPTIM)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    made = sum(v.numel() * v.element_size() for state in optimizer.state.values() for v in state.values() if v.dim())
    assert state_bytes(sum(p.numel() * p.element_size() for p in parameters), OPTIM) == made


def test_another_optimizer_is_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make_optimizer", lambda parameters, optim: torch.optim.SGD(parameters, momentum=0.9))
    assert state_bytes(100.0, OPTIM) == 100.0


class OneByte(torch.optim.Optimizer):
    """An optimizer whose state is one byte for each weight, and which refuses weights on the CPU."""

    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            if parameter.device.type == "cpu":
                raise RuntimeError("this optimizer needs a GPU")
            self.state[parameter] = {"moment": torch.zeros_like(parameter, dtype=torch.int8), "step": torch.zeros(())}


def test_the_size_of_the_state_has_the_precision_and_the_device_of_the_optimizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "make_optimizer", lambda parameters, optim: OneByte(parameters, {}))
    assert state_bytes(400.0, OPTIM, "meta") == 100.0


def test_a_frozen_weight_is_not_optimized(lively: Denoiser) -> None:
    frozen = next(iter(lively.parameters())).requires_grad_(False)
    (optimizer,) = make_optimizers(lively, OPTIM)
    taken: list[Tensor | nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(parameter is not frozen for parameter in taken)
