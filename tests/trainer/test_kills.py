"""A sample of benchmark/kills.py: one point of each kind, and what is on file of all of them."""

from __future__ import annotations

import json

import pytest

from benchmark.kills import PLAN, RESULTS, Bench, Point, can_mount, points, run, table
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs" / "distributed.md"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kills"))


def sample(kind: str, processes: int, preset: str) -> Point:
    wanted = (kind, processes, preset)
    return next(point for point in points(None, seed=11) if (point.kind, point.processes, point.preset) == wanted)


@pytest.mark.parametrize(
    ("kind", "processes", "preset"),
    [
        ("one rank", 2, "ddp"),
        ("during a save", 1, "ddp"),
        ("disk full", 1, "ddp"),
        ("during a save", 2, "zero3"),
        ("during a save", 2, "fsdp2"),
    ],
)
def test_a_run_that_is_struck_at_a_random_point_and_resumed_is_the_uninterrupted_one(
    bench: Bench, kind: str, processes: int, preset: str
) -> None:
    if preset == "zero3":
        pytest.importorskip("deepspeed")
    if kind == "disk full" and not can_mount():
        pytest.skip("a small file system can be mounted by root alone")
    result = run(bench, sample(kind, processes, preset), [each[:3] for each in PLAN].index((kind, processes, preset)))
    assert result["ok"], result


def test_points_are_those_of_their_seed() -> None:
    assert points(None, 3) == points(None, 3) != points(None, 4)
    assert len(points(None, 3)) == sum(count for *_, count in PLAN) - (0 if can_mount() else 6)
    assert [point.kind for point in points(5, 3)] == [
        points(None, 3)[i * len(points(None, 3)) // 5].kind for i in range(5)
    ]


def test_at_least_thirty_points_are_on_file_all_as_promised_and_the_docs_show_them() -> None:
    results = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    assert len(results) >= 30
    assert all(result["ok"] and result["weights_equal"] and result["metrics_equal"] for result in results)
    assert table(results) in DOCS.read_text()
