"""Whole runs on tasks whose answers are programs, with a tiny model that solves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.runs import metrics, unmask

ROWS = [
    {
        "text": f"Add {i}.",
        "code": f"def f(x):\n    return x + {i}",
        "test_list": [f"assert f({x}) == {x + i}" for x in (1, 5)],
    }
    for i in range(40)
]
SIZE = ("max_steps=2", "save_steps=2", "optim.warmup_steps=1", "num_rows=20")
TINY = "tiny={num_layers: 1, width: 16, num_heads: 2, max_length: 160}"
TRAIN = (
    "num_prompts=2",
    "num_generations=2",
    "log_rollouts_steps=0",
    "sampler={max_completion_length: 9, num_steps: 3, order: random}",
    "evaluation={num_rows: 4, eval_steps: 0}",
)


@pytest.mark.parametrize("name", ["mbpp", "program"])
@pytest.mark.slow
def test_a_tiny_model_is_pretrained_and_trained_on_programs(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    source = f", source: {tmp_path}/rows.jsonl" if name == "mbpp" else ""
    task = f"task: {{type: {name}, format: bare{source}}}\n"
    (tmp_path / "base.yaml").write_text(task)
    (tmp_path / "run.yaml").write_text(
        f"{task}model: {tmp_path}/base/final\nmethod: {{type: egspo_sa, num_selected: 2}}\n"
    )

    assert unmask("pretrain", tmp_path / "base.yaml", *SIZE, "batch_size=4", TINY, f"output_dir={tmp_path}/base") == 0
    assert unmask("train", tmp_path / "run.yaml", *SIZE, *TRAIN, f"output_dir={tmp_path}/run") == 0
    last = metrics(tmp_path / "run")[-1]
    shares = [
        last[f"rewards/{name}/{reason}"] for reason in ("unparsed", "failed", "error", "timed_out", "unsupported")
    ]
    # Each completion passes or has one reason. An untrained model writes no program.
    assert 0 < sum(shares) <= 1
    assert (
        last[f"rewards/{name}/mean"] <= 1 - sum(shares) + last[f"rewards/{name}/failed"] + last[f"rewards/{name}/error"]
    )
    assert last["step"] == 2


def test_a_sandbox_that_does_not_exist_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("task: {type: program}\nmodel: nowhere\nmethod: {type: egspo}\n")
    assert unmask("train", tmp_path / "run.yaml", "task.sandbox.backend=gvisor") == 2
    assert "task.sandbox.backend" in capsys.readouterr().err
