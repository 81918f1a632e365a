"""Tasks with rows from elsewhere: splits, left-out rows, and the origin of the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.messages import raises
from tests.helpers.rows import RAW, files, write
from unmask.core.errors import DataError
from unmask.tasks import TASKS
from unmask.tasks.base import stable_hash
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.source import content_hash


def test_validation_is_a_tenth_of_training_by_a_stable_hash_of_the_problem_and_never_of_test(
    tmp_path: Path,
) -> None:
    task = GSM8K(**files(tmp_path))
    shares = {split: {row["question"] for row in task.rows(split, 99)} for split in ("train", "validation", "test")}
    problems = [raw["question"].strip() for raw in RAW]
    assert shares["test"] == set(problems[60:])
    assert shares["validation"] == {q for q in problems[:60] if stable_hash(q) % 10 == 0}
    assert shares["train"] == set(problems[:60]) - shares["validation"]
    # The split does not depend on the wording of the prompt.
    bare = GSM8K(**files(tmp_path), format="bare")
    assert {row["question"] for row in bare.rows("validation", 99)} == shares["validation"]


def test_a_training_row_that_is_a_test_row_too_is_left_out(tmp_path: Path) -> None:
    task = GSM8K(source=write(tmp_path / "both.jsonl", RAW), test_source=files(tmp_path)["test_source"])
    kept = [row["question"] for split in ("train", "validation") for row in task.rows(split, 99)]
    assert sorted(kept) == sorted(raw["question"].strip() for raw in RAW[:60])
    assert task.provenance()["train"]["num_in_test"] == 20


def test_a_file_has_no_test_rows_of_its_own(tmp_path: Path) -> None:
    task = GSM8K(source=files(tmp_path)["source"])
    assert len(task.rows("train", 99)) + len(task.rows("validation", 99)) == 60
    with raises(DataError, "train.jsonl", "task.test_source", "validation"):
        task.rows("test", 1)
    with pytest.raises(DataError, match="unknown split"):
        task.rows("dev", 1)  # type: ignore[arg-type]


def test_a_hub_set_brings_its_own_test_split() -> None:
    assert GSM8K().sources() == ("openai/gsm8k:main", "openai/gsm8k:main")
    assert GSM8K(revision="abc")._revision("test") == "abc"
    assert GSM8K(test_source="owner/other", revision="abc")._revision("test") is None


def test_provenance_names_sources_hashes_and_counts(tmp_path: Path) -> None:
    assert GSM8K(**files(tmp_path)).provenance() == {
        "train": {
            "source": files(tmp_path)["source"],
            "revision": None,
            "sha256": content_hash(RAW[:60]),
            "num_rows": 60,
            "num_unusable": 0,
            "num_in_test": 0,
        },
        "test": {
            "source": files(tmp_path)["test_source"],
            "revision": None,
            "sha256": content_hash(RAW[60:]),
            "num_rows": 20,
            "num_unusable": 0,
        },
    }
    assert TASKS["sudoku"].model_validate({}).provenance() == {}


def test_length_and_alphabet_cover_every_row(tmp_path: Path) -> None:
    task = GSM8K(**files(tmp_path), format="bare")
    assert task.completion_length == len("6,400") + 1
    texts = [row["prompt"] + row["answer"] for split in ("train", "validation", "test") for row in task.rows(split, 99)]
    assert set("".join(texts)) <= set(task.alphabet)
    assert task.alphabet == "".join(sorted(set(task.alphabet)))
