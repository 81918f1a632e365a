"""Starting several processes: what each is told, what becomes of signals and of one that dies, and the cluster's scripts."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import TRAIN, steps_saved, unmask
from unmask import launch
from unmask.errors import ConfigError, LostProcessError
from unmask.launch import find_preset, first_host, preset_environment, run_processes, slurm_environment
from unmask.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
PRESETS = ("ddp", "fsdp2", "zero2", "zero3")


# --- presets ---


def test_the_presets_are_found_by_name_and_another_name_is_told() -> None:
    assert tuple(shipped_recipes("accelerate")) == PRESETS
    assert [find_preset(name).stem for name in PRESETS] == list(PRESETS)
    with pytest.raises(ConfigError, match='unknown preset "zero4". Did you mean "zero'):
        find_preset("zero4")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_accelerate_would_make_of_its_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    for key in [key for key in os.environ if key.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(key)
    words = [
        "--config_file",
        str(find_preset(name)),
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "unmask",
    ]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    is_zero = name.startswith("zero")
    args.deepspeed_fields_from_accelerate_config = ""
    theirs = prepare_deepspeed_cmd_env(args)[1] if is_zero else prepare_multi_gpu_env(args)
    ours = preset_environment(find_preset(name))
    differing = {key: (value, theirs.get(key)) for key, value in ours.items() if theirs.get(key) != value}
    assert differing == {}
    assert bool(ours) == (name != "ddp")
    # And nothing that decides where weights lie is in theirs alone.
    assert {key for key in theirs if key.endswith(("ZERO_STAGE", "USE_FSDP", "USE_DEEPSPEED"))} <= ours.keys()


# --- processes ---


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script in the place of Python: `-m unmask SCRIPT` runs SCRIPT in a folder for what the processes leave."""
    program = tmp_path / "program"
    program.write_text(f'#!/bin/bash\ncd {tmp_path}\neval "$3"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(launch, "GRACE", 0.3)
    return tmp_path


def test_each_process_is_told_its_place(stand_in: Path) -> None:
    script = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $MORE" > told-$RANK'
    assert run_processes([script], {"MORE": "x"}, 2, nodes=2, node_rank=1, address="far", port=77) == 0
    told = {path.name: path.read_text().split() for path in stand_in.glob("told-*")}
    assert told == {"told-2": ["2", "0", "4", "2", "far", "77", "x"], "told-3": ["3", "1", "4", "2", "far", "77", "x"]}


def test_the_exit_code_of_a_mistake_is_passed_on(stand_in: Path) -> None:
    assert run_processes(['exit "$((RANK * 2))"'], {}, 2) == 2


def test_a_process_that_is_killed_is_named_and_the_others_do_not_stay(stand_in: Path) -> None:
    started = time.monotonic()
    with pytest.raises(LostProcessError, match="^process 1 of 2 was killed by SIGKILL, and the others were stopped"):
        run_processes(['[ "$RANK" = 1 ] && kill -9 $$; sleep 60'], {}, 2)
    assert time.monotonic() - started < 30
    assert LostProcessError.exit_code == 75


def test_a_signal_reaches_every_process_once(stand_in: Path) -> None:
    script = "trap 'echo got >> got-$RANK; sleep 0.5; exit 138' USR1; touch up-$RANK; while true; do sleep 0.05; done"

    def send() -> None:
        while len(list(stand_in.glob("up-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    sender = threading.Thread(target=send)
    sender.start()
    assert run_processes([script], {}, 2) == 138
    sender.join()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert [(stand_in / f"got-{rank}").read_text() for rank in (0, 1)] == ["got\n", "got\n"]


def test_two_real_processes_stop_for_sigterm_with_all_saved(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*TRAIN, f"model={tiny_model}", f"output_dir={folder}", "max_steps=2000", "evaluation.eval_steps=0"]
    command = [sys.executable, "-m", "unmask", "launch", "--cpu", "--processes", "2", "train", "sudoku-tiny", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    lines = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") > 1):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert len(re.findall(r"RunStoppedError: stopped after step \d+ of 2000", said)) == 1
    assert "Traceback" not in said
    assert steps_saved(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cpu", "--preset", "fsdp2", "train", "sudoku-tiny"], "accelerate runs FSDP on GPUs only"),
        (["--preset", "zero9", "train", "sudoku-tiny"], 'unknown preset "zero9"'),
        (["eval", "x"], "launch runs train or pretrain, not eval"),
        ([], "launch runs train or pretrain, not nothing"),
        (["--nodes", "2", "train", "sudoku-tiny"], "2 machines need a --port"),
        (["--slurm", "train", "sudoku-tiny"], "--slurm is for tasks that srun starts, and SLURM_PROCID is not set"),
    ],
)
def test_what_cannot_be_launched_is_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert unmask("launch", *words) == 2
    assert message in capsys.readouterr().err


def test_the_file_of_a_preset_is_printed_for_accelerate(capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("launch", "--show", "zero3") == 0
    assert Path(capsys.readouterr().out.strip()) == find_preset("zero3")


# --- SLURM ---


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-4]", "n1"), ("gpu[007,9-12],other", "gpu007"), ("a-b-3,c", "a-b-3"), ("x[1,2]-y", "x1-y")],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_of_one_job_agree_on_where_they_meet_and_those_of_another_meet_elsewhere() -> None:
    shared = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    tasks = [
        slurm_environment(shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % 2), "SLURM_JOB_ID": "7"})
        for i in range(4)
    ]
    assert [task["RANK"] for task in tasks] == ["0", "1", "2", "3"]
    assert {(task["MASTER_ADDR"], task["MASTER_PORT"], task["LOCAL_WORLD_SIZE"]) for task in tasks} == {
        ("n1", "20007", "2")
    }
    other = slurm_environment(shared | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "8"})
    assert other["MASTER_PORT"] == "20008"


SCRIPTS = sorted((ROOT / "examples" / "cluster").iterdir())


def commands(script: Path) -> list[list[str]]:
    """The words of each command of a script, from `unmask` or `-m unmask` on."""
    text = script.read_text().replace("\\\n", " ")
    lines = [
        shlex.split(line, comments=True) for line in text.splitlines() if re.search(r"unmask (launch|train)", line)
    ]
    return [words[words.index("unmask") + 1 :] for words in lines]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_for_a_cluster_is_bash_whose_commands_and_settings_exist(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    (words,) = commands(script)
    seen: list[Any] = []

    def execve(_program: str, arguments: list[str], environment: dict[str, str]) -> None:
        seen.append((arguments, environment))

    text = script.read_text()
    if words[0] == "launch":
        monkeypatch.setattr("os.execve", execve)
        for name, value in {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}.items():
            monkeypatch.setenv(name, value)
        # It would become another program there; here it goes on and finds that it has nothing to launch.
        monkeypatch.setattr(launch, "run_processes", lambda *_, **__: 0)
        assert unmask(*words) == 0
        ((arguments, environment),) = seen
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
        words = arguments[arguments.index("unmask") + 1 :]
    assert words[0] == "train"
    assert "--resume" in words
    recipe = load_recipe(words[1], [word for word in words[2:] if "=" in word])
    nodes, tasks = (re.search(rf"--{key}=(\d+)", text) for key in ("nodes", "gpus-per-node"))
    processes = int(nodes[1]) * int(tasks[1]) if nodes and tasks else 8
    assert recipe.num_prompts % processes == 0


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
