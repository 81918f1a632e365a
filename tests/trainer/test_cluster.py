"""Runs of several processes as the docs start them: presets for accelerate, torchrun, and the scripts for a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from benchmark.cpu_ranks import preset_environment
from tests.helpers.paths import ROOT
from tests.helpers.runs import TRAIN, exit_code_of, metrics, start, steps_saved, unmask
from unmask.recipes.load import load_recipe, shipped_recipes

pytestmark = pytest.mark.slow

SCRIPTS = sorted((ROOT / "examples" / "cluster").iterdir())
TORCHRUN = ["--nproc-per-node", "2", "-m", "unmask", "train", "sudoku-tiny"]
"""Arguments of torchrun."""


# --- presets ---


def test_a_preset_is_found_by_name_and_another_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shipped_recipes("accelerate")) == ["ddp", "fsdp2", "zero2", "zero3"]
    assert unmask("preset", "zero3") == 0
    path = Path(capsys.readouterr().out.strip())
    assert (path.name, path.is_file()) == ("zero3.yaml", True)
    assert unmask("preset", "zero4") == 2
    assert 'unknown preset "zero4". Did you mean "zero' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp", {}),
        ("zero2", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        ("zero3", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}),
    ],
)
def test_accelerate_reads_a_preset(name: str, expected: dict[str, str]) -> None:
    found = preset_environment(name)
    assert {key: found.get(key) for key in expected} == expected
    assert found["ACCELERATE_MIXED_PRECISION"] == "no"
    kinds = {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"}
    assert {key for key in kinds if found.get(key) == "true"} == kinds & expected.keys()


# --- torchrun ---


def torchrun(arguments: list[str], printed: Path) -> None:
    """Run torchrun, and write its output and that of the ranks to a file."""
    from torch.distributed.run import main

    os.environ |= {"PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main(arguments)


def test_torchrun_trains_with_two_ranks(tiny_model: Path, tmp_path: Path) -> None:
    folder, printed = tmp_path / "run", tmp_path / "printed.txt"
    settings = [*TRAIN, f"model={tiny_model}", f"output_dir={folder}", "max_steps=2", "evaluation.eval_steps=0"]
    assert exit_code_of(torchrun, [*TORCHRUN, *settings], printed) == 0, printed.read_text()
    assert printed.read_text().count(f"model: {folder / 'final'}") == 1, "only rank 0 prints"
    assert [line["step"] for line in metrics(folder)] == [1, 2]


def test_a_run_under_torchrun_stops_for_sigterm_with_all_saved(tiny_model: Path, tmp_path: Path) -> None:
    folder, printed = tmp_path / "run", tmp_path / "printed.txt"
    settings = [*TRAIN, f"model={tiny_model}", f"output_dir={folder}", "max_steps=2000", "evaluation.eval_steps=0"]
    process = start(torchrun, [*TORCHRUN, *settings], printed)
    lines = folder / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.is_alive() and not (lines.exists() and lines.read_text().count("\n") > 1):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.join(120)
    assert process.exitcode not in (0, None)
    assert len(re.findall(r"RunStoppedError: stopped after step \d+ of 2000", printed.read_text())) == 1
    assert steps_saved(folder)


# --- scripts for a cluster ---


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_for_a_cluster_is_bash_whose_commands_and_settings_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.name == "rank.sh":
        return
    text = script.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if " train " in line]
    words = shlex.split(line)
    assert "-m" in words or (ROOT / words[words.index("bash") + 1]).is_file()
    recipe, *settings, resume = words[words.index("train") + 1 :]
    assert resume == "--resume"
    nodes, tasks = (re.search(rf"--{key}=(\d+)", text) for key in ("nodes", "gpus-per-node"))
    processes = int(nodes[1]) * int(tasks[1]) if nodes and tasks else 8
    assert load_recipe(recipe, settings).num_prompts % processes == 0


def test_the_scripts_options_are_torchs_and_accelerates_own() -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    for name, parser in (("torchrun.sbatch", get_args_parser()), ("accelerate.sh", launch_command_parser())):
        text = (ROOT / "examples" / "cluster" / name).read_text().replace("\\\n", " ")
        (line,) = [line for line in text.splitlines() if "-m unmask" in line]
        line = re.sub(r"\$\([^)]*\)", "x", line)
        words = shlex.split(line)
        start = words.index("torchrun" if "torchrun" in words else "launch") + 1
        known, _ = parser.parse_known_args(words[start:])
        assert known.training_script == "unmask"


def test_the_tasks_of_a_slurm_job_agree_on_where_they_meet(tmp_path: Path) -> None:
    stand_ins = {
        "scontrol": '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"',
        "unmask": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*"; exit 138',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    shared = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    found = []
    for job, rank in ((7, 0), (7, 3), (8, 3)):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURM_JOB_ID": str(job)}
        run = subprocess.run(
            ["bash", str(ROOT / "examples" / "cluster" / "rank.sh"), "train", "sudoku-tiny"],
            capture_output=True,
            text=True,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **shared, **own},
        )
        assert run.returncode == 138, "the job sees unmask's exit code"
        found.append(run.stdout.strip())
    assert found == [
        "0 0 4 2 n1 20007 train sudoku-tiny",
        "3 1 4 2 n1 20007 train sudoku-tiny",
        "3 1 4 2 n1 20008 train sudoku-tiny",
    ]
