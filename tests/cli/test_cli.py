"""The command line: what each command prints and writes, and one message and exit code 2 for each
mistake."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unmask as package
from tests.helpers.messages import check
from tests.helpers.runs import PRETRAIN, TRAIN, metrics, steps_saved, unmask, unmask_train, weights
from unmask.functional.intervals import wilson_interval
from unmask.methods import METHODS
from unmask.models import TinyConfig, char_tokenizer, save_model, tiny_denoiser
from unmask.recipes.load import find_recipe
from unmask.runs.folder import RunFolder
from unmask.runs.saved_rollouts import SavedRollout
from unmask.tasks import TASKS
from unmask.trainer.distributed.stopping import RunStoppedError

REWARDS = """
import os, signal, time
from unmask.rewards import per_completion

STATE = {"calls": 0}

def _values(completions):
    return [text.count("1") + 0.1 * len(text) for text in completions]

@per_completion
def good(completions, **_):
    return _values(completions)

@per_completion
def flawed(completions, **_):
    STATE["calls"] += 1
    if STATE["calls"] > 6 and "MENDED" not in os.environ:
        raise ZeroDivisionError("no reward today")
    return _values(completions)

@per_completion
def stopping(completions, **_):
    STATE["calls"] += 1
    if STATE["calls"] == 5:
        os.kill(os.getppid(), signal.SIGTERM)
    return _values(completions)

@per_completion
def raises(completions, **_):
    raise ZeroDivisionError("no reward today")

@per_completion
def nan(completions, **_):
    return [float("nan")] * len(completions)

@per_completion
def short(completions, **_):
    return [1.0]

@per_completion
def hangs(completions, **_):
    time.sleep(30)

@per_completion
def needy(completions, difficulty, **_):
    return difficulty
"""

# Without evaluations on the way, the reward is called twice a step: for finished and for one-step
# completions.
SHORT = ("evaluation.temperatures=[0.9]", "evaluation.eval_steps=0")


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """The one message on standard error, its second line joined to it; no trace anywhere."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    (told,) = re.findall(r"^\w+Error: .*(?:\n .*)*", captured.err.replace("\r", "\n"), flags=re.MULTILINE)
    return re.sub(r"\n +", " ", told)


@pytest.fixture(scope="module")
def places(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that a user may point at: reward functions, rows, and folders that hold no
    model."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "mine.py").write_text(REWARDS)
    (folder / "empty").mkdir()
    (folder / "taken").write_text("keep me")
    shutil.copytree(tiny_model, folder / "causal")
    config = json.loads((folder / "causal" / "config.json").read_text())
    del config["is_causal"]
    (folder / "causal" / "config.json").write_text(json.dumps(config))
    rows = [{"question": f"{i:016}"[-16:].translate(str.maketrans("56789", "01234")) + "=", "n": i} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# --- mistakes that are found before anything is done ---

MISTAKES = {
    "num_promts=3": ['"num_promts"', '"num_prompts"', "Available: "],
    "method.beeta=1": ["method", '"beeta"', '"beta"', "Available: "],
    "method.type=egpso": ['"egpso"', '"egspo"', "Available: "],
    "task.type=sudku": ['"sudku"', '"sudoku"', "Available: "],
    "sampler.order=randm": ['"randm"', '"random"', "Available: "],
    "sampler.block_length=5": ["block_length = 5", "max_completion_length = 16", "divisor"],
    "sampler.num_steps=17": ["num_steps = 17", "max_completion_length = 16"],
    "method.num_selected=5": ["method.num_selected = 5", "4 denoising steps"],
    "num_generations=1": ["num_generations = 1", "egspo_sa"],
    "seed": ['"seed"', "key=value"],
    "precision=fp8": ["precision = 'fp8'", "'bf16'"],
    "mixed_precision=bf16": ["mixed_precision", "Set precision to bf16 or float32"],
    "dtype=bfloat16": ["dtype", "Set precision to bf16 or float32"],
    "sampler.temperature=0": ["sampler.temperature = 0"],
    "evaluation.temperatures=[-1]": ["evaluation.temperatures.0 = -1"],
    "optim.betas=[0.9,2]": ["optim.betas.1 = 2", "1"],
    "model={places}/empty": ["ModelError", "{places}/empty", "config.json"],
    "model={places}/causal": ["ModelError", "{places}/causal", "is_causal"],
    "output_dir={places}/taken": ["RunError", "output_dir", "{places}/taken"],
    "task={{type: dataset, path: {places}/rows.jsonl}}": [
        *["DataError", "60 rows of {places}/rows.jsonl", 'column "prompt"', "question"]
    ],
    "task={{type: dataset, path: {places}/rows.jsonl, prompt_column: question}}": ["reward_funcs"],
    "reward_funcs=[{places}/mine.py:needy]": ["DataError", '"needy"', '"difficulty"', "answer"],
    "reward_funcs=[{places}/none.py:f]": ["{places}/none.py"],
}
"""Overrides that are refused, with parts of the message: the class of the error (`ConfigError` by default) and what is wrong."""


@pytest.mark.parametrize("override", MISTAKES)
@pytest.mark.slow
def test_a_mistake_in_the_settings_is_reported_before_anything_is_written(
    tiny_model: Path, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert unmask_train(tiny_model, tmp_path / "run", override.format(places=places)) == 2
    words = [word.format(places=places) for word in MISTAKES[override]]
    check(message(capsys), *(words if words[0].endswith("Error") else ["ConfigError", *words]))
    assert list(tmp_path.iterdir()) == []
    assert (places / "taken").read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "sudoku-tinny"], ["ConfigError", '"sudoku-tinny"', '"sudoku-tiny"']),
        (["train", "none.yaml"], ["ConfigError", "none.yaml"]),
        (["train", "sudoku-tiny-base"], ["ConfigError", "unmask pretrain sudoku-tiny-base"]),
        (["pretrain", "sudoku-tiny"], ["ConfigError", "unmask train sudoku-tiny"]),
        (["pretrain", "sudoku-tiny-base", "tiny.widht=3"], ["ConfigError", "tiny", '"widht"', '"width"']),
        (["eval", "{model}", "--task", "sudku"], ["ConfigError", '"sudku"', '"sudoku"']),
        (
            ["eval", "{model}", "--task", "sudoku", "--option", "min_blank=3"],
            ["ConfigError", "task", '"min_blank"', '"min_blanks"'],
        ),
        (["eval", "{model}", "--task", "sudoku", "--steps", "4,x"], ["ConfigError", '--steps "4,x"', "numbers"]),
        (["eval", "{model}", "--task", "sudoku", "--steps", "17"], ["ConfigError", "num_steps = 17"]),
        (["eval", "{model}", "--task", "sudoku", "--schedule", "0.9"], ["ConfigError", 'schedule "0.9"', "threshold"]),
        (["eval", "{model}", "--task", "sudoku", "--split", "dev"], ["DataError", '"dev"', "test"]),
        (["eval", "{model}", "--task", "sudoku", "--cache", "on"], ["ConfigError", "off", "prefix", "dual"]),
        (["eval", "{places}/empty", "--task", "sudoku"], ["ModelError", "{places}/empty", "config.json"]),
        (
            ["eval", "{model}", "--task", "dataset", "--option", "path={places}/none.csv"],
            ["DataError", "{places}/none.csv"],
        ),
        (["sample", "{model}"], ["ConfigError", "--prompt", "--task"]),
        (["sample", "{model}", "--prompt", "abc"], ["DataError", "tokenizer", "'abc'"]),
        (
            ["sample", "{model}", "--prompt", "12=", "--length", "80"],
            ["DataError", "3 tokens", "max_completion_length = 80", "64 positions"],
        ),
        (
            ["sample", "{model}", "--task", "dataset", "--option", "path={places}/rows.jsonl", "--length", "8"]
            + ["--option", "prompt_column=question", "--row", "999"],
            ["ConfigError", "--row 999", "test split"],
        ),
    ],
    ids=lambda value: "" if value[0].endswith("Error") else " ".join(value[:1] + value[2:4]),
)
def test_a_mistake_on_the_command_line_is_reported(
    tiny_model: Path,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = {"model": tiny_model, "places": places}
    assert unmask(*(argument.format(**facts) for argument in arguments)) == 2
    check(message(capsys), *(word.format(**facts) for word in words))


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["train"], ["eval", "m"], ["train", "--resum"], ["eval", "m", "--task", "x", "--rows", "0"]],
)
def test_a_command_that_does_not_parse_ends_with_2_as_well(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert unmask(*arguments) == 2
    assert "--help" in capsys.readouterr().err


# --- mistakes that show in the middle, and lose nothing ---


@pytest.fixture(scope="module")
def whole(tiny_model: Path, places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert unmask_train(tiny_model, folder, *SHORT, f"reward_funcs=[{places}/mine.py:good]") == 0
    return folder


def same(folder: Path, whole: Path) -> bool:
    """Whether two runs came to the same, whatever their reward is called."""

    def renamed(line: dict[str, Any]) -> dict[str, Any]:
        return {re.sub("^rewards/.*/", "rewards/x/", key): value for key, value in line.items()}

    return [*map(renamed, metrics(folder))] == [*map(renamed, metrics(whole))] and weights(folder) == weights(whole)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", ["ZeroDivisionError: no reward today", "mine.py, line 30"]),
        ("nan", ["nan", "completion"]),
        ("short", ["1 rewards", "4 completions"]),
        ("hangs", ["0.2 s", "4 completions", "reward_timeout"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.slow
def test_a_reward_that_fails_at_once_is_reported(
    tiny_model: Path, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: list[str]
) -> None:
    overrides = [*SHORT, f"reward_funcs=[{places}/mine.py:{name}]", "sampler.temperature=2.0"]
    overrides += ["reward_timeout=0.2"] if name == "hangs" else []
    assert unmask_train(tiny_model, tmp_path / "run", *overrides) == 2
    check(message(capsys), "RewardError", f'"{name}"', *words)
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.slow
def test_a_reward_that_fails_in_the_middle_is_mended_and_the_run_goes_on(
    whole: Path,
    tiny_model: Path,
    places: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [*SHORT, f"reward_funcs=[{places}/mine.py:flawed]"]
    assert unmask_train(tiny_model, tmp_path / "run", *overrides) == 2
    assert message(capsys) == (
        'RewardError: reward function "flawed" raised ZeroDivisionError: no reward today (mine.py, line 18) '
        "The state after step 3 is saved. Correct the error, then add --resume."
    )
    monkeypatch.setenv("MENDED", "1")
    assert unmask_train(tiny_model, tmp_path / "run", *overrides, "--resume") == 0
    assert same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_signal_ends_with_its_own_exit_code_and_says_how_to_go_on(
    whole: Path, tiny_model: Path, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*SHORT, f"reward_funcs=[{places}/mine.py:stopping]"]
    assert unmask_train(tiny_model, tmp_path / "run", *overrides) == 128 + signal.SIGTERM
    assert message(capsys) == (
        f"RunStoppedError: stopped after step 3 of 6; everything is in {tmp_path / 'run'}. "
        "To continue, give the same command again with --resume."
    )
    assert steps_saved(tmp_path / "run") == [2, 3]
    assert unmask_train(tiny_model, tmp_path / "run", *overrides, "--resume") == 0
    assert same(tmp_path / "run", whole)


NO_ROOM = OSError(errno.ENOSPC, "No space left on device")


def full_disk(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Let the disk be full for one kind of file, from the first one after the checkpoint of step
    2."""

    def fail(*arguments: Any, **_: Any) -> None:
        raise NO_ROOM

    if place == "metrics":
        log = RunFolder.log

        class Full:
            write = flush = close = fail

        def full(self: RunFolder, line: dict[str, Any]) -> None:
            if line["step"] == 3:
                self._metrics = Full()  # type: ignore[assignment]
            log(self, line)

        monkeypatch.setattr(RunFolder, "log", full)
    elif place == "rollouts":
        monkeypatch.setattr(SavedRollout, "save", fail)
    elif place == "checkpoint":
        save = RunFolder.save_checkpoint

        def save_checkpoint(self: RunFolder, step: int, write: Callable[[Path], None], *rest: Any) -> None:
            def half(folder: Path) -> None:
                write(folder)
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

            save(self, step, half if step == 4 else write, *rest)

        monkeypatch.setattr(RunFolder, "save_checkpoint", save_checkpoint)
    elif place == "final":
        from safetensors import SafetensorError

        def save_model(*_: Any) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("unmask.models.adapter_folders.save_model", save_model)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "last"), [("metrics", 2), ("rollouts", 2), ("checkpoint", 2), ("final", 6)])
def test_a_full_disk_gets_a_message_and_loses_nothing(
    whole: Path,
    tiny_model: Path,
    places: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: str,
    last: int,
) -> None:
    run = tmp_path / "run"
    overrides = [*SHORT, f"reward_funcs=[{places}/mine.py:good]"]
    # Rollouts come first at step 3, after the checkpoint of step 2.
    overrides += ["log_rollouts_steps=3"] if place == "rollouts" else []
    with pytest.MonkeyPatch.context() as monkeypatch:
        full_disk(monkeypatch, place)
        assert unmask_train(tiny_model, run, *overrides) == 2
    assert message(capsys) == (
        f"RunError: {run}: the disk is full. The checkpoint of step {last} is complete. Free some space, then add --resume."
    )
    assert steps_saved(run)[-1] == last
    assert not list(run.glob("**/.incomplete-*"))
    assert unmask_train(tiny_model, run, *overrides, "--resume") == 0
    assert same(run, whole)


def test_a_folder_in_use_is_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run", {}, resume=False)
    assert unmask_train(tiny_model, tmp_path / "run") == 2
    folder.close()
    assert message(capsys) == (
        f"RunError: another process is using {tmp_path / 'run'}. Wait until it ends, or set output_dir to another folder."
    )


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(
    whole: Path, tiny_model: Path, places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    overrides = [*SHORT, f"reward_funcs=[{places}/mine.py:good]"]
    assert unmask_train(tiny_model, whole, *overrides) == 2
    check(message(capsys), f"RunError: {whole}", "--resume", "output_dir")
    assert unmask_train(tiny_model, whole, *overrides, "--resume", "seed=3", "method.beta=0.5") == 2
    assert message(capsys) == (
        f"RunError: {whole} was started with other settings, which a resumed run cannot change: "
        "method.beta: 0.0 -> 0.5 seed: 0 -> 3"
    )
    assert {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()} == before


# --- what the commands print and write ---


@pytest.mark.slow
def test_train_prints_a_line_for_each_step_and_where_everything_is(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert unmask_train(tiny_model, run) == 0
    captured = capsys.readouterr()
    steps = re.findall(r"^train step (\d)/6  (\S+) ", captured.err, flags=re.MULTILINE)
    evaluated = {step: (str(step), "solved:") for step in (0, 3, 6)}
    logged = {step: (str(step), "loss") for step in range(1, 7)}
    assert steps == [line[step] for step in range(7) for line in (logged, evaluated) if step in line]
    assert captured.out.splitlines() == [
        f"model: {run / 'final'}",
        f"metrics: {run / 'metrics.jsonl'}",
        f"curve: {run / 'curve.png'}",
        f"report: {run / 'report.html'}",
    ]
    for line in captured.out.splitlines():
        assert Path(line.partition(": ")[2]).exists()


def test_pretrain_prints_where_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("pretrain", "sudoku-tiny-base", *PRETRAIN, f"output_dir={tmp_path / 'run'}", "max_steps=2") == 0
    captured = capsys.readouterr()
    assert captured.out == f"model: {tmp_path / 'run' / 'final'}\n"
    assert re.findall(r"^pretrain step (\d)/2  loss \d\.\d+", captured.err, flags=re.MULTILINE) == ["1", "2"]
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def test_eval_prints_a_table_and_writes_every_completion(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "eval.json"
    options = ["--task", "sudoku", "--option", "min_blanks=5", "--rows", 6, "--steps", "2,4", "--temperature", "0,0.9"]
    assert unmask("eval", tiny_model, *options, "--order", "random", "--batch-size", 4, "--output", output) == 0
    printed = capsys.readouterr().out
    facts = json.loads(output.read_text())
    assert facts["model"] == str(tiny_model)
    assert (facts["task"]["type"], facts["task"]["min_blanks"]) == ("sudoku", 5)
    assert (facts["split"], facts["seed"], facts["order"]) == ("test", 0, "random")
    assert [(r["length"], r["steps"], r["temperature"]) for r in facts["results"]] == [
        (16, 2, 0.0),
        (16, 2, 0.9),
        (16, 4, 0.0),
        (16, 4, 0.9),
    ]
    lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    for result in facts["results"]:
        items = [
            line for line in lines if (line["steps"], line["temperature"]) == (result["steps"], result["temperature"])
        ]
        assert len(items) == result["num_rows"] == 6
        assert result["num_solved"] == sum(item["solved"] for item in items)
        assert (result["low"], result["high"]) == wilson_interval(result["num_solved"], 6)
        assert result["reward"] == pytest.approx(sum(item["reward"] for item in items) / 6)
        assert result["measures"]["cells"]["value"] == pytest.approx(sum(i["measures"]["cells"] for i in items) / 6)
        assert f"{result['accuracy']:.3f} ({result['low']:.3f} to {result['high']:.3f})" in printed
    # Each of the two tables has both settings twice.
    assert printed.count("greedy") == printed.count("T = 0.9") == 4
    assert printed.startswith(f"{tiny_model} on sudoku, test\n")
    assert printed.endswith(f"completions: {output.with_suffix('.jsonl')}\nresults: {output}\n")


@pytest.mark.slow
def test_eval_draws_the_accuracy_of_schedules_against_their_forward_passes(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "eval.json"
    options = ["--task", "sudoku", "--rows", 3, "--steps", "2,4", "--output", output]
    assert unmask("eval", tiny_model, *options, "--schedule", "threshold=0.2,0.9,entropy_bound=4.14") == 0
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())["results"]
    names = [(r["schedule"], r["steps"]) for r in results]
    adaptive = ["threshold=0.2", "threshold=0.9", "entropy_bound=4.14"]
    assert names == [("fixed", 2), ("fixed", 4), *((name, 16) for name in adaptive)]
    assert all(name in printed for name in adaptive)
    for result in results:
        row = [f"{result['forwards']:.3g}", f"{result['tokens_per_forward']:.3g}", f"{result['accuracy']:.3f}"]
        assert row in [line.split()[-3:] for line in printed.splitlines()]
    figures = [output.with_suffix(suffix) for suffix in (".png", ".svg", ".pdf")]
    assert f"frontier: {', '.join(map(str, figures))}" in printed
    assert all(path.stat().st_size > 1000 for path in figures)
    # Each schedule of an earlier evaluation is compared with its own.
    again = ["--against", output, "--output", tmp_path / "again.json"]
    assert unmask("eval", tiny_model, "--task", "sudoku", "--rows", 3, "--schedule", "threshold=0.9", *again) == 0
    (compared,) = json.loads((tmp_path / "again.json").read_text())["compared"]
    assert compared["against"] == compared["setting"] == [16, 16, 0.0, "threshold=0.9"]
    assert compared["difference"] == 0
    # Without steps, the fixed schedule is evaluated only if it is named; a setting wins.
    capsys.readouterr()
    assert unmask("eval", tiny_model, *options, "--schedule", "factor=1", "sampler.schedule=factor=2") == 0
    assert [r["schedule"] for r in json.loads(output.read_text())["results"]] == ["factor=2"] * 2


def test_eval_compares_row_by_row_with_an_earlier_one(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "sudoku", "--rows", 5, "--temperature", 0.9]
    assert unmask("eval", tiny_model, *options, "--output", tmp_path / "a.json") == 0
    assert unmask("eval", tiny_model, *options, "--output", tmp_path / "b.json", "--against", tmp_path / "a.jsonl") == 0
    assert "+0.000 (+0.000 to +0.000)" in capsys.readouterr().out
    (compared,) = json.loads((tmp_path / "b.json").read_text())["compared"]
    assert (compared["num_rows"], compared["gained"], compared["lost"], compared["p_value"]) == (5, [], [], 1.0)
    assert (
        unmask("eval", tiny_model, *options, "--seed", 1, "--against", tmp_path / "a.json", "--output", "x.json") == 2
    )
    check(message(capsys), f"DataError: {tmp_path / 'a.json'}", "row 0")


@pytest.mark.slow
def test_eval_overwrites_nothing_but_results_of_an_earlier_evaluation(
    tiny_model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    logged = (run / "metrics.jsonl").read_bytes()
    options = ["--task", "sudoku", "--rows", 2, "--steps", 4]
    assert unmask("eval", tiny_model, *options, "--output", run / "metrics.json") == 2
    assert message(capsys) == (
        f"ConfigError: --output {run}/metrics.json would overwrite {run}/metrics.jsonl, which is not the result of an earlier "
        "evaluation. Name another file."
    )
    assert (run / "metrics.jsonl").read_bytes() == logged
    assert unmask("eval", tiny_model, *options, "--output", run / "final" / "config.json") == 2
    assert "would overwrite" in message(capsys)
    first, other = tmp_path / "a.json", tmp_path / "b.json"
    assert unmask("eval", tiny_model, *options, "--output", first) == 0
    kept = first.with_suffix(".jsonl").read_bytes()
    # The same place again is the same result again, unless it is what the new result is compared
    # with.
    assert unmask("eval", tiny_model, *options, "--output", first) == 0
    for against in (first, first.with_suffix(".jsonl")):
        assert unmask("eval", tiny_model, *options, "--output", first, "--against", against) == 2
        assert f"--output {first} would overwrite {against}, which --against compares with" in capsys.readouterr().err
    assert first.with_suffix(".jsonl").read_bytes() == kept
    assert unmask("eval", tiny_model, *options, "--output", other, "--against", first) == 0


def test_eval_without_a_place_does_not_write_over_what_it_compares_with(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--task", "sudoku", "--rows", 2, "--steps", 4]
    assert unmask("eval", tiny_model, *options) == 0
    (first,) = Path("runs/eval").glob("*.json")
    before = first.read_bytes()
    assert unmask("eval", tiny_model, *options, "--against", first) == 0
    assert first.read_bytes() == before
    assert first.with_stem(f"{first.stem}-again").is_file()


def test_two_temperatures_and_fewer_rows_stay_apart_in_a_comparison(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "sudoku", "--steps", 4, "--temperature", "0,0.9"]
    base = tmp_path / "base.json"
    assert unmask("eval", tiny_model, *options, "--rows", 4, "--output", base) == 0
    capsys.readouterr()
    assert unmask("eval", tiny_model, *options, "--rows", 4, "--output", tmp_path / "b.json", "--against", base) == 0
    printed = capsys.readouterr().out
    table = printed[printed.index("row by row") :]
    assert "sampling" in table
    assert "greedy" in table
    assert "T = 0.9" in table
    assert unmask("eval", tiny_model, *options, "--rows", 3, "--output", tmp_path / "c.json", "--against", base) == 2
    assert f"{base} has 4 examples, but this evaluation has 3. Use the same --rows" in capsys.readouterr().err


def test_a_fault_of_the_file_system_that_nobody_foresaw_ends_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/some/where")

    monkeypatch.setattr("unmask.cli.checkpoints.print_families", fail)
    assert unmask("models") == 2
    assert message(capsys) == "RunError: /some/where: Too many open files. Check this path, or use another one."


@pytest.mark.slow
def test_eval_of_a_task_for_language_models_takes_the_papers_lengths_and_half_as_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of the papers' 128, 256, 512, for time.
    monkeypatch.setattr("unmask.tasks.base.PUBLISHED_LENGTHS", (32, 64, 128))
    tokenizer = char_tokenizer("\n" + "".join(map(chr, range(32, 127))))
    shape = TinyConfig(num_layers=1, width=8, num_heads=1, max_length=1000)
    save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, tmp_path / "model")
    options = ["--task", "countdown", "--option", "format=plain", "--rows", 2, "--block-length", 16]
    assert unmask("eval", tmp_path / "model", *options, "--output", tmp_path / "eval.json") == 0
    facts = json.loads((tmp_path / "eval.json").read_text())
    assert facts["settings"] == [[32, 16, 0.0, "fixed"], [64, 32, 0.0, "fixed"], [128, 64, 0.0, "fixed"]]
    assert [(r["length"], r["steps"], r["num_rows"]) for r in facts["results"]] == [
        (32, 16, 2),
        (64, 32, 2),
        (128, 64, 2),
    ]
    assert (facts["block_length"], facts["environment"]["dtype"]) == (16, "float32")


def test_evaluations_with_and_without_a_cache_are_kept_apart(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--task", "sudoku", "--rows", 2, "--block-length", 4, "--temperature", 0.9]
    for cache in ("off", "dual", "dual"):
        assert unmask("eval", tiny_model, *options, "--cache", cache) == 0
    facts = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "eval").glob("*.json")]
    assert sorted(fact["sampler"]["cache"] for fact in facts) == ["dual", "off"]


def test_eval_without_a_place_keeps_every_completion_too(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--task", "sudoku", "--rows", 2, "--steps", 2, "--samples", 2]
    assert unmask("eval", tiny_model, *options, "--temperature", 0.9) == 0
    assert unmask("eval", tiny_model, *options, "--temperature", 0.9, "--batch-size", 1) == 0
    (place,) = Path("runs/eval").glob("sudoku-test-*.json")
    assert len(place.with_suffix(".jsonl").read_text().splitlines()) == 4
    assert "pass@2" in capsys.readouterr().out
    assert unmask("eval", tiny_model, *options) == 2
    check(message(capsys), "ConfigError", "2 samples", "temperature 0")


def test_eval_takes_rows_and_a_reward_of_ones_own(
    tiny_model: Path, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"--option={option}" for option in (f"path={places}/rows.jsonl", "prompt_column=question")]
    options = [*rows, "--length", 8, "--rows", 5, "--temperature", 0.9, "--output", tmp_path / "eval.json"]
    assert unmask("eval", tiny_model, "--task", "dataset", *options) == 2
    assert message(capsys) == "ConfigError: there is no reward function, because the task has none. Set reward_funcs."
    assert unmask("eval", tiny_model, "--task", "dataset", *options, "--reward", f"{places}/mine.py:good") == 0
    (result,) = json.loads((tmp_path / "eval.json").read_text())["results"]
    items = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    for item in items:
        assert item["reward"] == pytest.approx(item["completion"].count("1") + 0.1 * len(item["completion"]))
    assert (len(items), result["num_solved"]) == (5, 0)


@pytest.mark.slow
def test_eval_runs_rewards_where_and_as_long_as_it_is_set(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "def place(completions, **columns):\n"
        "    return [float(os.getpid())] * len(completions)\n"
        "def slow(completions, **columns):\n"
        "    time.sleep(60)\n"
        "slow.per_completion = True\n"
    )
    options = ["--task", "sudoku", "--rows", 2, "--steps", 4, "--output", tmp_path / "eval.json", "reward_workers=0"]
    assert unmask("eval", tiny_model, *options, "--reward", f"{tmp_path}/mine.py:place") == 0
    (result,) = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert result["reward"] == os.getpid()
    options[-1] = "reward_item_timeout=0.1"
    assert unmask("eval", tiny_model, *options, "--reward", f"{tmp_path}/mine.py:slow") == 2
    assert "did not return within 0.2 s for 2 completions. Make it faster, or raise reward_item_timeout." in message(
        capsys
    )


def test_an_unusable_output_or_earlier_evaluation_is_refused_before_the_evaluation(
    tiny_model: Path, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    options = ["--task", "sudoku", "--rows", 2]
    taken = places / "taken" / "eval.json"
    assert unmask("eval", tiny_model, *options, "--output", taken) == 2
    check(message(capsys), f"RunError: {taken}", "cannot be written")
    output = ["--output", tmp_path / "eval.json"]
    assert unmask("eval", tiny_model, *options, *output, "--against", tmp_path / "none.jsonl") == 2
    assert "none.jsonl cannot be read" in message(capsys)
    assert unmask("eval", tiny_model, *options, *output, "--length", "16,512") == 2
    assert "max_completion_length = 512 do not fit" in message(capsys)


def test_the_settings_that_were_done_are_kept_when_a_later_one_fails(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "once.py").write_text(
        "calls = []\n\ndef once(completions, **columns):\n    calls.append(1)\n"
        "    assert len(calls) == 1\n    return [1.0] * len(completions)\n"
    )
    options = ["--task", "sudoku", "--rows", 2, "--steps", "4,2", "--reward", f"{tmp_path}/once.py:once"]
    assert unmask("eval", tiny_model, *options, "--output", tmp_path / "eval.json") == 2
    assert 'reward function "once" raised AssertionError' in message(capsys)
    assert [r["steps"] for r in json.loads((tmp_path / "eval.json").read_text())["results"]] == [4]
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 2


def test_sample_prints_a_line_for_each_step_in_a_pipe(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("sample", tiny_model, "--task", "sudoku", "--row", 2, "--steps", 4, "--temperature", 0.9) == 0
    first, *steps, completion, verdict, entropy, forwards = capsys.readouterr().out.splitlines()
    assert first == f"prompt: {TASKS['sudoku'].model_validate({}).rows('test', 3)[2]['prompt']}"
    assert [line[: len("step   1/4  ")] for line in steps] == [f"step   {k}/4  " for k in (1, 2, 3, 4)]
    hidden = [line.count("·") for line in steps]
    assert hidden == sorted(hidden, reverse=True)
    assert hidden[-1] == 0
    assert completion.startswith("completion: ")
    assert re.fullmatch(r"entropy of the whole path: \d+\.\d\d nats", entropy)
    assert re.fullmatch(r"[1-4] forward passes, \d+\.\d\d tokens each", forwards)


def test_sample_takes_a_cache(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = []
    monkeypatch.setattr("unmask.cli.sample.watch", lambda _policy, _prompt, sampler, **_: samplers.append(sampler))
    for options in ([], ["--cache", "dual"]):
        assert unmask("sample", tiny_model, "--prompt", "1234=", "--length", 8, "--block-length", 4, *options) == 0
    assert [(sampler.cache, sampler.block_length) for sampler in samplers] == [("off", 4), ("dual", 4)]


def test_sample_takes_a_prompt_and_the_seed_decides(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in (1, 1, 2):
        options = ["--prompt", "1234=", "--length", 8, "--temperature", 0.9, "--seed", seed]
        assert unmask("sample", tiny_model, *options) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0].startswith("prompt: 1234=\n")


def test_methods_and_tasks_list_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("methods") == 0
    listing = capsys.readouterr().out
    assert {name for name in METHODS if re.search(rf"^\W*{name}\s", listing, flags=re.MULTILINE)} == set(METHODS)
    assert "2603.12554" in listing
    assert unmask("methods", "egspo_ca") == 0
    shown = capsys.readouterr().out
    assert {key for key in METHODS["egspo_ca"].model_fields if re.search(rf"^{key}\s", shown, re.MULTILINE)} == {
        *METHODS["egspo_ca"].model_fields
    } - {"type"}
    assert "needs:     16 other branches of a state" in shown
    assert unmask("methods", "egspoca") == 2
    assert 'Did you mean "egspo_ca"?' in capsys.readouterr().err
    assert unmask("tasks") == 0
    listing = capsys.readouterr().out
    assert {name for name in TASKS if re.search(rf"^\W*{name}\s", listing, flags=re.MULTILINE)} == set(TASKS)
    assert "min_blanks" in listing


@pytest.mark.parametrize(
    "command",
    ["", "train", "pretrain", "compare", "demo", "eval", "sample", "data check", "report", "plot", "models"]
    + ["convert", "merge", "methods", "tasks", "recipes", "preset", "estimate", "doctor"],
)
@pytest.mark.slow
def test_every_command_has_help_under_both_names(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask(*command.split(), "-h") == 0
    short = capsys.readouterr().out
    assert unmask(*command.split(), "--help") == 0
    assert short == capsys.readouterr().out
    assert short.startswith(f"Usage: unmask {command}".strip())


def test_harness_has_help_without_the_package_that_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lm_eval" else find(name))
    for option in ("-h", "--help"):
        assert unmask("harness", option) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("Usage: unmask harness")
        assert 'pip install "unmask[lm-eval]"' in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "sudoku-tiny", "--learning_rate", "1e-4"], "without dashes: optim.learning_rate=1e-4."),
        (["train", "sudoku-tiny", "--lr=1e-4"], "without dashes: optim.learning_rate=1e-4."),
        (["train", "sudoku-tiny", "--max-steps", "3"], "without dashes: max_steps=3."),
        (["train", "sudoku-tiny", "--num_train_epochs", "3"], "There are no epochs: max_steps is the number"),
        (["pretrain", "sudoku-tiny-base", "--batch-size", "3"], "without dashes: batch_size=3."),
        (["compare", "paper-tiny", "--seed", "3"], "Did you mean --seeds?"),
        (["compare", "paper-tiny", "--task", "sudoku"], "Did you mean --tasks?"),
        (["compare", "paper-tiny", "--method", "ESPO"], "Did you mean --methods?"),
        (["train", "sudoku-tiny", "--config", "mine.yaml"], "The recipe is the command's first argument"),
        (["estimate", "sudoku-tiny", "--bf16", "true"], "Set precision to bf16."),
        (["eval", "m", "--task", "sudoku", "--num_rows", "3"], "without dashes: evaluation.num_rows=3."),
        (["eval", "m", "--task", "sudoku", "--guidance=1"], "without dashes: sampler.guidance=1."),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_an_option_that_is_a_setting_is_answered_with_the_setting(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unmask(*arguments) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"No such option: {arguments[-1 if '=' in arguments[-1] else -2].partition('=')[0]}." in shown
    assert told in shown
    # typer's own guess shares a few letters with the option and nothing else.
    assert "Possible options" not in shown


@pytest.mark.slow
def test_a_shipped_recipe_is_printed_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in (
        ("sudoku-tiny", find_recipe("sudoku-tiny")),
        ("published/espo-llada-countdown", find_recipe("published/espo-llada-countdown")),
        ("espo-llada-countdown", find_recipe("published/espo-llada-countdown")),
        ("paper-tiny", find_recipe("paper-tiny", "compare")),
    ):
        assert unmask("recipes", name) == 0
        assert capsys.readouterr().out == path.read_text()
    assert unmask("recipes", "llada") == 0
    listed = capsys.readouterr().out
    assert "published/espo-llada-countdown" in listed
    assert "sudoku-tiny" not in listed
    assert unmask("recipes", "sudoku-tinny") == 2
    assert 'no shipped recipe has "sudoku-tinny" in its name. Did you mean sudoku-tiny?' in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_shown_with_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("tasks", name) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{name}: ")
    for option in TASKS[name].model_fields:
        assert option == "type" or re.search(rf"^{option}\s", shown, re.MULTILINE)
    assert "xample row" in shown


def test_a_task_is_shown_with_an_example_row(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("tasks", "sudoku", "min_blanks=5", "max_blanks=5") == 0
    row = TASKS["sudoku"].model_validate({"min_blanks": 5, "max_blanks": 5}).rows("train", 1)[0]
    shown = capsys.readouterr().out.splitlines()
    assert [f"prompt: {row['prompt']}", f"answer: {row['answer']}"] == shown[-3:-1]
    assert unmask("tasks", "dataset", f"path={places}/rows.jsonl", "prompt_column=question") == 0
    assert re.search(r"^prompt: \d{16}=$", capsys.readouterr().out, re.MULTILINE)
    assert unmask("tasks", "sudku") == 2
    check(message(capsys), "ConfigError", '"sudku"', '"sudoku"')
    assert unmask("tasks", "sudoku", "min_blank=5") == 2
    assert 'Did you mean "min_blanks"?' in message(capsys)


@pytest.mark.slow
def test_eval_takes_settings_as_train_does(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "eval.json"
    settings = ["task.type=sudoku", "task.min_blanks=5", "sampler.num_steps=2", "sampler.order=random", "seed=3"]
    settings += ["evaluation.num_rows=3", "evaluation.temperatures=[0,0.9]", "evaluation.split=validation"]
    # A setting wins over the option that is its short name.
    assert unmask("eval", tiny_model, *settings, "--rows", 5, "--output", output) == 0
    facts = json.loads(output.read_text())
    assert (facts["task"]["min_blanks"], facts["split"], facts["seed"], facts["order"]) == (
        5,
        "validation",
        3,
        "random",
    )
    assert [(r["steps"], r["temperature"], r["num_rows"]) for r in facts["results"]] == [(2, 0.0, 3), (2, 0.9, 3)]
    capsys.readouterr()
    for override, *words in (
        ("temperature=1", '"temperature"', '"sampler.temperature"'),
        ("optim.learning_rate=1", '"optim.learning_rate"', "unmask train"),
        ("sampler.ordr=random", "sampler", '"ordr"', '"order"'),
        ("sampler.num_steps=17", "num_steps = 17", "max_completion_length = 16"),
    ):
        assert unmask("eval", tiny_model, "--task", "sudoku", override) == 2
        check(message(capsys), "ConfigError", *words)


HOSTILE = "\x1b]0;owned\x07\x1b[2J"


def test_no_text_of_a_row_a_file_or_a_model_controls_the_terminal(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{i}=", "answer": HOSTILE, HOSTILE: 1}) + "\n" for i in range(10, 40))
    )
    options = ["--task", "dataset", "--option", f"path={rows}", "--length", 4, "--steps", 2]
    unmask("sample", tiny_model, *options)
    unmask("sample", tiny_model, *options, "--option", "prompt_column=text")
    unmask("tasks", "dataset", f"path={rows}")
    unmask("data", "check", "dataset", "--option", f"path={rows}")
    hostile_model = tmp_path / "model"
    shutil.copytree(tiny_model, hostile_model)
    config = json.loads((hostile_model / "config.json").read_text())
    (hostile_model / "config.json").write_text(json.dumps(config | {"architectures": [HOSTILE]}))
    unmask("sample", hostile_model, "--prompt", "1=")
    unmask("eval", hostile_model, "--task", "sudoku")
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "owned" in shown
    # rich may write colours, and nothing else.
    assert not re.findall(r"\x1b(?!\[[0-9;]*m)", shown)
    assert "\x07" not in shown


def test_a_warning_does_not_control_the_terminal() -> None:
    unmask("--version")
    # The handler of warnings where nobody has set another, as pytest has.
    handler = logging.lastResort
    assert handler is not None
    record = logging.LogRecord("unmask", logging.WARNING, "", 0, "a column %s", (HOSTILE,), None)
    assert handler.format(record) == "a column ␛]0;owned␇␛[2J"


def test_a_name_without_a_folder_asks_the_hub_only_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unreachable(self: object, name: str, **_: object) -> None:
        asked.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr(
        "transformers.PreTrainedConfig.get_config_dict", lambda *_, **__: pytest.fail("asked the hub once more")
    )
    assert unmask("eval", "typo", "--task", "sudoku") == 2
    assert asked == ["typo"]
    check(message(capsys), "ModelError", "typo", str(Path.cwd()), snapshot=False)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("--version") == 0
    assert capsys.readouterr().out == f"unmask {package.__version__}\n"


@pytest.mark.slow
def test_the_demo_pretrains_trains_and_compares_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import unmask.cli.demo as demo

    load, load_recipe = demo.load, demo.load_recipe
    monkeypatch.setattr(demo, "load", lambda kind, name, given: load(kind, name, [*given, *PRETRAIN]))
    monkeypatch.setattr(
        demo, "load_recipe", lambda name, given: load_recipe(name, [*given, *TRAIN, "log_rollouts_steps=3"])
    )
    assert unmask("demo", "--output-dir", tmp_path / "demo", "--seed", 3) == 0
    first = capsys.readouterr()
    # The evaluation after the last step has a line of its own.
    last = re.findall(r"^(pretrain|train) step 6/6  (\w+)", first.err, flags=re.MULTILINE)
    assert last == [("pretrain", "loss"), ("train", "loss"), ("train", "solved")]
    lines = metrics(tmp_path / "demo" / "egspo_sa")
    for sampling, temperature in (("greedy", "0"), ("sampled at 0.9", "0.9")):
        base, trained = (line[f"eval/test@{temperature}/accuracy"] for line in (lines[0], lines[-1]))
        (row,) = re.findall(rf"^\W*{sampling}\s.*", first.out, flags=re.MULTILINE)
        assert re.findall(r"[+-]?\d\.\d{3}", row)[-1] == f"{trained - base:+.3f}"
    assert (tmp_path / "demo" / "egspo_sa" / "curve.png").is_file()
    assert f"unmask sample {tmp_path / 'demo' / 'egspo_sa' / 'final'} --task sudoku" in first.out

    def stopped(*_: Any) -> None:
        raise RunStoppedError(3, 6, tmp_path / "demo", signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "pretrain", lambda *_, **__: stopped())
        assert unmask("demo", "--output-dir", tmp_path / "demo", "--seed", 3) == 130
    # The demo always resumes and has no such option.
    assert message(capsys).endswith("To continue, give the same command again.")

    before = weights(tmp_path / "demo" / "base"), weights(tmp_path / "demo" / "egspo_sa")
    assert unmask("demo", "--output-dir", tmp_path / "demo", "--seed", 3) == 0
    assert " step " not in capsys.readouterr().err
    assert (weights(tmp_path / "demo" / "base"), weights(tmp_path / "demo" / "egspo_sa")) == before
    assert unmask("demo", "--output-dir", tmp_path / "demo", "--seed", 4) == 2
    assert message(capsys).endswith("seed: 3 -> 4")
