"""Rows that a model cannot use: named or left out before the first step, by training, pretraining
and evaluation alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import metrics, unmask, weights
from unmask.core.errors import DataError, RunError
from unmask.evaluation.usable import faults_for, usable_rows
from unmask.models import char_tokenizer, tiny_denoiser
from unmask.models.tiny import TinyConfig
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.rewards import per_completion
from unmask.sampling.encoding import prompt_faults
from unmask.tasks import Dataset, Sudoku
from unmask.tasks.base import stable_hash
from unmask.trainer import Trainer
from unmask.trainer.pretrain import pretrain

LONG = "2" * 60
TOO_LONG = (
    "a prompt of 60 tokens and max_completion_length = 4 do not fit into the model's 16 positions. Shorten one of them"
)
ROWS: list[dict[str, Any]] = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10, 90)]
TEST: list[dict[str, Any]] = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(10, 20)]
TINY = TinyConfig(num_layers=1, width=16, num_heads=2, max_length=16)


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with 16 positions that knows the digits."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = char_tokenizer("0123456789+=")
    tiny_denoiser(TINY, tokenizer, 0).backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overrides(base: Path, output: Path, path: Any, test: Any, *more: str) -> list[str]:
    return [
        f"model={base}",
        f"output_dir={output}",
        "task.type=dataset",
        f"task.path={path}",
        f"task.test_path={test}",
        "sampler={max_completion_length: 4, num_steps: 2}",
        "method.num_selected=1",
        "num_prompts=2",
        "num_generations=2",
        "max_steps=6",
        "save_steps=2",
        "log_rollouts_steps=0",
        "evaluation={num_rows: 4, eval_steps: 3}",
        *more,
    ]


def recipe(base: Path, output: Path, path: Any, test: Any, *more: str) -> TrainRecipe:
    return load_recipe("sudoku-tiny", overrides(base, output, path, test, *more))


# --- faults of prompts ---


def test_prompts_that_do_not_fit_and_that_cannot_be_encoded_differ() -> None:
    tokenizer = char_tokenizer("0123456789+=")
    denoiser = tiny_denoiser(TINY, tokenizer, 0)
    found = prompt_faults(
        denoiser, tokenizer, ["1" * 12, "1" * 13, "abc", "1", "1" * 13, [{"role": "user", "content": "1"}]], 4
    )
    assert [found[0], found[3]] == [None, None]
    assert found[1] == found[4]
    for fault, words in (
        (found[1], ["13 tokens", "max_completion_length = 4", "16 positions"]),
        (found[2], ["tokenizer", "'abc'"]),
        (found[5], ["chat template"]),
    ):
        assert all(word in str(fault) for word in words)


def test_a_generated_task_names_its_rows_and_has_no_setting() -> None:
    task = Sudoku()
    tokenizer = char_tokenizer(task.alphabet)
    faults = faults_for(task, tiny_denoiser(TINY, tokenizer, 0), tokenizer, 16, needs_answer=True)
    with raises(DataError, "5 rows", "sudoku", "row 1"):
        usable_rows({"test": task.candidates("test", 5)}, faults)


def test_demonstrations_that_do_not_fit_are_faults_where_they_are_learnt(tmp_path: Path) -> None:
    tokenizer = char_tokenizer("0123456789+=")
    task = Dataset(
        path=written(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "1+1=", "answer": "12345"}]), unusable_rows="drop"
    )
    denoiser = tiny_denoiser(TINY, tokenizer, 0)
    pool = {"train": task.candidates("train", 1000)}
    for is_learnt, count in ((True, 1), (False, 0)):
        faults = faults_for(task, denoiser, tokenizer, 4, needs_answer=True, is_learnt=is_learnt)
        assert len(usable_rows(pool, faults).left_out) == count


def test_an_example_left_out_of_two_splits_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = Dataset(path=written(tmp_path / "rows.jsonl", [*ROWS, {"prompt": ""}]), unusable_rows="drop")
    pools = {"train": task.candidates("train", 1000), "evaluation": task.candidates("test", 1000)}
    usable = usable_rows(pools, lambda rows: [None] * len(rows))
    assert usable.left_out == (f"{tmp_path}/rows.jsonl, line 81: the prompt is empty.",)
    assert "unusable examples left out: 1 (" in caplog.text
    assert usable.record()["left_out"]["num_rows"] == 1


# --- runs ---


@pytest.mark.parametrize(("where", "line"), [("train", 41), ("test", 6)])
@pytest.mark.slow
def test_a_row_that_is_too_long_is_named_before_the_first_step(
    base: Path, tmp_path: Path, where: str, line: int
) -> None:
    bad = {"prompt": LONG, "answer": "1"}
    train = [*ROWS[:40], bad, *ROWS[40:]] if where == "train" else ROWS
    test = [*TEST[:5], bad, *TEST[5:]] if where == "test" else TEST
    paths = written(tmp_path / "train.jsonl", train), written(tmp_path / "test.jsonl", test)
    with pytest.raises(DataError) as caught:
        Trainer(recipe(base, tmp_path / "run", *paths, "evaluation.num_rows=100"))
    assert f"{where}.jsonl cannot be used:\n  line {line}: a prompt of 60 tokens and" in str(caught.value)
    assert "task.unusable_rows=drop" in str(caught.value)
    assert not (tmp_path / "run").exists()
    # The command line says the same, and goes on once the row is gone.
    command = ["train", "sudoku-tiny", *overrides(base, tmp_path / "run", *paths, "evaluation.num_rows=100")]
    assert unmask(*command) == 2
    written(Path(paths[where == "test"]), [row for row in (train if where == "train" else test) if row is not bad])
    assert unmask(*command, "--resume") == 0


@pytest.mark.slow
def test_a_run_that_drops_rows_is_the_run_without_them_and_resumes_after_they_are_removed(
    base: Path, tmp_path: Path
) -> None:
    bad: list[Any] = [{"prompt": LONG, "answer": "1"}, {"prompt": "", "answer": "1"}, {"prompt": 7, "answer": "1"}]
    clean = written(tmp_path / "clean.jsonl", ROWS), written(tmp_path / "clean-test.jsonl", TEST)
    mixed = (
        written(tmp_path / "mixed.jsonl", [bad[0], *ROWS[:50], *bad[1:], *ROWS[50:]]),
        written(tmp_path / "mixed-test.jsonl", [*TEST[:3], bad[0] | {"prompt": "3" * 60}, *TEST[3:]]),
    )
    (tmp_path / "mine.py").write_text(
        "from unmask.rewards import per_completion\n\n@per_completion\ndef ones(completions, **columns):\n"
        "    return [completion.count('1') for completion in completions]\n"
    )
    same = ["optim.lr_schedule=constant", f"reward_funcs=[{tmp_path}/mine.py:ones]"]
    Trainer(recipe(base, tmp_path / "clean", *clean, *same)).train()
    assert any(line.get("grad_norm") for line in metrics(tmp_path / "clean"))
    run = tmp_path / "run"
    Trainer(recipe(base, run, *mixed, *same, "task.unusable_rows=drop", "max_steps=4")).train()
    data = json.loads((run / "data.json").read_text())
    assert data["left_out"] == {
        "num_rows": 4,
        "rows": [
            f"{mixed[0]}, line 52: the prompt is empty.",
            f"{mixed[0]}, line 53: the prompt is neither text nor a list of chat messages, but '7' (int).",
            f"{mixed[0]}, line 1: {TOO_LONG}",
            f"{mixed[1]}, line 4: {TOO_LONG}",
        ],
    }
    # The rows are removed from both files, and the setting from the recipe: the run goes on as if
    # they had never been there.
    written(Path(mixed[0]), ROWS)
    written(Path(mixed[1]), TEST)
    Trainer(recipe(base, run, *mixed, *same), resume=True).train()
    assert weights(run) == weights(tmp_path / "clean")
    assert metrics(run)[1:4] == metrics(tmp_path / "clean")[1:4]
    assert metrics(run)[-1] == metrics(tmp_path / "clean")[-1]


@pytest.mark.slow
def test_another_row_among_those_that_are_used_forbids_resuming(base: Path, tmp_path: Path) -> None:
    paths = written(tmp_path / "train.jsonl", ROWS), written(tmp_path / "test.jsonl", TEST)
    Trainer(recipe(base, tmp_path / "run", *paths)).train()
    used = next(i for i, row in enumerate(ROWS) if stable_hash(row["prompt"]) % 10)
    others = (
        [*ROWS[:used], *ROWS[used + 1 :]],
        [*ROWS, ROWS[used]],
        [*ROWS[:used], ROWS[used] | {"answer": "0"}, *ROWS[used + 1 :]],
        [ROWS[used + 1], ROWS[used], *ROWS[:used], *ROWS[used + 2 :]],
    )
    for rows in others:
        written(tmp_path / "train.jsonl", rows)
        with raises(RunError, "data.train.sha256", "data.used.train.sha256"):
            Trainer(recipe(base, tmp_path / "run", *paths), resume=True)
    written(tmp_path / "train.jsonl", ROWS)
    Trainer(recipe(base, tmp_path / "run", *paths), resume=True)


@pytest.mark.slow
def test_a_row_without_an_answer_is_a_fault_for_the_tasks_own_rewards_alone(base: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "1+1=", "answer": None}]
    paths = written(tmp_path / "train.jsonl", rows), written(tmp_path / "test.jsonl", TEST)
    with raises(DataError, "line 81", "answer"):
        Trainer(recipe(base, tmp_path / "own", *paths))
    Trainer(recipe(base, tmp_path / "mine", *paths), reward_funcs=[_one])


@per_completion
def _one(completions: list[str], **columns: Any) -> list[float | None]:
    return [1.0] * len(completions)


@pytest.mark.slow
def test_pretraining_and_evaluation_name_the_row_too(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"prompt": LONG, "answer": "1"}
    path = written(tmp_path / "train.jsonl", [*ROWS, bad])
    settings = [f"task={{type: dataset, path: {path}}}", "max_steps=2", f"output_dir={tmp_path}/pre", "num_rows=1000"]
    shape = ["tiny={num_layers: 1, width: 16, num_heads: 2, max_length: 16}", "batch_size=4", "noise_share=0"]
    with raises(DataError, "train.jsonl", "line 81", "60 tokens"):
        pretrain(load(PretrainRecipe, "sudoku-tiny-base", [*settings, *shape]))
    folder = pretrain(load(PretrainRecipe, "sudoku-tiny-base", [*settings, *shape, "task.unusable_rows=drop"]))
    assert json.loads((folder / "data.json").read_text())["left_out"]["num_rows"] == 1
    assert "| rows left out | 1 unusable rows |" in (folder / "final" / "README.md").read_text()
    test = written(tmp_path / "test.jsonl", [*TEST, bad])
    evaluation = [
        "eval",
        base,
        "--task",
        "dataset",
        "--option",
        f"path={path}",
        "--option",
        f"test_path={test}",
        "--length",
        4,
    ]
    output = tmp_path / "found.json"
    assert unmask(*evaluation, "--output", output) == 2
    assert "line 11: a prompt of 60 tokens" in capsys.readouterr().err.replace("\n", " ").replace("  ", " ")
    assert unmask(*evaluation, "--output", output, "--option", "unusable_rows=drop") == 0
    found = json.loads(output.read_text())
    assert (found["data"]["num_rows"], found["left_out"]["num_rows"]) == (10, 1)


# --- rows given in Python ---


@pytest.mark.slow
def test_rows_given_in_python_are_kept_in_the_run_folder_and_resumed_from_the_command_line(
    base: Path, tmp_path: Path
) -> None:
    files = written(tmp_path / "train.jsonl", ROWS), written(tmp_path / "test.jsonl", TEST)
    Trainer(recipe(base, tmp_path / "files", *files)).train()
    short = recipe(base, tmp_path / "run", *files, "max_steps=4", "optim.lr_schedule=constant")
    given = short.model_copy(update={"task": Dataset(path=ROWS, test_path=TEST)})  # type: ignore[arg-type]
    Trainer(given).train()
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    kept = Path(data["train"]["source"])
    assert kept.parent == tmp_path / "run" / "rows"
    assert [json.loads(line) for line in kept.read_text().splitlines()] == ROWS
    expected = json.loads((tmp_path / "files" / "data.json").read_text())
    assert data["used"] == expected["used"]
    assert data["train"]["sha256"] == expected["train"]["sha256"]
    # From Python with the same rows, from the recorded recipe alone, and not with others.
    Trainer(given.model_copy(update={"max_steps": 5}), resume=True).train()
    assert unmask("train", tmp_path / "run" / "config.yaml", "max_steps=6", "--resume") == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 6
    other = given.model_copy(update={"task": Dataset(path=ROWS[1:], test_path=TEST)})  # type: ignore[arg-type]
    with raises(RunError, "task.path"):
        Trainer(other, resume=True)
    assert "rows/" in (tmp_path / "run" / "final" / "README.md").read_text()


# --- answers as reward functions see them ---


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_reward_may_compare_texts_and_is_stopped_where_it_compares_a_number_with_an_answer(
    base: Path, tmp_path: Path, name: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [row | {"answer": int(row["answer"])} for row in ROWS]
    path = tmp_path / name
    if name == "rows.csv":
        path.write_text("prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in numbers))
    else:
        written(path, numbers)
    (tmp_path / "mine.py").write_text(
        "from unmask.rewards import per_completion\n\n"
        "@per_completion\ndef texts(completions, answer, **columns):\n"
        "    assert all(type(a + '') is str for a in answer)\n"
        "    return [float(a == str(int(a))) for a in answer]\n\n"
        "@per_completion\ndef numbers(completions, answer, **columns):\n"
        "    return [float(7 == a) for a in answer]\n"
    )
    more = [f"reward_workers={workers}", "max_steps=1", "task.test_path=null"]
    command = ["train", "sudoku-tiny", *overrides(base, tmp_path / "run", path, "null", *more)]
    assert unmask(*command, f"reward_funcs=[{tmp_path}/mine.py:texts]") == 0
    assert metrics(tmp_path / "run")[-1]["reward"] == 1.0
    again = [argument.replace("/run", "/again") for argument in command]
    assert unmask(*again, f"reward_funcs=[{tmp_path}/mine.py:numbers]") == 2
    assert "is text and never equals the number 7" in capsys.readouterr().err.replace("\n", " ")
