"""Checks of this machine and this installation: versions, devices, disk, sandboxes, and the
properties on which training depends.

The report is meant for bug reports, so it names no user and no file of the user.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.text import Text

from unmask.cli.tables import PIPE_WIDTH
from unmask.core.errors import UnmaskError
from unmask.core.text import visible
from unmask.runs.environment import environment

Status = Literal["ok", "note", "failed"]

COLOURS: dict[Status, str] = {"ok": "green", "note": "yellow", "failed": "bold red"}
"""Colour of each status on a terminal."""

EXTRAS = {
    "lora": "peft",
    "zero": "deepspeed",
    "data": "datasets",
    "math": "math_verify",
    "code": "pydantic_monty",
    "reasoning-gym": "reasoning_gym",
    "lm-eval": "lm_eval",
    "serve": "starlette",
}
"""Optional extras, each with a module that the extra installs."""

MIN_FREE = 5e9
"""Threshold of free disk space in bytes. If less is free, the report has a note."""

KNOWN_DRAW = 0.25829649042745984
"""Value of counter_uniform(7, 0, 3), computed by hand from the definition of the hash."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    """Name of the check."""
    status: Status
    """`ok`; `note` if something optional is missing; `failed` if something required does not
    work."""
    detail: str
    """Result in words."""

    def summary(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def checks(*, hub: bool = False) -> Iterator[Check]:
    """Run all checks in order. A check that raises has the status `failed`.

    Args:
        hub: also check whether the model hub can be reached; no other check uses the network.
    """
    yield from _facts()
    for name, check in (
        ("disk", _disk),
        ("extras", _extras),
        ("bitsandbytes", _four_bits),
        ("processes", _processes),
        ("sandbox monty", lambda: _sandbox("monty")),
        ("sandbox bubblewrap", lambda: _sandbox("bubblewrap")),
        ("generator", _generator),
        ("replay", _replay),
        ("round trip", _round_trip),
        ("server", _server),
    ):
        yield _run(name, check)
    if hub:
        yield _run("hub", _hub)


def print_checks(results: Iterable[Check]) -> bool:
    """Print each check when it is done.

    Returns:
        True if no check failed.
    """
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    failed = []
    for check in results:
        console.print(
            Text(f"{check.status:<7}", style=COLOURS[check.status]),
            Text(visible(f"{check.name:<19}{check.detail}")),
            soft_wrap=True,
        )
        failed += [check.name] * (check.status == "failed")
    verdict = (
        f"{', '.join(failed)} failed: paste all of this into a bug report." if failed else "Every required part works."
    )
    console.print(verdict, highlight=False, soft_wrap=True)
    return not failed


def _run(name: str, check: Callable[[], tuple[Status, str]]) -> Check:
    try:
        # Libraries write warnings to standard output when they are imported, and JSON goes there.
        with redirect_stdout(sys.stderr):
            return Check(name, *check())
    except Exception as error:  # reporting any fault is the purpose of this command
        return Check(name, "failed", f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}")


def _facts() -> Iterator[Check]:
    """Yield versions, system and devices."""
    with redirect_stdout(sys.stderr):
        facts = environment(_tiny()[0])
    versions = facts["versions"]
    yield Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))
    yield Check(
        "system", "ok", f"{facts['system']}; {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"
    )
    if not torch.cuda.is_available():
        apple = ", and Apple's GPU is unused because it lacks float64" if torch.backends.mps.is_available() else ""
        yield Check("devices", "ok", f"float32 on the CPU: no CUDA GPU{apple}")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        detail = f"{torch.cuda.get_device_name(index)}, {memory}, {bf16}, CUDA {torch.version.cuda}"
        yield Check(f"device {index}", "ok", detail)


def _tiny() -> tuple[Any, Any]:
    """Return a tiny denoiser with random weights, and its tokenizer."""
    from unmask.models import TinyConfig, char_tokenizer, tiny_denoiser

    tokenizer = char_tokenizer("0123456789=+")
    shape = TinyConfig(num_layers=1, width=16, num_heads=2, max_length=32)
    return tiny_denoiser(shape, tokenizer, seed=0).eval(), tokenizer


def _disk() -> tuple[Status, str]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1e9:.1f} GB free in the current folder"
    return ("note", f"{text}; a checkpoint of an 8B model takes 16 GB") if free < MIN_FREE else ("ok", text)


def _extras() -> tuple[Status, str]:
    missing = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return "ok", f"installed: {', '.join(EXTRAS)}"
    return "note", f'not installed: {", ".join(missing)} (install one by pip install "unmask[{missing[0]}]")'


def _four_bits() -> tuple[Status, str]:
    if importlib.util.find_spec("bitsandbytes") is None:
        return "note", "lora.quantize = 4bit needs bitsandbytes"
    return "ok", "lora.quantize = 4bit works"


def _processes() -> tuple[Status, str]:
    # Its C++ classes have no types.
    dist: Any = importlib.import_module("torch.distributed")
    if not dist.is_available():
        return "note", "this torch has no torch.distributed, so runs have a single rank"
    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    available = ", ".join(name for name, is_available in backends.items() if is_available)
    if torch.cuda.device_count() > 1 and not backends["nccl"]:
        return "failed", f"several GPUs need nccl, and this torch only has {available}"
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        group = dist.ProcessGroupGloo(store, 0, 1)
        group.allreduce([torch.ones(2)]).wait()
    return "ok", f"backends {available}; gloo works"


def _sandbox(backend: Literal["monty", "bubblewrap"]) -> tuple[Status, str]:
    from unmask.rewards.sandbox import SandboxConfig, SandboxJob, make_sandbox

    job = SandboxJob("def twice(x):\n    return 2 * x", ("assert twice(2) == 4", "assert twice(2) == 5"), ("twice",))
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [result] = make_sandbox(SandboxConfig(backend=backend, timeout=10, total_timeout=20)).run([job])
    except UnmaskError as error:
        return "note", f"not usable on this machine: {error}"
    statuses = [verdict.status for verdict in result.verdicts]
    if statuses != ["passed", "failed"]:
        return "failed", f"a correct and an incorrect test had the results {', '.join(statuses)}"
    return "ok", f"tells a correct program from an incorrect one in {(time.perf_counter() - started) * 1e3:.0f} ms"


def _generator() -> tuple[Status, str]:
    from unmask.functional.noise import counter_uniform

    draw = float(counter_uniform(7, 0, 3))
    if draw != KNOWN_DRAW:
        return "failed", f"draws differ from those of other machines: {draw!r} instead of {KNOWN_DRAW!r}"
    return "ok", "the same keys give the same draws as on other machines"


def _replay() -> tuple[Status, str]:
    """Sample two completions, and compute their log-probabilities again with a gradient."""
    from unmask.core.config import SamplerConfig
    from unmask.methods.views import step_views
    from unmask.sampling import LogprobSettings, denoise, view_logprobs

    denoiser, _ = _tiny()
    prompt = torch.tensor([[6, 5, 4, 3], [0, 0, 8, 7]])
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, temperature=0.9)
    path = denoise(denoiser, prompt, prompt != 0, sampler, torch.arange(2))
    views = step_views(path, torch.arange(4).expand(2, -1), torch.ones(2, 4))
    logprob = view_logprobs(denoiser, path, views, LogprobSettings.of(path, "sampling")).logprob
    logprob.sum().backward()
    difference = float((logprob.detach() - path.logprob[views.row])[views.target].abs().max())
    norm = sum(float(p.grad.square().sum()) for p in denoiser.parameters() if p.grad is not None) ** 0.5
    text = f"log-probabilities of a rollout and of its replay differ by {difference:.1e} nats; gradient norm {norm:.3g}"
    return ("ok" if difference < 1e-4 and 0 < norm < float("inf") else "failed"), text


def _round_trip() -> tuple[Status, str]:
    from unmask.models import load_model, save_model

    denoiser, tokenizer = _tiny()
    ids, positions = torch.full((1, 8), denoiser.mask_id), torch.arange(8).unsqueeze(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_model(denoiser, tokenizer, Path(folder))
        loaded, _ = load_model(folder)
        is_same = torch.equal(loaded(ids, None, positions), denoiser(ids, None, positions))
    if not is_same:
        return "failed", "a saved model loads with different logits"
    return "ok", "a saved model loads with the same logits"


def _server() -> tuple[Status, str]:
    """Sample two completions on a server of this process, and compare them with those of the
    sampler itself."""
    if not all(importlib.util.find_spec(module) for module in ("httpx2", "starlette", "uvicorn")):
        return "note", 'rollouts on servers need pip install "unmask[serve]"'
    import httpx2

    from unmask.core.config import SamplerConfig
    from unmask.models import Policy
    from unmask.sampling.engine import LocalEngine
    from unmask.sampling.remote.app import make_app, running
    from unmask.sampling.remote.served import ServedModel

    policy, prompts = Policy(*_tiny()), [[6, 5, 4, 3], [8, 7]]
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, temperature=0.9)
    own = LocalEngine(policy).rollout_of_tokens(prompts, sampler, torch.arange(2))
    fields = {"sampler": {"num_steps": 4}, "seeds": [0, 1], "return_record": True}
    request = {"input_ids": prompts, "sampling_params": {"temperature": 0.9, "max_new_tokens": 8}, "unmask": fields}
    with running(make_app(ServedModel(policy, "tiny"))) as url, httpx2.Client(trust_env=False, timeout=60) as client:
        rows = [answer["unmask"] for answer in client.post(f"{url}/generate", json=request).json()]
    if [row["tokens"] for row in rows] != own.tokens.tolist() or [
        row["logprob"] for row in rows
    ] != own.logprob.tolist():
        return "failed", "a rollout over HTTP differs from the same rollout in this process"
    return "ok", "a rollout over HTTP equals the same rollout in this process"


def _hub() -> tuple[Status, str]:
    from huggingface_hub import HfApi

    if os.environ.get("HF_HUB_OFFLINE"):
        return "note", "HF_HUB_OFFLINE is set"
    started = time.perf_counter()
    try:
        HfApi().model_info("GSAI-ML/LLaDA-8B-Instruct", timeout=10)
    except Exception as error:
        return "note", f"not reachable ({type(error).__name__}); local folders work without it"
    return "ok", f"answers in {time.perf_counter() - started:.1f} s"
