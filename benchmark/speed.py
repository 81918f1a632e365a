"""Time of the parts of an RL step, relative to the bare passes that they need (the baselines), and
the time of their floating-point operations alone (the FLOP floor).

    make bench                                   # a tiny model; or: python -m benchmark.speed [--width 256 --vocab 1024 ...]
    OMP_NUM_THREADS=1 python -m benchmark.speed --size 20m --clock cpu

Every ratio compares alternating runs in one process, so that a noisy machine slows both sides
equally, and is given as the median over the pairs, with the least and the largest. With `--clock
cpu` it compares CPU time, which on one thread excludes the time of other processes. A baseline is
what the bare forward and backward passes take, so it can be beaten. The FLOP floor divides the
operations of the matrix products of a baseline, as torch counts them, by the rate of a large matrix
product on the same machine. `benchmark.peers` compares with the releases of other groups.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unmask.core.config import SamplerConfig
from unmask.core.records import LossInputs, Rollout
from unmask.functional.noise import named_generator
from unmask.methods.egspo import EGSPOSA
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.sampling import LogprobSettings, denoise, view_logprobs

SIZES = {
    "tiny": {},
    "20m": {
        "layers": 8,
        "width": 384,
        "vocab": 8192,
        "prompt": 32,
        "length": 128,
        "steps": 64,
        "batch": 4,
        "repeats": 2,
    },
}
"""Settings by name: differences from the defaults."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of two functions that ran in turn."""

    first: list[float]
    second: list[float]

    @property
    def ratio(self) -> str:
        """First divided by second: median over the pairs, least and largest."""
        ratios = [one / other for one, other in zip(self.first, self.second, strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def alternate(first: Callable[[], Any], second: Callable[[], Any], repeats: int, clock: str = "wall") -> Pairs:
    """Run two functions in turn and return their seconds, without a first run of each that warms
    up."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    first(), second()
    times = Pairs([], [])
    for _ in range(repeats):
        for function, spent in ((first, times.first), (second, times.second)):
            started = now()
            function()
            spent.append(now() - started)
    return times


def rate(clock: str, size: int = 768, repeats: int = 20) -> float:
    """Return the floating-point operations a second of a product of two square matrices."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    matrix = torch.rand(size, size)
    seconds = []
    for _ in range(repeats):
        started = now()
        matrix @ matrix
        seconds.append(now() - started)
    return 2 * size**3 / min(seconds)


def operations(work: Callable[[], Any], denoiser: Denoiser) -> int:
    """Return the floating-point operations of the matrix products of `work`."""
    implementation = denoiser.backbone.config._attn_implementation
    # The counter knows the products of this implementation on every device.
    denoiser.backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        work()
    denoiser.backbone.set_attn_implementation(implementation)
    return int(counter.get_total_flops())


class Setting:
    """A model, a batch, and the phases of an EGSPO-SA step on it, each with its
    baseline."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        shape = TinyConfig(
            num_layers=options.layers,
            width=options.width,
            num_heads=4,
            max_length=options.prompt + options.length,
        )
        # A private plane of Unicode has enough characters for any vocabulary size.
        tokenizer = char_tokenizer("".join(chr(0xE000 + i) for i in range(options.vocab - 3)))
        self.denoiser: Denoiser = tiny_denoiser(shape, tokenizer, seed=0).eval()
        # No completion ends early: the baselines run every row at every step.
        self.denoiser.eos_id = -1
        self.method = EGSPOSA(num_selected=options.selected, beta=0.04)
        self.sampler = SamplerConfig(max_completion_length=options.length, num_steps=options.steps, temperature=0.9)
        generator = named_generator(0, "speed")
        self.prompts = torch.randint(3, options.vocab, (options.batch, options.prompt), generator=generator)
        self.mask = torch.ones_like(self.prompts, dtype=torch.bool)
        self.seed = torch.arange(options.batch)
        self.masked = torch.full((options.batch, options.length), self.denoiser.mask_id)
        self.ids = torch.cat([self.prompts, self.masked], dim=1)
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=1e-5, fused=True)
        path = self.rollout()
        reward = torch.rand(options.batch, generator=generator)
        values = torch.rand(options.batch, options.selected, generator=generator)
        self.scored = Rollout(path, options.group, reward, values)
        self.views = self.method.plan(self.scored, generator)
        self.scoring = LogprobSettings.of(path, "sampling")
        self.old = self.scores()

    def rollout(self) -> Any:
        """Run T steps of the sampler, with the one-step completions that EGSPO-SA needs."""
        return denoise(self.denoiser, self.prompts, self.mask, self.sampler, self.seed, needs=self.method.needs())

    @torch.no_grad()
    def rollout_baseline(self) -> None:
        """Run T bare forward passes, with the head at the positions that are still masked."""
        for step in range(self.sampler.steps):
            left = self.options.length - step * self.options.length // self.sampler.steps
            self.denoiser(self.ids, None, self.positions(self.options.batch, left))

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Run the old or reference pass over the selected steps."""
        return view_logprobs(self.denoiser, self.scored.trajectory, self.views, self.scoring).logprob

    def view_ids(self) -> Tensor:
        """Return as many rows as there are views."""
        return self.ids[self.views.row]

    def positions(self, rows: int, count: int) -> Tensor:
        """Return the first `count` completion positions of each row."""
        return (torch.arange(count) + self.options.prompt).expand(rows, -1)

    @torch.no_grad()
    def scores_baseline(self) -> None:
        """Run one bare forward pass of the same rows, with the head at as many positions."""
        self.denoiser(self.view_ids(), None, self.positions(len(self.views), self.per_step))

    @property
    def per_step(self) -> int:
        """Number of tokens that a step commits."""
        return int(self.options.length // self.sampler.steps)

    def update(self) -> None:
        """Make one optimizer update on the views."""
        advantage = self.method.advantage(self.scored)[self.views.row, self.views.slot]
        new = view_logprobs(self.denoiser, self.scored.trajectory, self.views, self.scoring).logprob
        inputs = LossInputs(
            new=new,
            old=self.old,
            reference=self.old,
            exact_kl=None,
            row=self.views.row,
            target=self.views.target,
            weight=self.views.weight,
            advantage=advantage,
        )
        loss = self.method.loss(inputs).loss.sum() / len(self.scored.reward)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()

    def update_baseline(self) -> None:
        """Run one bare forward and backward pass of the same rows, and an optimizer step."""
        self.optimizer.zero_grad()
        self.denoiser(self.view_ids(), None, self.positions(len(self.views), self.per_step)).mean().backward()
        self.optimizer.step()

    def step(self) -> None:
        """Run rollout, plan, old and reference pass, and update."""
        rollout = Rollout(self.rollout(), self.options.group, self.scored.reward, self.scored.one_step_reward)
        self.method.plan(rollout, named_generator(0, "plan"))
        self.scores(), self.scores()
        self.update()

    def step_baseline(self) -> None:
        """Run the baselines of all parts."""
        self.rollout_baseline()
        self.scores_baseline(), self.scores_baseline()
        self.update_baseline()


def record_bytes(setting: Setting) -> tuple[float, float]:
    """Return the bytes that a rollout keeps for a token, without and with one-step completions."""
    path, options = setting.scored.trajectory, setting.options
    sizes = {name: t.numel() * t.element_size() for name, t in path.tensors().items()}
    tokens = options.batch * options.length
    own = sum(sizes[name] for name in ("tokens", "unmask_step", "logprob", "entropy")) / tokens
    return own, sizes["one_step_tokens"] / tokens


def saved_bytes(work: Callable[[], Any]) -> float:
    """Return the bytes that autograd saves for the backward pass during `work`."""
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return float(saved)


def update_peak(setting: Setting, chunk: int, views: int) -> float:
    """Return the peak bytes that autograd saves for `views` views in chunks of `chunk`."""
    index = torch.arange(views) % len(setting.views)

    def one(start: int) -> None:
        part = setting.views.take(index[start : start + chunk])
        view_logprobs(setting.denoiser, setting.scored.trajectory, part, setting.scoring).logprob.sum().backward()

    return max(saved_bytes(lambda start=start: one(start)) for start in range(0, views, chunk))  # type: ignore[misc]


def baseline_table(setting: Setting) -> None:
    """Print the time of each phase relative to its baseline, and its FLOP floor."""
    options = setting.options
    flops = rate(options.clock)
    print(f"FLOP floors at {flops / 1e9:.0f} GFLOP/s\n")
    print(
        "| quantity | ratio to its baseline | target | ms | baseline, ms | FLOP floor, ms |\n|---|---|---|---|---|---|"
    )
    for name, ours, baseline, target in (
        ("rollout", setting.rollout, setting.rollout_baseline, 1.15),
        ("old or reference pass", setting.scores, setting.scores_baseline, 1.10),
        ("update", setting.update, setting.update_baseline, 1.15),
        ("whole RL step", setting.step, setting.step_baseline, 1.20),
    ):
        times = alternate(ours, baseline, options.repeats, options.clock)
        spent, least = (statistics.median(t) * 1e3 for t in (times.first, times.second))
        floor = operations(baseline, setting.denoiser) / flops * 1e3
        print(f"| {name} | {times.ratio} | {target:.2f} | {spent:.1f} | {least:.1f} | {floor:.1f} |", flush=True)
    own, greedy = record_bytes(setting)
    print(f"| record, bytes a completion token | {own / 16:.2f} | 2.00 | {own:.0f} | 16 | |")
    print(
        f"| greedy completions, bytes a token | {greedy / (4 * options.selected):.2f} | 1.00 | {greedy:.0f} | 4 K | |"
    )
    chunk = len(setting.views) // 2
    few, many = update_peak(setting, chunk, chunk), update_peak(setting, chunk, 8 * chunk)
    print(f"| peak memory of the update, 8 chunks against 1 | {many / few:.2f} | 1.00 | | | |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, text in (
        ("layers", 2, "transformer blocks"),
        ("width", 64, "hidden size"),
        ("vocab", 33, "tokens"),
        ("prompt", 18, "prompt positions"),
        ("length", 16, "completion positions"),
        ("steps", 8, "denoising steps"),
        ("batch", 64, "completions"),
        ("group", 4, "completions of a prompt"),
        ("selected", 4, "K, steps trained"),
        ("repeats", 15, "runs of each side"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="named setting; single options override it")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="wall time, or CPU time of this process"
    )
    parser.set_defaults(**SIZES[parser.parse_known_args(arguments)[0].size])
    options = parser.parse_args(arguments)
    setting = Setting(options)
    parameters = sum(p.numel() for p in setting.denoiser.parameters())
    print(
        f"{parameters / 1e6:.2f}M parameters, V = {options.vocab}, L = {options.length}, T = {options.steps}, "
        f"{options.batch} completions, K = {options.selected}; torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"Python {sys.version.split()[0]}, {options.clock} time\n"
    )
    baseline_table(setting)


if __name__ == "__main__":
    main()
