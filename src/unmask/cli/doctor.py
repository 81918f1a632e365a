"""Whether this machine and installation work: versions, devices, disk, sandboxes, and the properties that training rests on.

Made to be pasted into a bug report: it names no user and no file of theirs.
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
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from unmask.core.errors import UnmaskError
from unmask.runs.environment import environment

Status = Literal["ok", "note", "failed"]

EXTRAS = {
    "lora": "peft",
    "zero": "deepspeed",
    "data": "datasets",
    "math": "math_verify",
    "code": "pydantic_monty",
    "reasoning-gym": "reasoning_gym",
    "lm-eval": "lm_eval",
}
"""Optional extras and the module that each brings."""

MIN_FREE = 5e9
"""Bytes of disk below which a note is made."""


KNOWN_DRAW = 0.25829649042745984
"""counter_uniform(7, 0, 3), by hand from the hash's definition."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    """`note`: something optional that is not there; `failed`: something that must work and does not."""
    detail: str

    def summary(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def checks(*, hub: bool = False) -> Iterator[Check]:
    """All checks in order; none raises.

    Args:
        hub: also ask the model hub, which the others leave alone.
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
        ("bidirectional", _bidirectional),
        ("ratio", _ratio),
        ("gradient", _gradient),
        ("round trip", _round_trip),
    ):
        yield _run(name, check)
    if hub:
        yield _run("hub", _hub)


def _run(name: str, check: Callable[[], tuple[Status, str]]) -> Check:
    try:
        # Libraries that are imported on the way write warnings to standard output, where a reader of JSON wants nothing else.
        with redirect_stdout(sys.stderr):
            return Check(name, *check())
    except Exception as error:  # whatever is broken here is what the report is for
        return Check(name, "failed", f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}")


def _facts() -> Iterator[Check]:
    with redirect_stdout(sys.stderr):
        facts = environment(_tiny()[0])
    versions = facts["versions"]
    yield Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))
    yield Check(
        "system", "ok", f"{facts['system']}; {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"
    )
    if not torch.cuda.is_available():
        apple = ", Apple's GPU unused: it has no float64" if torch.backends.mps.is_available() else ""
        yield Check("devices", "ok", f"no CUDA GPU{apple}: float32 on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        room = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        detail = f"{torch.cuda.get_device_name(index)}, {room}, {bf16}, CUDA {torch.version.cuda}"
        yield Check(f"device {index}", "ok", detail)


@cache
def _tiny() -> tuple[Any, Any]:
    """A tiny denoiser with random weights and its tokenizer."""
    from unmask.models import TinyConfig, char_tokenizer, tiny_denoiser

    tokenizer = char_tokenizer("0123456789=+")
    shape = TinyConfig(num_layers=1, width=16, num_heads=2, max_length=32)
    return tiny_denoiser(shape, tokenizer, seed=0).eval(), tokenizer


def _disk() -> tuple[Status, str]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 1e9:.1f} GB free where runs/ would be"
    return ("note", f"{text}: an 8B checkpoint takes 16 GB") if free < MIN_FREE else ("ok", text)


def _extras() -> tuple[Status, str]:
    missing = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return "ok", f"{', '.join(EXTRAS)} are installed"
    return "note", f'not installed: {", ".join(missing)} (pip install "unmask[{missing[0]}]", if it is wanted)'


def _four_bits() -> tuple[Status, str]:
    has_gpu, has_package = torch.cuda.is_available(), importlib.util.find_spec("bitsandbytes") is not None
    if has_gpu and has_package:
        return "ok", "lora.quantize = 4bit can be used"
    lacks = " and ".join(["a CUDA GPU"] * (not has_gpu) + ["bitsandbytes"] * (not has_package))
    return "note", f"lora.quantize = 4bit wants {lacks}"


def _processes() -> tuple[Status, str]:
    # Its C++ classes have no types.
    dist: Any = importlib.import_module("torch.distributed")
    if not dist.is_available():
        return "note", "this torch has no torch.distributed: one process only"
    names = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    there = [name for name, is_there in names.items() if is_there]
    if torch.cuda.device_count() > 1 and not names["nccl"]:
        return "failed", f"several GPUs, and no nccl to connect them: only {', '.join(there)}"
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        group = dist.ProcessGroupGloo(store, 0, 1)
        value = torch.ones(2)
        group.allreduce([value]).wait()
    return "ok", f"backends {', '.join(there)}; gloo answers"


def _sandbox(backend: Literal["monty", "bubblewrap"]) -> tuple[Status, str]:
    from unmask.rewards.sandbox import SandboxConfig, SandboxJob, make_sandbox

    job = SandboxJob("def twice(x):\n    return 2 * x", ("assert twice(2) == 4", "assert twice(2) == 5"), ("twice",))
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [result] = make_sandbox(SandboxConfig(backend=backend, timeout=10, total_timeout=20)).run([job])
    except UnmaskError as error:
        return "note", f"not usable here: {error}"
    found = [verdict.status for verdict in result.verdicts]
    if found != ["passed", "failed"]:
        return "failed", f"a right and a wrong program were judged {', '.join(found)}"
    return "ok", f"tells a right program from a wrong one ({(time.perf_counter() - started) * 1e3:.0f} ms)"


def _generator() -> tuple[Status, str]:
    from unmask.functional.noise import counter_uniform, named_generator

    drawn = float(counter_uniform(7, 0, 3))
    stream = torch.rand(2, generator=named_generator(0, "doctor"), dtype=torch.float64).tolist()
    again = torch.rand(2, generator=named_generator(0, "doctor"), dtype=torch.float64).tolist()
    if drawn != KNOWN_DRAW or stream != again:
        return "failed", f"draws differ from those of other machines: {drawn!r} instead of {KNOWN_DRAW!r}"
    return "ok", "the same keys give the same draws as on other machines"


def _bidirectional() -> tuple[Status, str]:
    from unmask.models import check_bidirectional

    check_bidirectional(_tiny()[0])
    return "ok", "the last token reaches the first logits"


def _rollout() -> Any:
    from unmask.core.config import SamplerConfig
    from unmask.sampling import denoise

    prompt = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]).flip(1)
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, temperature=0.9)
    return denoise(_tiny()[0], prompt, prompt != 0, sampler, torch.arange(2))


def _scores(path: Any) -> tuple[Any, torch.Tensor]:
    from unmask.methods.views import step_views
    from unmask.sampling import LogprobSettings, view_logprobs

    steps = torch.arange(4).expand(2, -1)
    views = step_views(path, steps, torch.ones(2, 4))
    return views, view_logprobs(_tiny()[0], path, views, LogprobSettings.of(path, "sampling")).logprob


def _ratio() -> tuple[Status, str]:
    path = _rollout()
    with torch.no_grad():
        views, new = _scores(path)
    off = float((new - path.logprob[views.row])[views.target].abs().max())
    text = f"log-probabilities of a rollout and of its replay differ by {off:.1e} nats at most"
    return ("ok" if off < 1e-4 else "failed"), text


def _gradient() -> tuple[Status, str]:
    denoiser, _ = _tiny()
    denoiser.zero_grad()
    _scores(_rollout())[1].sum().backward()
    norms = [float(p.grad.norm()) for p in denoiser.parameters() if p.grad is not None]
    denoiser.zero_grad()
    total = sum(norm**2 for norm in norms) ** 0.5
    return ("ok" if 0 < total < float("inf") else "failed"), f"a backward pass gives a gradient of norm {total:.3g}"


def _round_trip() -> tuple[Status, str]:
    from unmask.models import load_model, save_model

    denoiser, tokenizer = _tiny()
    ids, positions = torch.full((1, 8), denoiser.mask_id), torch.arange(8).unsqueeze(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_model(denoiser, tokenizer, Path(folder))
        loaded, _ = load_model(folder)
        same = torch.equal(loaded(ids, None, positions), denoiser(ids, None, positions))
    return (
        ("ok", "a saved model loads with the same logits")
        if same
        else ("failed", "a saved model loads with other logits")
    )


def _hub() -> tuple[Status, str]:
    from huggingface_hub import HfApi

    if os.environ.get("HF_HUB_OFFLINE"):
        return "note", "HF_HUB_OFFLINE is set"
    started = time.perf_counter()
    try:
        HfApi().model_info("GSAI-ML/LLaDA-8B-Instruct", timeout=10)
    except Exception as error:
        return "note", f"not reachable ({type(error).__name__}); folders on disk work without it"
    return "ok", f"answers in {time.perf_counter() - started:.1f} s"
