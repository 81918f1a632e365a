"""The card in final/: what the hub reads, what a person reads, and a push that cannot lose a
run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from torch import nn

from tests.helpers.messages import raises
from tests.helpers.rows import write
from tests.helpers.runs import metrics, pretrain_recipe, train_recipe, unmask, unmask_train, weights
from unmask.core.errors import ConfigError
from unmask.evaluation.model_card import pretraining_card, training_card
from unmask.methods import METHODS
from unmask.methods.papers import PAPERS
from unmask.recipes.load import load_recipe
from unmask.trainer import Trainer
from unmask.trainer.pretrain import pretrain

LINES = [
    {
        "step": 0,
        "eval/test@0/accuracy": 0.25,
        "eval/test@0/low": 0.125,
        "eval/test@0/high": 0.5,
        "eval/test@0/reward": 0.3,
    },
    {"step": 1, "compute/token_passes": 600.0, "rewards/mine/mean": 0.5}
    | {"eval/test@0/accuracy": 0.75, "eval/test@0/low": 0.5, "eval/test@0/high": 0.875, "eval/test@0/reward": 0.8}
    | {"eval/test@0/forwards": 6.5, "eval/test@0/tokens_per_forward": 2.25},
]
DATA = {
    "train": {"source": "openai/gsm8k:main", "revision": "abc", "sha256": "f00d", "num_rows": 60, "num_unusable": 0}
}


class Hub:
    """Stands in for the hub's API."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.calls, self.error = [], error
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))

    def upload_folder(self, **options: Any) -> None:
        if self.error:
            raise self.error
        options["files"] = sorted(path.name for path in Path(options["folder_path"]).iterdir())
        self.calls.append((options["repo_id"], options))


def model() -> nn.Module:
    return nn.Linear(1, 1)


@pytest.mark.slow
def test_a_run_leaves_a_card_that_the_hub_reads(tiny_model: Path, tmp_path: Path) -> None:
    assert unmask_train(tiny_model, tmp_path / "run") == 0
    text = (tmp_path / "run" / "final" / "README.md").read_text(encoding="utf-8")
    card, last = ModelCard(text), metrics(tmp_path / "run")[-1]
    assert {"unmask", "masked-diffusion", "egspo_sa"} <= set(card.data.tags or [])
    # A local folder is not a model on the hub.
    assert card.data.base_model is None
    values = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    for temperature, said in (("0", "greedy"), ("0.9", "sampled at 0.9")):
        accuracy, low, high = (last[f"eval/test@{temperature}/{key}"] for key in ("accuracy", "low", "high"))
        assert values[f"solved share, {said} (95 % interval {low:.3f} to {high:.3f})"] == pytest.approx(accuracy)
        assert f"| test | {said} | " in text
        assert f"{accuracy:.3f} ({low:.3f} to {high:.3f})" in text
    assert str(tiny_model) in text
    assert "Kunde, Vishnu Teja" in text
    assert "torch 2." in text


def test_the_recipe_on_a_card_is_the_recipe(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", "seed=7")
    card = training_card(recipe, LINES, {}, [{"prompt": "1=", "answer": "1"}], model())
    (block,) = re.findall(r"## Recipe\n\n```yaml\n(.*?)```", card, flags=re.DOTALL)
    (tmp_path / "again.yaml").write_text(block)
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_the_card_names_base_data_and_results_with_intervals() -> None:
    recipe = load_recipe(
        "sudoku-tiny", ["model=GSAI-ML/LLaDA-8B-Instruct", "task={type: gsm8k}", "push_to_hub=me/mine"]
    )
    card = training_card(recipe, LINES, DATA, [], model())
    found = ModelCard(card).data
    assert (found.base_model, found.datasets) == ("GSAI-ML/LLaDA-8B-Instruct", ["openai/gsm8k"])
    assert "| train rows | openai/gsm8k:main at abc, 60 rows, sha256 `f00d` |" in card
    assert (
        "| rows | sampling | solved before (95 %) | solved after (95 %) | mean reward | forwards (tokens each) |\n"
        "|---|---|---|---|---|---|\n"
        "| test | greedy | 0.250 (0.125 to 0.500) | 0.750 (0.500 to 0.875) | 0.800 | 6.5 (2.25) |\n\n"
    ) in card
    part = training_card(recipe, LINES, DATA | {"used": {"train": {"num_rows": 48, "sha256": "0"}}}, [], model())
    assert "| train rows | openai/gsm8k:main at abc, 60 rows, of which 48 were used, sha256 `f00d` |" in part
    assert "| rewards | `mine` |" in card
    assert "| token passes | 600 |" in card
    assert "# mine\n" in card


@pytest.mark.slow
def test_every_method_is_cited() -> None:
    for name, method in METHODS.items():
        recipe = load_recipe("sudoku-tiny").model_copy(update={"method": method()})
        card = training_card(recipe, LINES, {}, [], model())
        numbers = re.findall(r"\d{4}\.\d{5}", method.paper)
        assert numbers
        assert all(PAPERS[number] in card for number in numbers), name


def test_a_paper_that_is_not_in_the_list_is_cited_by_its_number() -> None:
    class Mine(METHODS["wd1"]):
        paper = "arXiv:1706.03762"

    recipe = load_recipe("sudoku-tiny").model_copy(update={"method": Mine()})
    card = training_card(recipe, LINES, {}, [], model())
    assert "```bibtex\n@article{arxiv1706_03762,\n" in card


@pytest.mark.parametrize(
    ("paper", "said"),
    [
        ("", "is not a part of unmask and states no paper"),
        ("a talk", "a talk"),
    ],
)
def test_a_method_without_a_known_citation_says_so(paper: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["egspo_sa"], "paper", paper)
    card = training_card(load_recipe("sudoku-tiny"), LINES, {}, [], model())
    assert said in card.partition("## Citation")[2]
    assert "bibtex" not in card


def test_a_run_without_evaluations_has_a_card_too() -> None:
    card = training_card(load_recipe("sudoku-tiny", []), [{"step": 1, "reward": 0.5}], {}, [], model())
    assert "The run measured no accuracy." in card
    assert ModelCard(card).data.eval_results is None


def test_a_pretrained_base_says_what_it_is(tmp_path: Path) -> None:
    folder = pretrain(pretrain_recipe(tmp_path / "base"))
    text = (folder / "final" / "README.md").read_text(encoding="utf-8")
    assert "trained from random weights on demonstrations of the task `sudoku`" in text
    assert "plausible but mostly wrong" in text
    assert "pretraining" in (ModelCard(text).data.tags or [])
    recipe = pretrain_recipe(tmp_path / "b", "noise_share=0")
    assert "plausible but mostly wrong" not in pretraining_card(recipe, [], {}, model())


@pytest.mark.slow
def test_the_data_of_a_run_on_files_is_hashed_on_its_card(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i % 5}{i // 5}=", "answer": str(i % 5)} for i in range(25)]
    path = write(tmp_path / "rows.jsonl", rows)
    assert unmask_train(tiny_model, tmp_path / "run", f"task={{type: dataset, path: {path}}}") == 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    used = data["used"]["train"]["num_rows"]
    assert 0 < used < 25
    assert f"25 rows, of which {used} were used, sha256 `{data['train']['sha256']}`" in card
    # Its commands hold as they stand there.
    for command in re.findall(r"^unmask (.+)$", card, flags=re.MULTILINE):
        words = [word.replace("FOLDER", str(tmp_path / "run" / "final")) for word in command.split()]
        assert unmask(*words, *(["--output", tmp_path / "x.json"] if words[0] == "eval" else [])) == 0


# --- the push ---


@pytest.mark.slow
def test_a_finished_model_is_pushed_with_its_card(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    assert unmask_train(tiny_model, tmp_path / "run", "push_to_hub=me/sudoku") == 0
    (created, _), (uploaded, options) = hub.calls
    assert created == uploaded == "me/sudoku"
    assert options["folder_path"] == tmp_path / "run" / "final"
    assert {"README.md", "config.json", "model.safetensors"} <= set(options["files"])


@pytest.mark.slow
def test_a_push_that_fails_loses_nothing_and_says_how_to_do_it_later(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Hub(monkeypatch, OSError("no route to host\nand more"))
    assert unmask_train(tiny_model, tmp_path / "run", "push_to_hub=me/sudoku") == 0
    (said,) = (record.message for record in caplog.records if "pushed" in record.message)
    final = tmp_path / "run" / "final"
    assert "could not be pushed to me/sudoku (OSError: no route to host)" in said
    assert said.endswith(f"To push it later: hf auth login; hf upload me/sudoku {final}")
    assert unmask_train(tiny_model, tmp_path / "plain") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "plain")
    # The same command with --resume tries again, and may name another place.
    hub = Hub(monkeypatch)
    assert unmask_train(tiny_model, tmp_path / "run", "push_to_hub=me/other", "--resume") == 0
    assert [name for name, _ in hub.calls] == ["me/other", "me/other"]


def test_an_invalid_repository_name_is_refused_before_the_run() -> None:
    with raises(ConfigError, "push_to_hub", "a b"):
        load_recipe("sudoku-tiny", ["push_to_hub=a b"])


@pytest.mark.slow
def test_the_card_counts_the_rows_that_were_there_and_speaks_of_before_only_where_that_was_measured(
    tiny_model: Path, tmp_path: Path
) -> None:
    places = {"path": tmp_path / "rows.jsonl", "test_path": tmp_path / "held-out.jsonl"}
    for start, place in enumerate(places.values()):
        items = [{"prompt": f"{start}{i % 5}{i // 5}=", "answer": str(i % 5)} for i in range(24)]
        place.write_text("".join(json.dumps(item) + "\n" for item in items))
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from unmask.rewards import per_completion\n\n@per_completion\n"
        "def right(completions, answer, **_):\n    return [float(c == a) for c, a in zip(completions, answer)]\n"
        "right.per_completion = True\n"
    )
    rows = [f"task.{key}={place}" for key, place in places.items()]
    settings = ("task.type=dataset", "task.format=bare", "num_rows=20", f"reward_funcs=[{mine}:right]", *rows)
    once = train_recipe(tiny_model, tmp_path / "once", *settings, "evaluation.num_rows=256", "evaluation.eval_steps=0")
    card = (Trainer(once).train() / "final" / "README.md").read_text()
    assert "256 rows" not in card
    assert "On 24 rows that training never saw. Measured once, after step 6." in card
    assert "| rows | sampling | solved after (95 %) | mean reward |" in card
    twice = train_recipe(tiny_model, tmp_path / "twice", *settings, "evaluation.num_rows=20", "evaluation.eval_steps=3")
    card = (Trainer(twice).train() / "final" / "README.md").read_text()
    assert "On 20 rows that training never saw. Before is step 0, after is step 6." in card
    assert "| rows | sampling | solved before (95 %) | solved after (95 %) | mean reward |" in card
