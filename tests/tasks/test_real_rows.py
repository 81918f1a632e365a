"""The whole way on rows of GSM8K's and MATH's kind, from local files, with a tiny character model.

What is shown is the plumbing: a model of this size solves none of them, and nobody should expect it
to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import metrics, unmask
from unmask.models import load_model
from unmask.tasks.source import content_hash

GSM8K = [
    {
        "question": f"Tim’s box holds {i} pens, costing {i} €. How many in {i % 7} boxes?",
        "answer": f"{i * (i % 7)}\n#### {i * (i % 7):,}",
    }
    for i in range(2, 62)
]
MATH = [
    {"problem": f"Simplify $\\sqrt{{{2 * i * i}}}$.", "answer": f"{i}\\sqrt{{2}}" if i % 3 else str(i)}
    for i in range(2, 62)
]

TINY = ("max_steps=3", "save_steps=3", "optim.warmup_steps=1", "num_rows=40")
PRETRAIN = (*TINY, "batch_size=4", "tiny={num_layers: 1, width: 16, num_heads: 2, max_length: 128}")
TRAIN = (
    *TINY,
    "num_prompts=2",
    "num_generations=2",
    "log_rollouts_steps=0",
    "sampler={max_completion_length: 12, num_steps: 4, order: random}",
    "method={type: egspo_sa, num_selected: 2}",
    "evaluation={num_rows: 4, eval_steps: 0}",
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def recipe(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize(("name", "rows"), [("gsm8k", GSM8K), ("math", MATH)])
@pytest.mark.slow
def test_a_tiny_model_is_pretrained_and_trained_on_rows_of_a_file(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "math":
        pytest.importorskip("math_verify")
    train, test = write(tmp_path / "train.jsonl", rows[:50]), write(tmp_path / "test.jsonl", rows[50:])
    task = f"task: {{type: {name}, format: bare, source: {train}, test_source: {test}}}"
    base = recipe(tmp_path / "base.yaml", task)
    run = recipe(tmp_path / "run.yaml", task, f"model: {tmp_path}/base/final", "method: {type: egspo_sa}")

    assert unmask("pretrain", base, *PRETRAIN, f"output_dir={tmp_path}/base") == 0
    # The alphabet is that of the rows; an unknown character would stop the run.
    _, tokenizer = load_model(str(tmp_path / "base" / "final"))
    problems = "".join(row.get("question", row.get("problem", "")) for row in rows)
    answers = "".join(row["answer"].rpartition("####")[2].strip() for row in rows)
    assert set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) == set(problems + answers + "\n")

    assert unmask("train", run, *TRAIN, f"output_dir={tmp_path}/run") == 0
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] == 3
    assert 0 <= last[f"rewards/{name}/unparsed"] <= 1
    assert (f"rewards/{name}/timeout" in last) == (name == "math")
    assert 0 <= last["eval/test@0/accuracy"] <= 1
    for folder in ("base", "run"):
        data = json.loads((tmp_path / folder / "data.json").read_text())
        assert data["train"]["sha256"] == content_hash(rows[:50])
        assert data["test"] == {
            "source": test,
            "revision": None,
            "sha256": content_hash(rows[50:]),
            "num_rows": 10,
            "num_unusable": 0,
        }

    # Changed rows make another run.
    write(tmp_path / "test.jsonl", rows[49:])
    assert unmask("train", run, *TRAIN, f"output_dir={tmp_path}/run", "--resume") == 2
    message = capsys.readouterr().err
    assert "data.test.sha256: " in message
    assert "data.test.num_rows: 10 -> 11" in message


@pytest.mark.slow
def test_a_reward_that_hangs_on_some_completions_runs_in_workers_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\nfrom unmask.rewards import per_completion\n\n@per_completion\ndef fickle(completions, answer, **columns):\n"
        "    if any(len(text) % 2 for text in completions):\n        time.sleep(60)\n    return [1.0] * len(completions)\n"
    )
    task = f"task: {{type: gsm8k, format: bare, source: {write(tmp_path / 'rows.jsonl', GSM8K)}}}"
    assert unmask("pretrain", recipe(tmp_path / "base.yaml", task), *PRETRAIN, f"output_dir={tmp_path}/base") == 0
    run = recipe(tmp_path / "run.yaml", task, f"model: {tmp_path}/base/final", "method: {type: egspo}")
    workers = (
        f"reward_funcs=['{tmp_path}/mine.py:fickle']",
        "reward_workers=2",
        "reward_item_timeout=0.1",
        "max_steps=1",
    )
    assert unmask("train", run, *TRAIN, *workers, "evaluation.split=validation", f"output_dir={tmp_path}/run") == 0
    (line,) = metrics(tmp_path / "run")[-1:]
    # An untrained model writes texts of every length.
    assert line["rewards/fickle/timeout"] > 0
    assert line["rewards/fickle/mean"] == 1 - line["rewards/fickle/timeout"]
