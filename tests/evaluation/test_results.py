"""Evaluations on disk and compared: known verdicts give known differences, and what does not belong
together is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from unmask.core.errors import DataError, RunError
from unmask.evaluation.evaluate import Evaluation
from unmask.evaluation.results import (
    Comparison,
    Earlier,
    check_output,
    compare,
    data_facts,
    default_place,
    items_path,
    save,
)
from unmask.functional.paired import mcnemar_exact
from unmask.models import Denoiser
from unmask.runs.environment import environment, weights_hash
from unmask.tasks import Sudoku

BEFORE = [True] * 20 + [False] * 20


def evaluation(solved: list[bool], samples: int = 1, **fields: Any) -> Evaluation:
    items = [
        {"row": i // samples, "sample": i % samples, "prompt": f"p{i // samples}", "completion": "x", "solved": right}
        for i, right in enumerate(solved)
    ]
    result = Evaluation(
        num_rows=len(solved) // samples,
        num_solved=sum(solved),
        accuracy=sum(solved) / len(solved),
        low=0.0,
        high=1.0,
        reward=0.0,
        reward_se=0.0,
        temperature=0.0,
        length=128,
        steps=64,
        forwards=64.0,
        tokens_per_forward=2.0,
        items=items,
        samples=samples,
    )
    return replace(result, **fields)


def compared(before: Evaluation, now: Evaluation, folder: Path) -> Comparison:
    save(folder / "before.json", {}, [before])
    (comparison,) = compare([now], Earlier.read(folder / "before.jsonl"))
    return comparison


def test_known_changes_give_the_difference_the_rows_and_the_exact_test(tmp_path: Path) -> None:
    now = [True] * 19 + [False] + [True] * 8 + [False] * 12
    found = compared(evaluation(BEFORE), evaluation(now), tmp_path)
    assert (found.num_rows, found.before, found.now) == (40, 0.5, 27 / 40)
    assert found.difference == pytest.approx(7 / 40)
    assert (found.gained, found.lost) == ([*range(20, 28)], [19])
    assert found.p_value == mcnemar_exact(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert 0 < found.low < found.difference < found.high
    assert compared(evaluation(now), evaluation(BEFORE), tmp_path).difference == pytest.approx(-7 / 40)


def test_the_same_share_on_other_rows_is_not_a_difference(tmp_path: Path) -> None:
    found = compared(evaluation(BEFORE), evaluation(BEFORE[::-1]), tmp_path)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low < 0 < found.high


def test_several_samples_are_compared_by_their_share_and_not_tested_as_single_ones(tmp_path: Path) -> None:
    before, now = evaluation([True, False] * 10, 2), evaluation([True, True] * 5 + [True, False] * 5, 2)
    found = compared(before, now, tmp_path)
    assert (found.before, found.now, found.p_value) == (0.5, 0.75, None)
    assert (found.gained, found.lost) == ([0, 1, 2, 3, 4], [])


def test_settings_are_paired_by_name_and_single_ones_whatever_they_are(tmp_path: Path) -> None:
    other = {"steps": 32}
    save(tmp_path / "a.json", {}, [evaluation(BEFORE), evaluation(BEFORE[::-1], **other)])
    both = compare([evaluation(BEFORE), evaluation(BEFORE, **other)], Earlier.read(tmp_path / "a.jsonl"))
    assert [(c.setting, c.against) for c in both] == [((128, 64, 0.0, "fixed"),) * 2, ((128, 32, 0.0, "fixed"),) * 2]
    assert [len(c.gained) for c in both] == [0, 20]
    single = compared(evaluation(BEFORE), evaluation(BEFORE, **other), tmp_path)
    assert (single.setting, single.against) == ((128, 32, 0.0, "fixed"), (128, 64, 0.0, "fixed"))
    with raises(DataError, "length 128", "64 steps"):
        compare([evaluation(BEFORE, steps=8), evaluation(BEFORE, steps=4)], Earlier.read(tmp_path / "a.json"))


def test_other_rows_and_other_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    with raises(DataError, "39 examples", "40"):
        compared(evaluation(BEFORE[:39]), evaluation(BEFORE), tmp_path)
    with raises(DataError, "completions for each example is 2 in"):
        compared(evaluation(BEFORE, 2), evaluation(BEFORE[:20]), tmp_path)


@pytest.mark.parametrize("text", ["", "no json\n", '{"row": 1}\n', "[1]\n", '{"length": "x"}\n', "\x00"])
def test_a_file_without_an_evaluation_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with raises(DataError, "a.jsonl"):
        Earlier.read(tmp_path / "a.jsonl")
    with raises(DataError, "cannot be read"):
        Earlier.read(tmp_path / "none.jsonl")


def test_saved_results_are_read_back_and_an_unwritable_path_is_an_error(tmp_path: Path) -> None:
    result = evaluation(BEFORE)
    found = compared(result, result, tmp_path)
    place = tmp_path / "new" / "a.json"
    save(place, {"model": "m"}, [result], [found])
    tree = json.loads((tmp_path / "new" / "a.json").read_text())
    assert tree["results"] == [json.loads(json.dumps(result.summary()))]
    assert tree["compared"][0]["p_value"] == 1.0
    assert json.loads(items_path(place).read_text().splitlines()[3]) == {
        "length": 128,
        "steps": 64,
        "temperature": 0.0,
        "schedule": "fixed",
        **result.items[3],
    }
    (tmp_path / "file").write_text("")
    with raises(RunError, "cannot be written"):
        save(tmp_path / "file" / "a.json", {}, [result])
    with raises(RunError, "cannot be written"):
        check_output(tmp_path / "file" / "a.json")
    check_output(place)
    assert sorted(path.name for path in place.parent.iterdir()) == ["a.json", "a.jsonl"]


def test_rows_of_the_same_prompts_and_other_answers_are_other_rows(tmp_path: Path) -> None:
    def answered(answer: str | None) -> Evaluation:
        result = evaluation(BEFORE)
        return replace(result, items=[item | {"answer": answer} for item in result.items])

    with raises(DataError, "row 0", "'4'", "'5'"):
        compared(answered("4"), answered("5"), tmp_path)
    assert compared(answered("4"), answered("4"), tmp_path).num_rows == 40
    assert compared(answered(None), answered("4"), tmp_path).num_rows == 40  # of before answers were kept


def test_what_cannot_be_compared_is_known_before_the_evaluation(tmp_path: Path) -> None:
    save(tmp_path / "a.json", {}, [evaluation(BEFORE)])
    earlier = Earlier.read(tmp_path / "a.json")
    rows = [{"prompt": f"p{i}"} for i in range(40)]
    earlier.check(rows, [(128, 64, 0.0)], 1)
    for other, settings, samples in (
        (rows[:39], [(128, 64, 0.0)], 1),
        ([*rows, {"prompt": "p40"}], [(128, 64, 0.0)], 1),
        (rows[::-1], [(128, 64, 0.0)], 1),
        (rows, [(128, 64, 0.0)], 2),
        (rows, [(128, 32, 0.0), (64, 32, 0.0)], 1),
    ):
        with raises(DataError, "a.json"):
            earlier.check(other, settings, samples)


def test_the_data_hash_is_that_of_the_rows() -> None:
    task = Sudoku()
    rows = task.rows("test", 5)
    facts = data_facts(task, rows)
    assert facts["num_rows"] == 5
    assert facts == data_facts(task, task.rows("test", 5))
    changed = [*rows[:4], rows[4] | {"answer": "1" * 16}]
    others = [data_facts(task, other)["sha256"] for other in (rows[:4], rows[::-1], changed)]
    assert len({facts["sha256"], *others}) == 4


def test_where_rows_come_from_is_kept_where_a_task_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Sudoku()
    assert "source" not in data_facts(task, task.rows("test", 1))
    source = {"test": {"source": "rows.parquet", "sha256": "abc"}}
    monkeypatch.setattr(Sudoku, "provenance", lambda self: source)
    assert data_facts(task, task.rows("test", 1))["source"] == source


def test_other_settings_get_another_file_and_another_batch_size_the_same() -> None:
    facts = {"task": {"type": "sudoku"}, "split": "test", "model": "m", "batch_size": 4, "environment": {}}
    place = default_place(facts)
    assert place == default_place(facts | {"batch_size": 8, "environment": {"cpu": "x"}})
    assert place != default_place(facts | {"model": "n"})


def test_the_environment_names_device_precision_and_versions(lively: Denoiser) -> None:
    facts = environment(lively)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["device"], facts["dtype"], facts["accelerator"]) == ("cpu", "float32", None)
    assert environment(lively.bfloat16())["dtype"] == "bfloat16"
    assert facts["versions"]["torch"] == torch.__version__
    assert {"unmask", "python", "transformers", "accelerate"} <= facts["versions"].keys()
    assert facts["cpu"]
    assert facts["cores"] >= 1


def test_the_weights_hash_is_that_of_the_weights(lively: Denoiser) -> None:
    before = weights_hash(lively)
    assert len(before) == 64
    assert weights_hash(lively) == before
    with torch.no_grad():
        next(lively.parameters()).view(-1)[0] += 1e-6
    changed = weights_hash(lively)
    assert len({before, changed, weights_hash(lively.bfloat16())}) == 3
