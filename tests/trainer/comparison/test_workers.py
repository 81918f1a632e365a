"""Tests of the processes that run the jobs of a comparison."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.trainer.comparison.workers import InThisProcess, Processes


def number_of_threads() -> dict[str, Any]:
    """Do the work of a job that only looks at its process."""
    return {"threads": torch.get_num_threads()}


@pytest.mark.slow
def test_a_job_has_one_thread_wherever_it_runs_and_its_process_keeps_its_own_number() -> None:
    job: Any = SimpleNamespace(run=number_of_threads)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with InThisProcess() as here, Processes(1) as elsewhere:
            assert here.start(job).result() == elsewhere.start(job).result() == {"threads": 1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
