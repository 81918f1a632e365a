"""Lines of metrics: what is read, what is refused, and the keys of evaluations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers.messages import raises
from tests.helpers.runs import unmask
from unmask.core.errors import RunError
from unmask.runs.metrics import EvaluationPoint, evaluation_of, evaluations, parse_line, read_metrics, temperature_name


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "{",
            "[1]",
            "null",
            "3",
            '{"reward": 1}',
            '{"step": "1"}',
            '{"step": NaN}',
            '{"step": -1}',
            '{"step": 1.5}',
        ),
        f'{{"step": 1, "reward": 1{"0" * 400}}}',
        f'{{"step": 1{"0" * 400}}}',
        f'{{"step": 1, "reward": 1{"0" * 5000}}}',
        '{"step": 1, "reward": "high"}',
        '{"step": 1, "reward": null}',
        '{"step": 1, "reward": {"a": 1}}',
        f'{{"step": 1, "a": [1, 1{"0" * 400}]}}',
        '{"step": 1, "a": ' + "[" * 100_000,
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    assert parse_line(line) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    with raises(RunError, "metrics.jsonl", "line 2"):
        read_metrics(tmp_path)


@pytest.mark.slow
def test_odd_names_of_evaluations_do_not_stop_a_plot(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\nmethod: {type: '=cmd()'}\n")
    line = '{"step": %d, "reward": 1, "eval/test@x$y$/accuracy": 0.5, "eval/test@x$y$/low": 0.4, "eval/test@x$y$/high": 0.6}\n'
    (run / "metrics.jsonl").write_text(line % 1 + line % 2)
    assert unmask("plot", run, "--output", tmp_path / "a.png") == 0
    assert unmask("report", run) == 0
    assert temperature_name("x$y$") == "sampled at x$y$"


def test_an_evaluation_reads_back_from_the_line_that_it_is_written_to() -> None:
    points = [
        EvaluationPoint("validation", "0", 0.5, 0.4, 0.6, 1.0),
        EvaluationPoint("test", "0.9", 0.25, 0.2, 0.3, -1.0),
    ]
    line = {"step": 3, "loss": 0.1} | points[0].metrics() | points[1].metrics() | {"eval/best_step": 3}
    assert line["eval/test@0.9/high"] == 0.3
    assert evaluations(line) == points
    assert [point.label for point in points] == ["validation, greedy", "test, sampled at 0.9"]
    assert [line[point.key] for point in points] == [0.5, 0.25]
    assert evaluation_of(points[1].key) == ("test", "0.9")


def test_only_numbers_under_the_key_of_an_evaluation_are_one() -> None:
    (point,) = evaluations({"step": 1, "eval/test@0/accuracy": 1, "eval/test@0/low": [0.5], "eval/test@1/low": 0.5})
    assert (point.accuracy, point.temperature) == (1.0, "0")
    assert math.isnan(point.low)
    others = {"eval/accuracy": 0.5, "eval/test/accuracy": 0.5, "dpo/accuracy": 0.5, "eval/test@0/accuracy": [0.5]}
    assert evaluations(others) == []
    assert [key for key in others if evaluation_of(key)] == ["eval/test@0/accuracy"]


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}]


def test_a_folder_without_metrics_is_not_a_run(tmp_path: Path) -> None:
    with raises(RunError, "metrics.jsonl"):
        read_metrics(tmp_path)
