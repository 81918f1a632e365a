"""A few rows of GSM8K's kind, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RAW = [
    {
        "question": f" {i} bags of {i} nuts?",
        "answer": f"There are {i} * {i} = <<{i}*{i}={i * i}>>{i * i:,}.\n#### {i * i:,}",
    }
    for i in range(1, 81)
]


def write(path: Path, rows: list[Any]) -> str:
    """A jsonl file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files(folder: Path) -> dict[str, str]:
    """The options of a task on two files: 60 rows to train on, 20 to test."""
    return {"source": write(folder / "train.jsonl", RAW[:60]), "test_source": write(folder / "test.jsonl", RAW[60:])}
