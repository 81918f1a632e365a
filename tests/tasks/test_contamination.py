"""Overlap between splits, counted by hand on a small example and measured on real splits."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import unmask
from unmask.core.errors import DataError
from unmask.tasks import Split, Sudoku
from unmask.tasks.contamination import Overlap, check_splits

LONG = "a train leaves the station at noon with forty people and stops at every village on the way home"


def row(prompt: Any, answer: str | None = None) -> dict[str, Any]:
    return {"prompt": prompt} | ({} if answer is None else {"answer": answer})


def found(overlaps: list[Overlap], split: str = "test") -> dict[str, tuple[int, int]]:
    return {o.kind: (o.num_found, o.num_rows) for o in overlaps if o.held_out == split}


def test_a_leaky_toy_is_counted_by_hand() -> None:
    splits: dict[Split, list[Any]] = {
        "train": [row("What is 2 + 2?", "4"), row(f"{LONG} . How many?", "40"), row("Name a colour", "red")],
        "validation": [row("Name a metal", "tin")],
        "test": [
            row("what is  2+2?", "four"),  # the same but for case and white space
            row("What is 2 + 2?", "4"),  # and again: one distinct prompt
            row(f"Long ago, {LONG}. Who?", "Ann"),  # shares 13-grams, begins and ends otherwise
            row("What is 2 - 2?", "0"),
            row("Count to forty", "40"),
        ],
    }
    overlaps = check_splits(splits)
    assert found(overlaps) == {"prompt": (1, 4), "answer": (2, 5), "n-gram": (2, 4)}
    assert found(overlaps, "validation") == {"prompt": (0, 1), "answer": (0, 1), "n-gram": (0, 1)}
    by_kind = {o.kind: o for o in overlaps if o.held_out == "test"}
    assert by_kind["prompt"].examples == ("what is  2+2?",)
    assert by_kind["prompt"].share == 0.25
    assert by_kind["answer"].examples == ("4", "40")


def test_n_is_the_length_of_what_must_be_shared() -> None:
    splits: dict[Split, list[Any]] = {
        "train": [row("one two three four five")],
        "test": [row("zero two three four six")],
    }
    assert [found(check_splits(splits, n=n))["n-gram"][0] for n in (1, 3, 4)] == [1, 1, 0]


def test_an_instruction_that_all_prompts_share_is_not_an_overlap() -> None:
    def messages(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{LONG} {LONG}. Question: {text}. {LONG}"}]

    splits: dict[Split, list[Any]] = {
        "train": [row(messages("how much is seven times eight")), row(messages("how tall is a tree"))],
        "test": [row(messages("who was the first king")), row(messages("how tall  is a Tree"))],
    }
    assert found(check_splits(splits)) == {"prompt": (1, 2), "answer": (0, 0), "n-gram": (1, 2)}


@pytest.mark.slow
def test_sudoku_is_split_by_solution_and_a_split_by_puzzle_leaks_nearly_every_answer() -> None:
    task = Sudoku()
    splits = {name: task.rows(name, 3000) for name in ("train", "validation", "test")}
    overlaps = found(check_splits(splits))
    assert overlaps["answer"] == (0, 88)
    assert overlaps["prompt"][0] == overlaps["n-gram"][0] == 0
    # The same puzzles, split at random as released data is: 288 grids cannot be kept apart.
    distinct = {r["prompt"]: r for rows in splits.values() for r in rows}
    dealt = list(distinct.values())
    random.Random(0).shuffle(dealt)
    leaky = found(check_splits({"train": dealt[500:], "test": dealt[:500]}))
    assert leaky["prompt"][0] == 0
    assert leaky["answer"][0] == leaky["answer"][1] > 200


@pytest.mark.parametrize("splits", [{}, {"train": []}, {"test": [row("x")]}])
def test_without_training_rows_there_is_nothing_to_check(splits: Any) -> None:
    with pytest.raises(DataError, match="needs rows of the train split"):
        check_splits(splits)
    with pytest.raises(DataError, match="n = 0"):
        check_splits({"train": [row("x")]}, n=0)


# --- the command ---


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_the_command_ends_with_1_if_prompts_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = written(tmp_path / "train.jsonl", [row(f"question {i}", str(i)) for i in range(40)])
    leaky = written(tmp_path / "leaky.jsonl", [row("Question  7", "7"), row("question 99", "99")])
    clean = written(tmp_path / "clean.jsonl", [row("question 98", "7"), row("question 99", "99")])
    check = ["data", "check", "dataset", f"--option=path={train}"]
    assert unmask(*check, f"--option=test_path={leaky}") == 1
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("test") and "prompt" in x)
    assert line.split()[:5] == ["test", "prompt", "2", "1", "50.0%"]
    assert "'Question  7'" in line
    assert unmask(*check, f"--option=test_path={clean}") == 0
    assert unmask("data", "check", "sudku") == 2


def test_a_file_too_small_for_a_validation_split_is_checked_all_the_same(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", [row("question 1", "1")])
    test = written(tmp_path / "test.jsonl", [row("question 2", "2")])
    check = ["data", "check", "dataset", f"--option=path={train}"]
    assert unmask(*check, f"--option=test_path={test}") == 0
    assert unmask(*check) == 2  # nothing held out at all


@pytest.mark.slow
def test_the_command_finds_no_shared_solution_in_sudoku(capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("data", "check", "sudoku", "--rows", 1000, "--option", "format=tagged") == 0
    lines = [x.split()[:4] for x in capsys.readouterr().out.splitlines() if " answer " in x]
    assert lines == [["validation", "answer", "24", "0"], ["test", "answer", "88", "0"]]


@pytest.mark.parametrize("name", ["rows.csv", "rows.TSV", "rows.json", "rows.jsonl.gz"])
def test_the_command_reads_every_kind_of_file_and_names_or_leaves_out_bad_rows(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"question {i}", "answer": str(i)} for i in range(60)] + [{"prompt": " ", "answer": "1"}]
    sign = "\t" if name.endswith("TSV") else ";"
    content = {
        "json": json.dumps(rows),
        "gz": "".join(json.dumps(one) + "\n" for one in rows),
    }.get(
        name.rpartition(".")[2],
        "".join(f"{a}{sign}{b}\n" for a, b in [("prompt", "answer"), *(r.values() for r in rows)]),
    )
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    check = ["data", "check", "dataset", f"--option=path={path}"]
    assert unmask(*check) == 2
    assert f"1 of 61 rows of {path} cannot be used" in capsys.readouterr().err.replace("\n", " ")
    assert unmask(*check, "--option=unusable_rows=drop") == 0
    assert "unusable examples left out: 1, the first" in capsys.readouterr().out.replace("\n", " ")
