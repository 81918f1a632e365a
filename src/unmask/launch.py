"""Starting a run as several processes: on this machine, as one of several machines, or as a task of SLURM's.

A preset is a file of accelerate's own format, so `accelerate launch --config_file` takes it as well. The processes here are
started plainly, each with the environment that torch and accelerate read: signals reach them once and early enough to finish a
step, and a process that dies is named.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from unmask.errors import ConfigError, LostProcessError
from unmask.recipe import find_recipe, read_tree

PRESETS = "accelerate"
"""The folder of the shipped presets, among the recipes."""
GRACE = 20.0
"""Seconds that the other processes have to end by themselves once one has ended badly."""
POLL = 0.1
"""Seconds between two looks at the processes."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def find_preset(name: str) -> Path:
    """The file of a shipped preset, by name, or a file of accelerate's format itself.

    Raises:
        ConfigError: there is none.
    """
    try:
        return find_recipe(name, PRESETS)
    except ConfigError as error:
        raise ConfigError(str(error).replace("unknown recipe", "unknown preset")) from None


def preset_environment(path: Path) -> dict[str, str]:
    """What `accelerate launch` would put into the environment for a file of its format, as far as it changes how weights lie.

    Raises:
        ConfigError: a kind of distribution that a run cannot use.
    """
    tree = read_tree(path)
    kind = str(tree.get("distributed_type", "NO")).upper()
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return {}
    if kind == "FSDP":
        return {"ACCELERATE_USE_FSDP": "true"} | {
            f"FSDP_{key.removeprefix('fsdp_').upper()}": _text(value) for key, value in tree["fsdp_config"].items()
        }
    if kind == "DEEPSPEED":
        found = {"ACCELERATE_USE_DEEPSPEED": "true"}
        for key, value in tree["deepspeed_config"].items():
            if name := _DEEPSPEED.get(key):
                found[name] = _text(value)
        return found
    raise ConfigError(f"{path}: distributed_type {kind} is not supported. Use MULTI_GPU, FSDP or DEEPSPEED.")


_DEEPSPEED = {
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "zero3_init_flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "zero3_save_16bit_model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
}
"""accelerate's names for what its file calls otherwise."""


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_processes(
    command: Sequence[str],
    environment: Mapping[str, str],
    processes: int,
    *,
    nodes: int = 1,
    node_rank: int = 0,
    address: str = "127.0.0.1",
    port: int = 0,
) -> int:
    """Run `unmask COMMAND` as `processes` processes of this machine and return the exit code of the run.

    Signals are passed on once, so that every process finishes its step and saves. If a process ends badly the others get a little
    time to end by themselves, and are then killed: what was saved is saved.

    Args:
        command: what follows `unmask`.
        environment: beside this process's own.
        processes: on this machine.
        nodes: machines, each with as many processes.
        node_rank: which of them this is.
        address: of the first of them.
        port: on it; 0 takes a free one, with one machine.

    Raises:
        LostProcessError: a process was killed.
    """
    world = processes * nodes
    shared = {
        **os.environ,
        # Each process would take all cores.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))),
        **environment,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port or free_port()),
    }
    children: list[subprocess.Popen[bytes]] = []
    with _forwarding(children):
        for local in range(processes):
            own = {"RANK": str(node_rank * processes + local), "LOCAL_RANK": str(local)}
            # A session of its own: Ctrl-C in a terminal reaches the whole group, and would come twice.
            children.append(
                subprocess.Popen([sys.executable, "-m", "unmask", *command], env=shared | own, start_new_session=True)
            )
        first = _wait(children)
    if first is None:
        return 0
    code = children[first].returncode
    if code < 0:
        name = signal.Signals(-code).name
        raise LostProcessError(
            f"process {node_rank * processes + first} of {world} was killed by {name}, and the others were stopped. "
            "What was saved is good: start again with --resume."
        )
    return code


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; returns the place of the one whose bad end explains the others', if any ended badly."""
    ended: list[int] = []
    deadline = float("inf")
    while len(ended) < len(children):
        ended += [place for place, child in enumerate(children) if place not in ended and child.poll() is not None]
        bad = [place for place in ended if children[place].returncode]
        if bad and deadline == float("inf"):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
                child.wait()
            break
        time.sleep(POLL)
    # One that a signal killed says more than those that lost it and noticed at the same moment.
    return next((place for place in bad if children[place].returncode < 0), bad[0]) if bad else None


@contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to the processes, and leave none behind."""

    def forward(number: int, _frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slurm_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What a task that `srun` started has to know of the others.

    Args:
        variables: the environment of the task.

    Raises:
        ConfigError: not a task of SLURM's.

    Example:
        >>> task = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1234"}
        >>> found = slurm_environment(task | {"SLURM_STEP_NODELIST": "gpu[03-04,9]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"})
        >>> found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"], found["MASTER_ADDR"], found["MASTER_PORT"]
        ('5', '8', '4', 'gpu03', '21234')
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS") if name not in variables]
    if missing:
        raise ConfigError(
            f"--slurm is for tasks that srun starts, and {missing[0]} is not set: srun unmask launch --slurm ..."
        )
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    tasks = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables["SLURM_NTASKS"]
    return {
        "RANK": variables["SLURM_PROCID"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "WORLD_SIZE": variables["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": re.split(r"[(,]", tasks)[0],
        "MASTER_ADDR": first_host(nodes),
        # Of its own for each job, where jobs share a node.
        "MASTER_PORT": str(20_000 + int(variables.get("SLURM_JOB_ID", "0")) % 20_000),
    }


def first_host(nodes: str) -> str:
    """The first host of a node list as SLURM writes it.

    Example:
        >>> first_host("gpu[03-04,9],login1"), first_host("a1,a2"), first_host("rack1-[7]-ib")
        ('gpu03', 'a1', 'rack1-7-ib')
    """
    head = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^,\[]*)", nodes)
    assert head is not None
    return "".join(part or "" for part in head.groups())
