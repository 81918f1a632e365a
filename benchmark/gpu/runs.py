"""Checks of whole runs with a small model: every method and order, precision, QLoRA, the presets on
one process, a run that is killed and resumed, and runs with deterministic kernels."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.distributed.elastic.utils.distributed import get_free_port

from benchmark.cpu_ranks import PRELOADED, preset_environment
from benchmark.gpu.bench import Bench
from benchmark.gpu.harness import CheckSkippedError, Outcome, check
from unmask.methods import METHODS
from unmask.models import Denoiser, TinyConfig, char_tokenizer, save_model, tiny_denoiser
from unmask.recipes.load import load_recipe
from unmask.recipes.schema import TrainRecipe
from unmask.sampling.orders import ORDERS
from unmask.tasks.sudoku import Sudoku
from unmask.trainer import Trainer

SETTINGS = (
    "max_steps=2",
    "save_steps=1",
    "num_prompts=2",
    "num_generations=4",
    "num_rows=20",
    "views_per_forward=6",
    "sampler.num_steps=8",
    "evaluation={num_rows: 4, eval_steps: 0, split: test}",
    "reward_workers=0",
    "precision=bf16",
)
"""Overrides of the recipe sudoku-tiny for two short steps."""
OWN = {
    "just_grpo": ("sampler.order=left_to_right", "sampler.num_steps=16"),
    "mask_aware": ("sampler.order=plackett_luce", "method.num_segments=4", "method.num_sampled=2"),
    "step_merge": ("method.num_segments=4",),
    "trace_rl": ("method.num_segments=4",),
}
"""Settings without which a method refuses the recipe."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "top_k and top_p": ("sampler.top_k=5", "sampler.top_p=0.9"),
    "guidance": ("sampler.guidance=1.0",),
    "exact KL": ("method.type=egspo_sa", "method.kl=exact", "method.beta=0.04"),
    "adapters": ("lora={r: 4, alpha: 4}", "sync_ref_model=true", "ref_model_sync_steps=1", "method.beta=0.04"),
    "checkpointing": ("gradient_checkpointing=true",),
    "float32": ("precision=float32",),
    "tokens by memory": ("max_tokens_per_forward=auto",),
    "dual cache": ("sampler.block_length=4", "sampler.cache=dual"),
    "guesses": ("log_rollouts_steps=1",),
    "reference in CPU memory": ("reference_offload=true", "method.beta=0.04"),
    "threshold": ("sampler.order=max_probability", "sampler.schedule=threshold=0.9"),
    "critic": ("method.type=egspo", "method.baseline=critic"),
    "value after two steps": ("method.value_steps=2",),
}
"""Overrides of further runs by name."""
WIDE = (
    "method.num_selected=4",
    "method.beta=0.04",
    "sampler.order=left_to_right",
    "log_rollouts_steps=0",
    "optim.learning_rate=1e-3",
)
"""Overrides of the runs of a wide model."""


def tiny_folder(bench: Bench) -> Path:
    """Return the folder of a tiny model for Sudoku."""
    folder = bench.folder / "tiny"
    if not folder.exists():
        tokenizer = char_tokenizer(Sudoku().alphabet)
        shape = TinyConfig(num_layers=2, width=64, num_heads=4)
        save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, folder)
    return folder


def wide_folder(bench: Bench) -> Path:
    """Return the folder of a model with two wide layers and the vocabulary of the tiny one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, width = bench.folder / "wide", bench.scale.run_width
    if folder.exists():
        return folder
    tokenizer = char_tokenizer(Sudoku().alphabet)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=max(4, width // 128),
        num_key_value_heads=max(4, width // 128),
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.is_causal = False
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(config).bfloat16()
    ids = (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    save_model(Denoiser(backbone, *ids), tokenizer, folder)
    return folder


def new_trainer(recipe: TrainRecipe) -> Trainer:
    """Return a trainer of a run in this process, which may not be the first."""
    # The precision of the run before is not that of this one.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Trainer(recipe)


def trained(bench: Bench, name: str, *overrides: str) -> Trainer:
    """Train the tiny model in this process and return the trainer."""
    own = (f"model={tiny_folder(bench)}", f"output_dir={bench.folder / name.replace(' ', '-')}")
    trainer = new_trainer(load_recipe("sudoku-tiny", [*SETTINGS, "log_rollouts_steps=0", *own, *overrides]))
    trainer.train()
    return trainer


@check(90)
def every_method_and_order(bench: Bench) -> Outcome:
    """Every method, order and variant trains for two steps through the trainer."""
    runs = {name: (f"method.type={name}", *OWN.get(name, ())) for name in METHODS}
    runs |= {f"order {order}": (f"sampler.order={order}",) for order in ORDERS} | VARIANTS
    chosen = list(runs)
    if bench.scale.methods is not None:
        chosen = [*chosen[: bench.scale.methods], *list(VARIANTS)[: bench.scale.methods]]
    failed = {}
    for name in chosen:
        try:
            trained(bench, name, *runs[name])
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error)[:160]}"
        gc.collect()
    return Outcome(not failed, {"runs": len(chosen), "failed": failed})


@check(15)
def precision(bench: Bench) -> Outcome:
    """A GPU computes in bfloat16 by default, and the optimizer updates float32 weights."""
    trainer = trained(bench, "precision", *(("precision=auto",) if bench.is_gpu else ()))
    weights = sorted({str(weight.dtype) for weight in trainer.denoiser.parameters()})
    (optimizer,) = trainer.session.optimizers
    updated = sorted({str(weight.dtype) for group in optimizer.param_groups for weight in group["params"]})
    is_right = weights == ["torch.bfloat16"] and updated == ["torch.float32"]
    return Outcome(is_right, {"weights": weights, "updated by the optimizer": updated})


def arguments(bench: Bench, name: str, *overrides: str) -> list[str]:
    """Return the arguments of `unmask` that train the wide model."""
    own = (f"model={wide_folder(bench)}", f"output_dir={bench.folder / name}")
    return ["train", "sudoku-tiny", *SETTINGS, *WIDE, *own, *overrides]


def start(arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Run `unmask` in a process of its own, with further variables in its environment. Without a
    GPU it is forked from one that has imported the package; peft and DeepSpeed look for a GPU when
    they are imported, after which a forked process cannot use it."""
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload([*PRELOADED, "transformers.models.llama.modeling_llama"])
    process = context.Process(target=_main, args=(arguments, log, dict(environment or {})), daemon=True)
    process.start()
    return process


def _main(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    from unmask.cli import main
    from unmask.report.api import trainer

    # No check is about the curve and the report, which take half of the time of a short run.
    trainer.pictures = lambda _folder: {}
    os.environ |= environment
    sys.argv = ["unmask", *arguments]
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main()


def single_rank(port: int) -> dict[str, str]:
    """Return the environment variables with which a launcher starts the only rank of a run."""
    facts = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    return {name: str(value) for name, value in facts.items()} | {"MASTER_ADDR": "127.0.0.1"}


def finished(
    bench: Bench, name: str, *overrides: str, seconds: float = 60, environment: Mapping[str, str] | None = None
) -> tuple[int | None, str]:
    """Run `unmask train` to its end; return its exit code, None if it took too long, and the end of
    what it printed."""
    log = bench.folder / f"{name}.log"
    process = start(arguments(bench, name, *overrides), log, environment)
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
    return code, "" if code == 0 else log.read_text()[-300:]


@check(60)
def qlora(bench: Bench) -> Outcome:
    """4-bit weights with adapters train, and the merged model is saved."""
    if importlib.util.find_spec("bitsandbytes") is None or not bench.is_gpu:
        raise CheckSkippedError("needs a CUDA GPU and bitsandbytes")
    code, tail = finished(bench, "qlora", "lora={r: 16, alpha: 16, quantize: 4bit}")
    is_saved = bool(list((bench.folder / "qlora" / "final").glob("model*.safetensors")))
    return Outcome(code == 0 and is_saved, {"exit code": code, "saved": is_saved, "end": tail})


@check(100)
def presets_on_one_process(bench: Bench) -> Outcome:
    """FSDP2 and ZeRO with the backend of the card, for two steps each."""
    presets = ["fsdp2"]
    if bench.is_gpu and importlib.util.find_spec("deepspeed") is not None:
        presets += ["zero2", "zero3"]
    found: dict[str, str] = {}
    for preset in presets:
        environment = preset_environment(preset) | single_rank(get_free_port())
        code, tail = finished(bench, preset, "lora={r: 16, alpha: 16}", environment=environment)
        found[preset] = "ok" if code == 0 else tail or "did not end"
    return Outcome(all(result == "ok" for result in found.values()), found)


@check(80)
def resume(bench: Bench) -> Outcome:
    """A run that is killed and resumed, against one that is not, and against an equal one: bits on
    a CPU, and on a GPU the largest difference of a weight."""
    settings = ("max_steps=4", "lora={r: 16, alpha: 16}")
    for name in ("whole", "again") if bench.is_gpu else ("whole",):
        code, tail = finished(bench, name, *settings)
        if code != 0:
            return Outcome(False, {name: tail})
    code, tail = cut_and_resumed(bench, "cut", *settings)
    if code != 0:
        return Outcome(False, {"resumed": tail})
    moved, resumed = _difference(bench, "whole", None), _difference(bench, "whole", "cut")
    facts = {"resumed": resumed, "moved by training": moved}
    if bench.is_gpu:
        facts["two equal runs"] = _difference(bench, "whole", "again")
    # On a GPU two equal runs differ by rounding, and a resumed one by no more.
    bound = max(2 * facts["two equal runs"], 0.05 * moved) if bench.is_gpu else 0.0
    return Outcome(resumed <= bound < moved, facts)


@check(60)
def deterministic(bench: Bench) -> Outcome:
    """With `deterministic: true`, equal runs have the same bits, and so has one that is killed and
    resumed, on a GPU as well."""
    settings = ("max_steps=4", "lora={r: 16, alpha: 16}", "deterministic=true")
    for name in ("fixed", "fixed-again"):
        code, tail = finished(bench, name, *settings)
        if code != 0:
            return Outcome(False, {name: tail})
    code, tail = cut_and_resumed(bench, "fixed-cut", *settings)
    if code != 0:
        return Outcome(False, {"resumed": tail})
    moved, others = _difference(bench, "fixed", None), ("fixed-again", "fixed-cut")
    again, resumed = (_difference(bench, "fixed", other) for other in others)
    facts = {"two equal runs": again, "resumed": resumed, "moved by training": moved}
    return Outcome(again == resumed == 0.0 < moved, facts)


def cut_and_resumed(bench: Bench, name: str, *settings: str) -> tuple[int | None, str]:
    """Kill a run of the wide model after its second step and resume it; return what `finished`
    does."""
    process = start(arguments(bench, name, *settings), bench.folder / f"{name}.log")
    while process.exitcode is None and not list((bench.folder / name / "checkpoints").glob("step-*2")):
        time.sleep(0.01)
    process.kill()
    process.join()
    return finished(bench, name, *settings, "--resume")


def _difference(bench: Bench, one: str, other: str | None) -> float:
    """Return the largest difference between the adapters of two runs; None for adapters of 0."""
    from safetensors.torch import load_file

    first, second = (
        load_file(bench.folder / name / "final" / "adapter" / "adapter_model.safetensors") if name else None
        for name in (one, other)
    )
    assert first is not None
    # B starts at 0, so it is what training moved.
    kept = [key for key in first if "lora_B" in key]
    return max(float((first[key] - (second[key] if second else 0.0)).abs().max()) for key in kept)
