"""Folders that tests read: the repository, its committed test data, and the data that lies beside the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
DATA = ROOT / "tests" / "data"
"""Mini checkpoints and tokenizers, committed."""
RESULTS = ROOT / "benchmark" / "results"
"""Committed results of experiments."""
SHARED = ROOT / ".." / "shared"
"""Data that is not a part of the repository; tests that read it skip where it is absent."""
