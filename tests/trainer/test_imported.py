"""Recorded answers become a saved rollout with rewards, texts and prompts, by the command line too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import check, raises
from tests.helpers.runs import unmask
from tests.helpers.sglang import exchanges, write_lines
from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError
from unmask.core.records import Rollout, Trajectory
from unmask.models import Policy, load_model
from unmask.report.film import Vocabulary, film_of
from unmask.rewards.scorer import Scorer
from unmask.runs.saved_rollouts import SavedRollout
from unmask.sampling.encoding import decode
from unmask.sampling.engine import LocalEngine
from unmask.tasks.sudoku import Sudoku
from unmask.trainer.imported import import_rollouts
from unmask.trainer.recorder import pieces_of

ROWS = Sudoku().rows("train", 2, 0)


@pytest.fixture(scope="module")
def recording(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trajectory, Policy]:
    """File of recorded answers with rewards and examples, the rollout that it describes, and its policy."""
    policy = load_model(tiny_model)
    sampler = SamplerConfig(max_completion_length=16, num_steps=8, temperature=0.9)
    prompts = [row["prompt"] for row in ROWS for _ in range(2)]
    path = LocalEngine(policy).rollout(prompts, sampler, torch.arange(4))
    lines = exchanges(path, [0.5, 1.0, 0.0, 0.25], logprobs=True)
    for index, line in enumerate(lines):
        line["row"] = ROWS[index // 2]
    return write_lines(tmp_path_factory.mktemp("recorded") / "a.jsonl", lines), path, policy


def test_the_saved_rollout_has_the_rewards_texts_and_prompts_of_the_file(
    recording: tuple[Path, Trajectory, Policy], tmp_path: Path
) -> None:
    file, path, policy = recording
    import_rollouts(file, policy).saved.save(tmp_path / "out.safetensors")
    saved = SavedRollout.load(tmp_path / "out.safetensors")
    assert saved.rollout.reward.tolist() == [0.5, 1.0, 0.0, 0.25]
    assert saved.rollout.group_size == 2
    assert saved.completions == decode(policy.tokenizer, path.tokens)
    assert saved.prompts == [row["prompt"] for row in ROWS]
    assert saved.answers == [row["answer"] for row in ROWS]
    film, _ = film_of(saved, 1, {}, Vocabulary([saved]))
    assert sum(len(group["members"]) for group in film["groups"]) == 4


def test_the_saved_rollout_is_the_file_that_our_own_sampler_saves(
    recording: tuple[Path, Trajectory, Policy], tmp_path: Path
) -> None:
    file, path, policy = recording
    rollout = Rollout(path, 2, torch.tensor([0.5, 1.0, 0.0, 0.25]))
    SavedRollout(
        rollout,
        decode(policy.tokenizer, path.tokens),
        [row["prompt"] for row in ROWS],
        [row["answer"] for row in ROWS],
        pieces_of(policy.tokenizer, rollout),
    ).save(tmp_path / "own.safetensors")
    import_rollouts(file, policy).saved.save(tmp_path / "imported.safetensors")
    own, other = (SavedRollout.load(tmp_path / f"{name}.safetensors") for name in ("own", "imported"))
    assert (own.completions, own.prompts, own.answers, own.pieces) == (
        other.completions,
        other.prompts,
        other.answers,
        other.pieces,
    )
    assert torch.equal(own.rollout.reward, other.rollout.reward)
    ours, theirs = own.rollout.trajectory, other.rollout.trajectory
    assert ours.tensors().keys() == theirs.tensors().keys()
    for name in ours.tensors().keys() - {"seed", "logprob", "entropy"}:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("logprob", "entropy"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=0)
    # The sampler settings are the same ones, with their defaults filled in.
    assert ours.sampler.model_dump() | {"block_length": 16} == theirs.sampler.model_dump()


def test_a_task_scores_the_completions(recording: tuple[Path, Trajectory, Policy]) -> None:
    file, path, policy = recording
    scorer = Scorer(Sudoku().rewards())
    expected = scorer([ROWS[i // 2] for i in range(4)], decode(policy.tokenizer, path.tokens)).total
    assert import_rollouts(file, policy, Scorer(Sudoku().rewards())).saved.rollout.reward.tolist() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("missing", ["reward", "row"])
def test_an_answer_whose_reward_is_not_known_is_refused(
    recording: tuple[Path, Trajectory, Policy], tmp_path: Path, missing: str
) -> None:
    file, _, policy = recording
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[2][missing]
    scorer = Scorer(Sudoku().rewards()) if missing == "row" else None
    with raises(DataError, "line 3", missing):
        import_rollouts(write_lines(tmp_path / "a.jsonl", lines), policy, scorer)


def test_the_command_says_what_it_read(
    recording: tuple[Path, Trajectory, Policy],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, path, _ = recording
    output = tmp_path / "out.safetensors"
    assert unmask("import-rollouts", tiny_model, file, output, "--task", "sudoku") == 0
    printed = capsys.readouterr().out
    assert "rows read: 4, in groups of 2" in printed
    assert "log-probabilities of the engine: they differ from those of the model by" in printed
    assert torch.equal(SavedRollout.load(output).rollout.trajectory.unmask_step, path.unmask_step)
    assert unmask("import-rollouts", tiny_model, file, output) == 2
    check(capsys.readouterr().err, "exists already")
    assert unmask("import-rollouts", tiny_model, file, tmp_path / "out.json") == 2
    check(capsys.readouterr().err, ".safetensors")
