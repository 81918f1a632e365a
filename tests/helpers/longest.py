"""The files that take longest, which start first when several processes run the tests."""

from __future__ import annotations

LONGEST = (
    "tests/trainer/test_distributed.py",
    "tests/trainer/comparison/test_run.py",
    "tests/docs/test_commands.py",
    "tests/trainer/test_golden.py",
    "tests/trainer/test_every_method.py",
    "tests/trainer/test_cluster.py",
    "tests/cli/estimate/test_estimate.py",
    "tests/test_benchmark.py",
    "tests/rewards/sandbox/test_hostile.py",
    "tests/cli/test_cli.py",
    "tests/cli/test_hostile_runs.py",
    "tests/models/test_whole_path.py",
    "tests/trainer/test_kills.py",
)
"""Paths below the root of the repository, the longest first."""
