"""Everything that runs on a GPU also runs on a simulated one, which enforces the device rules of CUDA.

The results are those of the CPU. The negative controls show what the simulation finds: each rule that it
enforces, a fault planted in a method, and the fault that once stopped every block-causal rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.adapters import build
from tests.helpers.denoisers import add_lively_head
from tests.helpers.rollouts import collect
from tests.helpers.runs import SWITCHES, method_overrides, train_recipe
from tests.helpers.simulated_cuda import DEVICE, DeviceError, SimulatedGenerator, counted_waits
from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.records import Needs, Trajectory
from unmask.functional.noise import named_generator
from unmask.methods import METHODS
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.rewards import per_completion
from unmask.rewards.scorer import Scorer
from unmask.sampling import denoise
from unmask.sampling.forwards import Forwards
from unmask.sampling.orders import ORDERS
from unmask.tasks import Sudoku
from unmask.trainer.critic import blank_moments
from unmask.trainer.learn import Learner
from unmask.trainer.metrics import Tally
from unmask.trainer.reference import FrozenCopy

TOKENIZER = char_tokenizer(Sudoku().alphabet)


def lively_denoiser() -> Denoiser:
    """Return a tiny denoiser whose logits depend on every input, on the CPU."""
    denoiser = tiny_denoiser(TinyConfig(num_layers=1, width=16, num_heads=2), TOKENIZER, seed=0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    add_lively_head(denoiser)
    return denoiser.eval()


def block_causal_denoiser() -> Denoiser:
    """Return a small block-causal denoiser on the CPU."""
    denoiser = build("Qwen3ForCausalLM")
    denoiser.block_length = 4
    return denoiser


# The rules.


def numbers(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device=DEVICE)


REFUSED: dict[str, Callable[[], Any]] = {
    "a sum with a CPU tensor": lambda: numbers(3) + torch.ones(3),
    "a comparison with a CPU tensor": lambda: torch.equal(numbers(3), torch.ones(3)),
    "a comparison with an empty CPU tensor": lambda: torch.equal(numbers(3).long(), torch.arange(0)),
    "a product with a CPU matrix": lambda: numbers(2, 2) @ torch.ones(2, 2),
    "an index into a CPU tensor": lambda: torch.ones(3)[numbers(2).long()],
    "a mask into a CPU tensor": lambda: torch.ones(3)[numbers(3).bool()],
    "CPU values at an index": lambda: numbers(3).index_put_((torch.tensor([0, 1]),), torch.ones(2)),
    "a CPU index to gather": lambda: numbers(3).gather(0, torch.tensor([0])),
    "a number in a list of tensors": lambda: torch.stack([numbers(1)[0], torch.tensor(1.0)]),
    "a CPU generator": lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    "another CPU generator": lambda: numbers(3).random_(generator=SimulatedGenerator("cpu")),
    "numpy": lambda: numbers(3).numpy(),
}
ALLOWED: dict[str, Callable[[], Any]] = {
    "a sum with a number": lambda: numbers(3) + torch.tensor(1.0),
    "a choice of a number": lambda: torch.where(numbers(3) > 0, torch.tensor(2.0), numbers(3)),
    "a CPU index": lambda: 2 * numbers(3)[torch.tensor([0, 0, 1])],
    "a generator of the device": lambda: 2 + 0 * torch.rand(3, device=DEVICE, generator=SimulatedGenerator(DEVICE)),
    "a copy to the CPU": lambda: numbers(3).cpu() + torch.ones(3),
    "a copy from the CPU": lambda: numbers(3).copy_(2 * torch.ones(3)),
}
"""Operations, each of which makes three times the number 2."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name: str) -> None:
    with pytest.raises((DeviceError, TypeError)):
        REFUSED[name]()


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_is_allowed(name: str) -> None:
    assert ALLOWED[name]().cpu().tolist() == [2.0] * 3


def test_a_network_has_the_gradient_and_the_update_of_the_cpu() -> None:
    def update(device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).to(device)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=0.1)
        layers(torch.randn(5, 3).to(device)).log_softmax(-1).square().sum().backward()
        optimizer.step()
        assert layers[0].weight.grad is not None
        return layers[0].weight.grad.cpu(), layers[0].weight.detach().cpu()

    for simulated, real in zip(update(DEVICE), update("cpu"), strict=True):
        assert torch.equal(simulated, real)


def test_tensors_that_are_made_on_the_device_have_their_shape() -> None:
    made = [torch.arange(3, device=DEVICE), torch.arange(1, 4, device=DEVICE), torch.arange(0, 6, 2, device=DEVICE)]
    made += [torch.eye(3, device=DEVICE)[0], torch.randperm(3, device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)]
    assert [(tensor.device, tuple(tensor.shape)) for tensor in made] == [(DEVICE, (3,))] * 6


def test_the_waits_of_the_host_are_counted() -> None:
    values = torch.arange(6.0).to(DEVICE)
    with counted_waits() as waits:
        values[values > 2]
        bool((values > 2).any())
        values.sum().item()
        values[torch.tensor([0])]
        values.tolist()
        torch.where(values > 2, values, 0.0)  # none
    assert waits.reasons == {
        "the shape depends on values": 1,
        "a value is read": 2,
        "a copy between the devices": 2,
    }


# Rollouts.

BRANCHES = Branches(num=2, scope="step", finish="sampled", with_taken=True)
NEEDS = {
    "none": None,
    "one-step": Needs(greedy=True, selection=("entropy_topk", 2)),
    "all steps": Needs(greedy=True, selection=("all", 4)),
    "branches": Needs(branches=BRANCHES, selection=("entropy_topk", 2)),
}
ROLLOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{order: ("one-step", {"order": order}) for order in ORDERS},
    "blocks": ("none", {"block_length": 4}),
    "one-step completions over blocks": ("all steps", {"block_length": 4}),
    "branches": ("branches", {"block_length": 4, "top_k": 4, "top_p": 0.9}),
    "greedy": ("none", {"temperature": 0.0}),
    "guidance": ("one-step", {"guidance": 1.0}),
    "dual cache": ("one-step", {"block_length": 4, "cache": "dual", "guidance": 1.0}),
    "prefix cache": ("none", {"block_length": 4, "cache": "prefix", "cache_refresh_steps": 2}),
}


def rollout(
    denoiser: Denoiser, device: torch.device | str, needs: Needs | None = None, padded: bool = True, **settings: Any
) -> Trajectory:
    """Return three completions of 8 tokens in 4 steps, on the CPU."""
    ids = torch.randint(3, 8, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, :2] = not padded
    sampler = SamplerConfig(**{"max_completion_length": 8, "num_steps": 4, **settings})
    inputs = (denoiser.to(device), ids.to(device), mask.to(device), sampler, torch.arange(3, device=device))
    path = denoise(*inputs, needs=needs)
    assert path.tokens.device.type == torch.device(device).type
    return path.to("cpu")


def assert_close(one: Trajectory, other: Trajectory) -> None:
    """Assert that two trajectories are the same to rounding."""
    for name, value in one.tensors().items():
        torch.testing.assert_close(value, other.tensors()[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_a_rollout_is_that_of_the_cpu(name: str) -> None:
    needs, settings = ROLLOUTS[name]
    padded = len(name) % 2 == 0
    simulated, real = (
        rollout(lively_denoiser(), device, NEEDS[needs], padded, **settings) for device in (DEVICE, "cpu")
    )
    assert_close(simulated, real)
    assert (real.unmask_step.amax(-1) > 0).all(), "no row ends at the first step"


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_rollout_of_a_block_causal_model_is_that_of_the_cpu(guidance: float) -> None:
    settings = {"block_length": 4, "guidance": guidance}
    denoiser = block_causal_denoiser()
    assert_close(*(rollout(denoiser, device, NEEDS["one-step"], **settings) for device in (DEVICE, "cpu")))


def test_the_comparison_that_once_stopped_block_causal_rollouts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Forwards.__init__

    def with_rows_on_the_cpu(self: Forwards, *arguments: Any) -> None:
        begin(self, *arguments)
        self._rows = torch.arange(0)

    monkeypatch.setattr(Forwards, "__init__", with_rows_on_the_cpu)
    rollout(block_causal_denoiser(), "cpu", block_length=4)
    with pytest.raises(DeviceError, match="equal"):
        rollout(block_causal_denoiser(), DEVICE, block_length=4)


def waits_of_a_step(needs: Needs | None) -> float:
    """Return how often the host waits in a denoising step, without transformers' own checks."""
    denoiser = build("LlamaForCausalLM").to(DEVICE)
    ids, seed = torch.full((3, 6), 5).to(DEVICE), torch.arange(3).to(DEVICE)
    mask = torch.ones_like(ids, dtype=torch.bool)
    sampler = SamplerConfig(max_completion_length=8, num_steps=8, block_length=4)
    with counted_waits() as waits:
        path = denoise(denoiser, ids, mask, sampler, seed, needs=needs)
    assert (path.unmask_step == 7).any(), "no batch ends early"
    return waits.total() / 8


def test_the_host_waits_a_few_times_in_a_step() -> None:
    # Which rows run, how many positions they read, and which tokens are committed; and once whether a prompt is
    # padded, and which prompts are equal.
    assert waits_of_a_step(None) <= 3.3
    # How many positions of later blocks they read; and at the end which steps are stored.
    assert waits_of_a_step(NEEDS["one-step"]) <= 4


# Training.

SETTINGS = (
    "sampler.num_steps=4",
    "sampler.block_length=8",
    "num_prompts=1",
    "num_generations=3",
    "views_per_forward=8",
    "optim.learning_rate=1e-3",
    "max_steps=1",
)
CA = "method={type: egspo_ca, num_selected: 2, num_actions: 2"
SA = "method={type: egspo_sa, num_selected: 2, beta: 0.04"
RUNS: dict[str, tuple[str, ...]] = {
    **{method: method_overrides(method) for method in METHODS},
    "exact KL": (SA + ", kl: exact, step_choice: entropy_sampled}", "sampler.order=random", "num_minibatches=2"),
    "fitted gain": (SA + ", gain: fitted, step_choice: uniform}", "sampler.order=margin", "num_iterations=2"),
    "telescoped credit": (SA + ", credit: telescoped, step_choice: all}", "sampler.top_k=5", "sampler.top_p=0.9"),
    "low discrepancy": (SA + ", step_choice: low_discrepancy}", "sampler.order=entropy", "logprob_temperature=1.0"),
    "last steps": (SA + ", step_choice: last_k}", "sampler.guidance=1.0"),
    "lowest entropy": (SA + ", step_choice: lowest_entropy}", "max_tokens_per_forward=100"),
    "position choice": (SA + "}", "sampler.order=plackett_luce"),
    "a moving reference": (SA + "}", "sync_ref_model=true", "ref_model_sync_steps=1", "ref_model_mixup_alpha=0.5"),
    "weights of steps": (SA + "}", "behaviour={level: step, band: [0.5, 2], max_ratio: 100}", "sampler.cache=dual"),
    "weights of tokens": ("method={type: agrpo, mc_samples: 2}", "behaviour={level: token, normalise: true}"),
    "weights of completions": ("method.type=espo", "behaviour={level: sequence, normalise: true}"),
    "weights of the action taken": (CA + ", form: unbiased}", "behaviour.level=step", "logprob_temperature=1.0"),
    **SWITCHES,
    "a cache, by steps": (SA + "}", "sampler.block_length=4", "sampler.cache=dual", "behaviour={normalise: true}"),
    "a cache, by completions": (
        "method={type: espo, num_samples: 1}",
        "sampler.block_length=4",
        "sampler.cache=prefix",
        "behaviour={level: sequence, band: [0.2, 5]}",
    ),
    "actions, all positions": (CA + ", scope: all, step_choice: spread}",),
    "actions, sampled": (CA + ", finish: sampled, form: unbiased, step_choice: all}",),
    "actions, denoised": (CA + ", finish: rollout, form: combined, step_choice: lowest_entropy}",),
}


@per_completion
def ones(completions: list[str], **_: Any) -> list[float]:
    """Reward that differs between any two completions of an untrained model."""
    return [text.count("1") + 0.1 * len(text) for text in completions]


def trained(
    device: torch.device | str, folder: Path, *overrides: str, block_length: int | None = None
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Return the metrics of a training step, and the weights after it."""
    recipe = train_recipe(folder, folder, *SETTINGS, *overrides)
    denoiser, accelerator, tally = lively_denoiser().to(device), Accelerator(), Tally()
    denoiser.block_length = block_length
    limit = recipe.max_tokens_per_forward
    assert limit != "auto"
    rows = Sudoku().rows("train", 1)
    paths = collect(denoiser, TOKENIZER, Scorer({"ones": ones}), recipe, rows, tally=tally, max_tokens=limit)
    assert paths.trajectory.tokens.device.type == torch.device(device).type
    optimizer = accelerator.prepare(torch.optim.SGD(denoiser.parameters(), lr=1e-3))
    reference = FrozenCopy.of(denoiser, device)
    critic = blank_moments(denoiser, device) if recipe.method.needs().critic else None
    learner = Learner(accelerator, denoiser, optimizer, reference, recipe, limit, critic=critic)
    learner.update(paths, 0, named_generator(0, "update", 0), tally)
    return tally.reduce(accelerator), [weight.detach().cpu() for weight in denoiser.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_training_step_is_that_of_the_cpu(name: str, tmp_path: Path) -> None:
    (metrics, weights), (expected, expected_weights) = (
        trained(device, tmp_path, *RUNS[name]) for device in (DEVICE, "cpu")
    )
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for simulated, real in zip(weights, expected_weights, strict=True):
        torch.testing.assert_close(simulated, real, rtol=1e-4, atol=1e-5)
    moved = chain(*((a != b).flatten().tolist() for a, b in zip(weights, lively_denoiser().parameters(), strict=True)))
    assert any(moved), "it learnt something"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dispo", "espo", "exact KL", "position choice", "spg"])
def test_a_training_step_of_a_block_causal_model_is_that_of_the_cpu(name: str, tmp_path: Path) -> None:
    settings = (*RUNS[name], "sampler.block_length=8", "max_tokens_per_forward=200")
    (metrics, weights), (expected, expected_weights) = (
        trained(device, tmp_path, *settings, block_length=8) for device in (DEVICE, "cpu")
    )
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for simulated, real in zip(weights, expected_weights, strict=True):
        torch.testing.assert_close(simulated, real, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_method_that_draws_on_the_cpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = METHODS["egspo"].plan

    def with_weights_on_the_cpu(self: Any, rollout: Any, generator: torch.Generator) -> Any:
        views = plan(self, rollout, generator)
        return replace(views, weight=torch.ones(len(views)))

    monkeypatch.setattr(METHODS["egspo"], "plan", with_weights_on_the_cpu)
    trained("cpu", tmp_path, *RUNS["egspo"])
    with pytest.raises(DeviceError):
        trained(DEVICE, tmp_path, *RUNS["egspo"])
