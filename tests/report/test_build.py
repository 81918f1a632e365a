"""The page has the content of the run folder, and mistakes get helpful messages."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.paths import RESULTS
from tests.helpers.reports import hand_made, page_block, page_data, real_run, write_run
from tests.helpers.rollouts import as_version
from tests.helpers.runs import train_recipe, unmask
from unmask.core.errors import RunError
from unmask.core.text import MAX_CHARACTERS, visible
from unmask.functional.selection import step_sum
from unmask.report.build import write_report
from unmask.report.html import SCRIPTS, _file, embed, page
from unmask.runs.metrics import read_metrics
from unmask.runs.saved_rollouts import SavedRollout
from unmask.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_run(tiny_model, tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def made(run: Path) -> Path:
    return write_report([run]).path


def kept_of(run: Path, step: int) -> SavedRollout:
    return SavedRollout.load(run / "rollouts" / f"step-{step:08d}.safetensors")


def test_the_page_is_in_the_run_folder_and_has_a_film_of_every_kept_rollout(run: Path, made: Path) -> None:
    assert made == run / "report.html"
    (entry,) = page_data(made)["runs"]
    assert (entry["name"], entry["method"], entry["task"]) == ("mine", "egspo_sa", "sudoku")
    assert entry["films"] == [2, 4, 6]
    assert made.stat().st_size < 200_000


@pytest.mark.parametrize("step", [2, 6])
def test_a_film_is_the_kept_rollout(run: Path, made: Path, step: int, tiny_model: Path) -> None:
    film, kept = page_block(made, f"film-0-{step}"), kept_of(run, step)
    path, size = kept.rollout.trajectory, kept.rollout.group_size
    members = [member for group in film["groups"] for member in group["members"]]
    pieces = page_block(made, "pieces-0")
    arrays = film["arrays"]
    assert [[pieces[i] for i in row] for row in arrays["tokens"]] == [
        [kept.pieces[i] for i in row] for row in path.tokens.tolist()
    ]
    assert arrays["when"] == path.unmask_step.tolist()
    assert (torch.tensor(arrays["entropy"]) * 2e-4).sub(path.entropy).abs().max() <= 1.01e-4
    assert (torch.tensor(arrays["probability"]) / 0xFFFF).sub(path.logprob.exp()).abs().max() < 1e-5
    assert [m["reward"] for m in members] == pytest.approx(kept.rollout.reward.tolist(), abs=1e-5)
    assert [group["prompt"] for group in film["groups"]] == kept.prompts
    joint = step_sum(path.entropy.double(), path.unmask_step, path.num_steps)
    torch.testing.assert_close(torch.tensor(arrays["joint"]).double(), joint, atol=1e-5, rtol=0)
    advantage = train_recipe(tiny_model, run, "method.num_selected=2").method.advantage(kept.rollout)
    for row, member in enumerate(members):
        slots = {k: s for s, k in enumerate(path.selected_steps[row].tolist()) if k >= 0}
        assert member["selected"] == sorted(slots)
        assert {int(k): a for k, a in member["advantages"].items()} == pytest.approx(
            {k: float(advantage[row, slot]) for k, slot in slots.items()}, abs=1e-5
        )
    assert len(members) == 2 * size


def test_guesses_and_values_of_every_step_come_out_whole(run: Path, made: Path) -> None:
    film, kept = page_block(made, "film-0-4"), kept_of(run, 4)
    path, guesses = kept.rollout.trajectory, kept.guesses
    assert guesses is not None
    assert guesses.reward is not None
    assert kept.rollout.one_step_reward is not None
    members = [member for group in film["groups"] for member in group["members"]]
    pieces = page_block(made, "pieces-0")
    for row, member in enumerate(members):
        wrote = sorted(k for k in set(path.unmask_step[row].tolist()) if k < path.num_steps)
        assert [int(k) for k in member["guesses"]] == [int(k) for k in member["values"]] == wrote
        for k in wrote:
            guess = film["arrays"]["guesses"][member["guesses"][str(k)]]
            final = film["arrays"]["tokens"][row]
            texts = [pieces[f if g == 0xFFFF else g] for g, f in zip(guess, final, strict=True)]
            assert texts == [kept.pieces[i] for i in guesses.tokens[row, k].tolist()]
            assert member["values"][str(k)] == pytest.approx(float(guesses.reward[row, k]), abs=1e-5)
        # At the selected steps it is the rollout's own.
        for slot, k in enumerate(path.selected_steps[row].tolist()):
            assert member["values"][str(k)] == pytest.approx(float(kept.rollout.one_step_reward[row, slot]), abs=1e-5)


def test_a_sudoku_is_a_board_with_its_clues_and_others_are_text_or_code(made: Path, tmp_path: Path) -> None:
    group = page_block(made, "film-0-2")["groups"][0]
    assert group["layout"]["kind"] == "board"
    assert "".join(clue or "0" for clue in group["layout"]["clues"]) + "=" == group["prompt"]
    for task, kind in (("dataset", "text"), ("mbpp", "code"), ("sudoku", "text")):
        folder = hand_made(tmp_path / task, ["p"], [["a", "b"]], task={"type": task})
        assert page_block(write_report([folder]).path, "film-0-1")["groups"][0]["layout"]["kind"] == kind


def test_curves_are_the_lines_of_the_metrics(run: Path, made: Path) -> None:
    lines = read_metrics(run)
    curves = page_block(made, "run-0")
    assert curves["steps"] == [1, 2, 3, 4, 5, 6]
    assert curves["metrics"]["reward"] == pytest.approx([line["reward"] for line in lines[1:]], rel=1e-5)
    greedy = next(e for e in curves["evaluations"] if "greedy" in e["label"])
    name = "eval/test@0"
    expected = [
        [x["step"], *(x[f"{name}/{k}"] for k in ("accuracy", "low", "high", "forwards"))]
        for x in lines
        if f"{name}/low" in x
    ]
    assert greedy["points"] == expected
    selected = curves["heat"]["selected_by_step"]["values"]
    logged = [line["diffusion/selected_by_step"] for line in lines[1:]]
    assert [pytest.approx(column, abs=1e-5) for column in logged] == selected
    assert all(sum(column) == pytest.approx(2, abs=1e-4) for column in selected)
    assert curves["seconds"]["rollout"] == pytest.approx(sum(x.get("time/rollout", 0) for x in lines), abs=2e-3)


def test_a_long_run_is_drawn_in_means(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "long", [{"step": i, "reward": i % 2} for i in range(1, 5001)], {"seed": 0})
    curves = page_block(write_report([folder]).path, "run-0")
    assert curves["bin"] == 3
    assert curves["steps"][:2] == [3, 6]
    assert curves["steps"][-1] == 5000
    assert curves["metrics"]["reward"][:2] == pytest.approx([2 / 3, 1 / 3], abs=1e-5)


def test_actions_of_a_counterfactual_method_are_listed_with_their_credit(tiny_model: Path, tmp_path: Path) -> None:
    folder = real_run(tiny_model, tmp_path / "ca", "method={type: egspo_ca, num_selected: 1, num_actions: 6}")
    film, kept = page_block(write_report([folder]).path, "film-0-2"), kept_of(folder, 2)
    path, rewards = kept.rollout.trajectory, kept.rollout.branch_reward
    assert path.branch_tokens is not None
    assert rewards is not None
    for row, member in enumerate(m for group in film["groups"] for m in group["members"]):
        (step,) = member["selected"]
        assert path.selected_steps[row].tolist() == [step]
        branches = member["fills"][str(step)]
        assert sum(fill["times"] for fill in branches) == 6
        assert sum(fill["times"] * fill["reward"] for fill in branches) == pytest.approx(
            float(rewards[row, 0].sum()), abs=1e-3
        )
        assert sum(fill["advantage"] for fill in branches) == pytest.approx(0, abs=1e-4)
        assert len(branches) == len({tuple(fill) for fill in path.branch_tokens[row, 0].tolist()})


def test_a_method_with_one_credit_for_a_completion_says_so(tiny_model: Path, tmp_path: Path) -> None:
    folder = real_run(tiny_model, tmp_path / "whole", "method={type: espo}", "log_rollouts_guesses=0")
    kept = kept_of(folder, 2)
    advantage = train_recipe(tiny_model, folder, "method.type=espo").method.advantage(kept.rollout)
    film = page_block(write_report([folder]).path, "film-0-2")
    members = [member for group in film["groups"] for member in group["members"]]
    off_path = [row for row, member in enumerate(members) if member["whole"] is not None]
    assert off_path
    for row in off_path:
        assert members[row]["whole"] == pytest.approx(float(advantage[row]), abs=1e-5)
    assert all(member["guesses"] == {} and member["values"] == {} for member in members)


def test_a_smaller_number_of_rollouts_is_evenly_spaced(run: Path, tmp_path: Path) -> None:
    for count, films in ((1, [2]), (2, [2, 6]), (0, []), (9, [2, 4, 6])):
        entry = page_data(write_report([run], tmp_path / "r.html", count).path)["runs"][0]
        assert entry["films"] == films
        assert bool(entry["shown"]) == (count < 3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"log_rollouts_steps": 0}, "Train with log_rollouts_steps above 0"),
        ({"log_rollouts_steps": 25}, "every 25 training steps and has not reached the first; log_rollouts_steps=1"),
        ({}, "Pretraining has no rollouts"),
    ],
)
def test_a_run_without_rollouts_says_why_and_how_to_keep_some(tmp_path: Path, config: Any, said: str) -> None:
    folder = write_run(tmp_path / "bare", [{"step": 1, "loss": 2.0}], {"seed": 0, "task": {"type": "sudoku"}} | config)
    entry = page_data(write_report([folder]).path)["runs"][0]
    assert (entry["films"], entry["method"]) == ([], "pretraining")
    assert said in entry["shown"]


def test_a_run_that_diverged_has_a_report_all_the_same(tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run", ["p"], [["a", "b"], ["a", "c"]])
    file = folder / "rollouts" / "step-00000001.safetensors"
    kept = SavedRollout.load(file)
    kept.rollout.reward[0] = math.nan
    kept.save(file)
    evaluated = {"eval/test@0/accuracy": 0.5, "eval/test@0/low": 0.1, "eval/test@0/high": 0.9}
    broken = {"reward": math.nan, "time/rollout": math.inf, "diffusion/entropy_by_step": [math.nan, 1.0]}
    lines = [
        {"step": 1, "reward": 0.5} | evaluated,
        {"step": 2} | broken | evaluated | {"eval/test@0/accuracy": math.nan},
        # Of another version: without an interval, without a temperature.
        {"step": 3, "reward": 0.5, "eval/test@0/accuracy": 0.5, "eval/test/accuracy": 0.5},
    ]
    write_run(folder, lines, {"seed": 0})
    made = write_report([folder]).path
    curves = page_block(made, "run-0")
    assert curves["metrics"]["reward"] == [0.5, None, 0.5]
    assert curves["heat"]["entropy_by_step"]["values"] == [[None, 1.0]]
    assert [e["points"] for e in curves["evaluations"]] == [[[1, 0.5, 0.1, 0.9, None]]]
    rewards = [member["reward"] for member in page_block(made, "film-0-1")["groups"][0]["members"]]
    assert rewards == [None, 1.0]


def test_runs_share_charts_and_have_distinct_names_from_their_paths(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "c"):
        write_run(tmp_path / name, [{"step": 1, "reward": 1.0}], {"seed": 0})
    made = write_report([tmp_path / "a/run", tmp_path / "b/run", tmp_path / "c"])
    assert [entry["name"] for entry in page_data(made.path)["runs"]] == ["a/run", "b/run", f"{tmp_path.name}/c"]
    with raises(RunError, "twice"):
        write_report([tmp_path / "c", tmp_path / "c"])


def test_a_comparison_is_the_numbers_of_its_table(tmp_path: Path) -> None:
    import csv

    folder = RESULTS / "controls-tiny"
    (comparison,) = page_data(write_report([folder], tmp_path / "c.html").path)["comparisons"]
    rows = list(csv.DictReader((folder / "table.csv").open()))
    seen = 0
    for task in comparison["tasks"]:
        for method in task["methods"]:
            for temperature, (mean, half, low, high) in method["accuracy"].items():
                (row,) = [
                    r for r in rows
                    if (r["task"], r["method"], r["minus"]) == (task["name"], method["name"], "")
                    and float(r["temperature"]) == float(temperature)
                ]  # fmt: skip
                expected = [float(row[key]) for key in ("accuracy", "half_width", "low", "high")]
                assert [mean, half, low, high] == pytest.approx(expected, abs=1e-5)
                seen += 1
        for difference in task["differences"]:
            method, baseline = difference["name"].split(" − ")
            for temperature, (mean, half, low, high) in difference["by"].items():
                (row,) = [
                    r for r in rows
                    if (r["task"], r["method"], r["minus"]) == (task["name"], method, baseline)
                    and float(r["temperature"]) == float(temperature)
                ]  # fmt: skip
                expected = [float(row[key]) for key in ("accuracy", "half_width", "low", "high")]
                assert [mean, half, low, high] == pytest.approx(expected, abs=1e-5)
                assert (temperature in difference["marked"]) == (float(row["p_holm"]) <= 0.05)
                seen += 1
    assert any(difference["marked"] for task in comparison["tasks"] for difference in task["differences"])
    assert any("no method is certainly the best" in text for text in comparison["warnings"])
    assert seen == len(rows)
    curve = list(csv.DictReader((folder / "compute.csv").open()))
    assert sum(len(points) for t in comparison["tasks"] for m in t["methods"] for points in m["curve"].values()) == len(
        curve
    )


# --- mistakes and damage ---


def test_a_folder_without_a_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, empty, begun = tmp_path / "file", tmp_path / "empty", tmp_path / "begun"
    file.write_text("")
    empty.mkdir()
    begun.mkdir()
    (begun / "config.yaml").write_text("seed: 0")
    for folder, said in (
        (tmp_path / "gone", f"there is no folder {tmp_path / 'gone'}."),
        (file, f"{file} is a file. Name the folder of a run"),
        (empty, f"{empty} is not a run folder: it has no metrics.jsonl. The folder of a run has"),
        (begun, "has not finished its first training step"),
        (run.parent, f"It contains runs: unmask report {run}"),
    ):
        assert unmask("report", folder) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("report.html"))


def test_an_incomplete_last_line_is_ignored_and_one_in_the_middle_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"step": 1, "reward": 0.5}], {"seed": 0})
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + '{"step": 2, "rew')
    assert page_block(write_report([folder]).path, "run-0")["steps"] == [1]
    (folder / "metrics.jsonl").write_text('{"step": 0, "rew\n' + lines)
    with raises(RunError, "metrics.jsonl", "line 1"):
        write_report([folder])


def test_an_unreadable_config_is_an_error(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"step": 1}], {"seed": 0})
    for text in ("a: [", "- a"):
        (folder / "config.yaml").write_text(text)
        with raises(RunError, "config.yaml"):
            write_report([folder])


def test_rollouts_of_other_versions_and_damaged_ones_do_not_spoil_the_rest(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_run(tiny_model, tmp_path / "run")
    files = sorted((folder / "rollouts").iterdir())
    as_version(files[0], 1)
    as_version(files[1], 99)
    (folder / "rollouts" / "step-00000005.safetensors").write_bytes(b"no")
    assert unmask("report", folder) == 0
    told = capsys.readouterr().err
    assert "schema version 99" in told
    assert "step-00000005.safetensors cannot be read" in told
    entry = page_data(folder / "report.html")["runs"][0]
    assert entry["films"] == [2, 6]
    assert len(entry["notes"]) == 2
    old = page_block(folder / "report.html", "film-0-2")["groups"][0]["members"][0]
    # Version 1 has the guesses of the selected steps, and does not say what they were credited
    # with.
    assert sorted(map(int, old["guesses"])) == old["selected"]
    assert old["advantages"] == {}


def test_a_read_only_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", [{"step": 1, "reward": 0.5}], {"seed": 0})
    (tmp_path / "file").write_text("")
    assert unmask("report", folder, "--output", tmp_path / "file" / "r.html") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert unmask("report", folder, "--output", tmp_path) == 2
    assert f"--output {tmp_path} is a folder. Name a file in it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["page.html", "rows.csv"])
def test_a_report_overwrites_an_earlier_one_and_nothing_else(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = write_run(tmp_path / "run", [{"step": 1, "reward": 0.5}], {"seed": 0}), tmp_path / name
    for _ in range(2):
        assert unmask("report", folder, "--output", target) == 0
    target.write_text("<!doctype html><title>my page</title>")
    assert unmask("report", folder, "--output", target) == 2
    assert f"--output {target} would overwrite {target}, which is not an earlier report." in capsys.readouterr().err
    assert target.read_text() == "<!doctype html><title>my page</title>"


# --- hostile texts ---


def test_nothing_that_is_put_in_ends_the_script_element_or_a_comment(tmp_path: Path) -> None:
    text = "</script><!--<script>\u2028\ud800%%BLOCKS%%"
    assert json.loads(embed({"a": text})) == {"a": text}
    assert embed({"a": text}).isascii()
    assert "<" not in embed({"a": text})
    folder = write_run(tmp_path / "run", [{"step": 1, text: 0.5}], {"seed": 0, text: text, "task": {"type": text}})
    made = write_report([folder]).path.read_text()
    # The page's own elements and no more: data, the blocks of the run, the script.
    assert re.findall(r"<script[^>]*>", made) == [
        '<script type="application/json" id="data">',
        '<script type="text/plain" id="run-0">',
        '<script type="text/plain" id="pieces-0">',
        "<script>",
    ]
    assert made.count("</script>") == 4


def test_the_title_is_text() -> None:
    assert "<title>a&lt;b&gt;&amp;&quot;</title>" in page('a<b>&"', {}, {})


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_elements_from_text_or_names_another_place(name: str) -> None:
    source = _file(f"{name}.js")
    for banned in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "</script",
    ):
        assert banned not in source
    assert set(re.findall(r"https?://[^\"' ]+", source)) <= {"http://www.w3.org/2000/svg"}


def test_only_the_pages_own_script_and_style_may_run() -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page("t", {}, {}))
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    assert len(re.findall(r"'sha256-[\w+/=]{44}'", policy[1])) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("\x00\x1b[31m\x7f", "␀␛[31m␡"),
        ("abc\u202edef\u2066", "abc⟨U+202E⟩def⟨U+2066⟩"),
        ("\ud800x\udfff", "⟨U+D800⟩x⟨U+DFFF⟩"),
        ("\u200b\ufeff\u2028", "⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩"),
        ("\u3164\U000e0041", "⟨U+3164⟩⟨U+E0041⟩"),
        ("שלום مرحبا 🙂 <b>", "שלום مرحبا 🙂 <b>"),
        ("x" * (MAX_CHARACTERS + 5), "x" * MAX_CHARACTERS + " … (5 more characters)"),
    ],
)
def test_what_cannot_be_seen_is_spelt_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_training_ends_by_writing_a_report(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.helpers.runs import unmask_train

    assert unmask_train(tiny_model, tmp_path / "run", "max_steps=2", "log_rollouts_steps=1") == 0
    assert f"report: {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().out
    assert page_data(tmp_path / "run" / "report.html")["runs"][0]["films"] == [1, 2]


def test_a_report_that_cannot_be_written_does_not_spoil_a_finished_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.runs import unmask_train

    def full(*_: Any) -> None:
        raise RunError("the disk is full.")

    monkeypatch.setattr("unmask.report.build.page", full)
    assert unmask_train(tiny_model, tmp_path / "run", "max_steps=1") == 0
    assert "report: not written (the disk is full.)" in capsys.readouterr().out


def test_equal_runs_give_equal_pages(run: Path, tmp_path: Path) -> None:
    one, two = (write_report([run], tmp_path / name).path.read_bytes() for name in ("a.html", "b.html"))
    assert one == two
    assert isinstance(Trainer, type)
