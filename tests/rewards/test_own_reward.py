"""The README's "Your own reward" as a reader would follow it: its files, a CSV, one command."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.runs import metrics, unmask
from unmask.models import TinyConfig, char_tokenizer, save_model, tiny_denoiser
from unmask.runs.saved_rollouts import SavedRollout

README = (ROOT / "README.md").read_text(encoding="utf-8")


def file_in_readme(name: str) -> str:
    """Return the code block that begins with a comment of the file's name."""
    (block,) = re.findall(rf"```\w+\n# {re.escape(name)}\n(.*?)```", README, flags=re.DOTALL)
    return str(block)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the README's two files, rows with commas and line breaks, and a tiny model."""
    for name in ("my_reward.py", "mine.yaml"):
        (tmp_path / name).write_text(file_in_readme(name))
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "answer", "source"])
        writer.writeheader()
        writer.writerows({"prompt": f"{i},{i}\n=", "answer": f" {2 * i} ", "source": "me"} for i in range(60))
    tokenizer = char_tokenizer("\n 0123456789,=")
    model = tiny_denoiser(TinyConfig(num_layers=1, width=16, num_heads=2, max_length=96), tokenizer, seed=0)
    save_model(model, tokenizer, tmp_path / "path" / "to" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ["max_steps=2", "num_prompts=2", "num_generations=2", "sampler.num_steps=4", "evaluation.num_rows=4"]


@pytest.mark.slow
def test_the_files_of_the_readme_train_on_a_csv(place: Path) -> None:
    assert len([line for line in file_in_readme("my_reward.py").splitlines() if line]) <= 5
    overrides = [*SMALL, "log_rollouts_steps=1", "log_rollouts_groups=2"]
    assert unmask("train", "mine.yaml", *overrides) == 0
    run = place / "runs" / "mine"
    lines = metrics(run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "rewards/short_and_right/mean" in lines[1]
    # The reward is the README's: 1 for the correct text, minus a hundredth for each character.
    saved = SavedRollout.load(run / "rollouts" / "step-00000001.safetensors")
    for text, reward in zip(saved.completions, saved.rollout.reward.tolist(), strict=True):
        assert reward == pytest.approx(-0.01 * len(text), abs=1e-6) or reward == pytest.approx(1 - 0.01 * len(text))
    assert lines[1]["reward"] == pytest.approx(sum(saved.rollout.reward.tolist()) / 4)


@pytest.mark.slow
def test_the_same_rows_and_reward_are_evaluated(place: Path) -> None:
    options = ["--option", "path=rows.csv", "--reward", "my_reward.py:short_and_right", "--length", 8, "--rows", 3]
    assert unmask("eval", "path/to/model", "--task", "dataset", *options, "--output", "mine.json") == 0
    assert len((place / "mine.jsonl").read_text().splitlines()) == 3


def test_a_csv_without_a_column_of_the_reward_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (place / "rows.csv").read_text().replace("prompt,answer,source", "prompt,solution,source")
    (place / "rows.csv").write_text(text)
    assert unmask("train", "mine.yaml", *SMALL) == 2
    message = capsys.readouterr().err
    assert 'reward function "short_and_right" needs the column "answer", which the rows do not have.' in message
    assert "They have: prompt, solution, source." in message
