"""Two ranks whose rollouts are sampled ahead end together, with a checkpoint, if a server fails one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import exit_codes_of_two, said, train_by_command
from tests.helpers.runs import steps_saved
from tests.helpers.servers import running
from unmask.functional.noise import named_generator
from unmask.models import load_model
from unmask.sampling.encoding import row_seeds
from unmask.sampling.remote.app import make_app
from unmask.sampling.remote.format import FormatError
from unmask.sampling.remote.served import ServedModel


@pytest.mark.slow
@pytest.mark.parametrize("eval_steps", [0, 2], ids=["before a step", "before an evaluation"])
def test_a_server_that_fails_one_rank_ends_both_with_a_checkpoint(
    eval_steps: int, tiny_model: Path, tmp_path: Path
) -> None:
    served = ServedModel(load_model(tiny_model), "model", tmp_path)
    generate, last = served.generate, int(row_seeds(4, named_generator(0, "rollout", 2))[-1])

    def failing(content: Any, working: Any) -> Any:
        # Only the second rank asks for the last completion of the third step.
        if last in content["unmask"]["seeds"]:
            raise FormatError("the server is broken.")
        return generate(content, working)

    served.generate = failing  # type: ignore[method-assign]
    with running(make_app(served)) as url:
        engine = {"type": "http", "urls": f"[{url}]", "weights_dir": tmp_path, "max_staleness": 1}
        settings = (
            *(f"rollout_engine.{name}={value}" for name, value in engine.items()),
            "save_steps=100",
            f"evaluation.eval_steps={eval_steps}",
            "method.num_selected=2",
        )
        assert exit_codes_of_two(train_by_command, tiny_model, tmp_path / "run", settings, timeout=60) == [2, 2]
    assert steps_saved(tmp_path / "run") == [2]
    lines = said(tmp_path / "run")
    assert lines
    assert all("the server is broken" in line and "EngineError" in line for line in lines), lines
