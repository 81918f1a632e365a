"""Rows in the format of GSM8K, and files with such rows."""

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
    """Write rows to a JSONL file and return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files(folder: Path) -> dict[str, str]:
    """Return the options of a task with two files: 60 rows for training and 20 for testing."""
    return {"source": write(folder / "train.jsonl", RAW[:60]), "test_source": write(folder / "test.jsonl", RAW[60:])}
