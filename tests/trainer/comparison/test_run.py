"""A whole comparison, small: the same start and prompts for all, budgets kept, and nothing lost or
done twice."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.comparisons import PASSES, SMALL, small
from tests.helpers.messages import raises
from tests.helpers.runs import exit_code_of
from unmask.core.errors import ConfigError, RunError
from unmask.core.files import read_json_lines
from unmask.recipes.load import find_recipe
from unmask.report.comparison_files import report
from unmask.runs.metrics import read_metrics
from unmask.trainer import Trainer
from unmask.trainer.comparison import jobs as jobs_module
from unmask.trainer.comparison.plan import Plan, check_reward_functions
from unmask.trainer.comparison.recipe import CompareRecipe
from unmask.trainer.comparison.run import CompareStoppedError, _summary, compare
from unmask.trainer.comparison.sources import PACKAGE
from unmask.trainer.steps import TrainingSteps

pytestmark = pytest.mark.slow

KEPT = ("stage", "task", "method", "seed", "variant", "steps", "token_passes", "accuracy", "reward", "curve", "failed")


def quiet(_line: str) -> None:
    """Tell nobody."""


def facts(folder: Path) -> list[dict[str, Any]]:
    """The lines of cells.jsonl, but for the times."""
    return [{key: r[key] for key in KEPT if key in r} for r in read_json_lines(folder / "cells.jsonl")]


def cells(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [record for record in read_json_lines(folder / "cells.jsonl") if record["stage"] == stage]


def run_folder(folder: Path, stage: str, method: str, seed: int) -> Path:
    (found,) = (folder / "runs").glob(f"{stage}-sudoku-{method.replace(' ', '-')}-{seed}-*")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompareRecipe, list[str]]:
    """A finished comparison, and the lines that it printed."""
    recipe, told = small(tmp_path_factory.mktemp("whole")), list[str]()
    compare(recipe, tell=told.append)
    return recipe, told


@pytest.fixture
def copy(whole: tuple[CompareRecipe, list[str]], tmp_path: Path) -> Path:
    """A folder with the finished comparison `small` in it, to go on with."""
    shutil.copytree(whole[0].folder, tmp_path / "small")
    return tmp_path


# --- before anything runs ---

REWARDS = """
from unmask.rewards import per_completion

def longest(completions, **columns):
    return [float(len(text) == max(map(len, completions))) for text in completions]

@per_completion
def short(completions, **columns):
    return [-len(text) for text in completions]
"""


@pytest.mark.parametrize(
    ("reward", "words"),
    [("longest", ['"guesses"', '"sudoku"', '"longest"']), ("missing", ['"entropy"', '"sudoku"', "missing"])],
)
def test_a_reward_that_a_method_cannot_use_is_refused_before_anything_runs(
    tmp_path: Path, reward: str, words: list[str]
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    methods = SMALL["methods"] | {"guesses": {"settings": {"method.type": "egspo_sa", "method.num_selected": 1}}}
    tasks = {"sudoku": SMALL["tasks"]["sudoku"]}
    tasks["sudoku"] = tasks["sudoku"] | {
        "overrides": tasks["sudoku"]["overrides"] | {"reward_funcs": [f"{tmp_path}/mine.py:{reward}"]}
    }
    recipe = small(tmp_path, tasks=tasks, methods=methods, tuning=None)
    with raises(ConfigError, *words):
        compare(recipe, tell=quiet)
    assert not recipe.folder.exists()
    if reward == "longest":
        (tmp_path / "mine.py").write_text(REWARDS.replace("def longest", "@per_completion\ndef longest"))
        check_reward_functions(recipe)  # the declaration is the remedy


# --- a whole one ---


def test_every_job_leaves_a_line_stage_by_stage_and_seed_by_seed(whole: tuple[CompareRecipe, list[str]]) -> None:
    lines = read_json_lines(whole[0].folder / "cells.jsonl")
    assert [(r["stage"], r["method"], r["seed"]) for r in lines] == [
        *(("pretraining", "base", seed) for seed in (100, 0, 1)),
        *(("base", "base", seed) for seed in (0, 1)),
        *(("tuning", method, 100) for method in ("entropy", "late steps") for _ in range(2)),
        *(("final", method, seed) for seed in (0, 1) for method in ("entropy", "late steps")),
    ]
    assert not any("failed" in line for line in lines)
    assert len(whole[1]) == len(lines)
    assert whole[1][-1].startswith("final 4/4  sudoku  late steps  seed 1  learning_rate ")
    assert whole[1][-1].endswith(" s left")


def test_all_methods_start_from_the_model_of_their_seed_and_see_its_prompts(
    whole: tuple[CompareRecipe, list[str]],
) -> None:
    folder = whole[0].folder
    first = {}
    for seed in (0, 1):
        for method in ("entropy", "late steps"):
            run = run_folder(folder, "final", method, seed)
            config = yaml.safe_load((run / "config.yaml").read_text())
            line = next(line for line in read_metrics(run) if line["step"] == 1)
            # Prompts, draws and model all have their part in these.
            first[seed, method] = (config["model"], line["reward"], line["diffusion/path_entropy"])
    assert first[0, "entropy"] == first[0, "late steps"]
    assert first[1, "entropy"] == first[1, "late steps"]
    assert first[0, "entropy"] != first[1, "entropy"]
    assert Path(first[0, "entropy"][0]).is_dir()


def test_each_method_takes_the_steps_that_the_budget_buys(whole: tuple[CompareRecipe, list[str]]) -> None:
    folder = whole[0].folder
    for stage, budget in (("tuning", 3_000), ("final", 6_000)):
        for record in cells(folder, stage):
            (run,) = (folder / "runs").glob(f"{stage}-*-{record['seed']}-{record['variant']}_*")
            costs = [line["compute/token_passes"] for line in read_metrics(run) if line["step"]]
            assert (len(costs), sum(costs)) == (record["steps"], record["token_passes"])
            # A step is 4 rollout forwards, and a forward with backward for each of the K steps that are
            # trained; less where a completion ends early, where a group shares its first step, and where
            # views of advantage 0 are left out.
            num_selected = {"entropy": 1, "late steps": 2}[record["method"]]
            assert 0.5 < max(costs) / (PASSES * (4 + 3 * num_selected)) <= 1
            # What is left does not pay for another step like the most expensive one.
            assert budget - max(costs) < record["token_passes"] <= budget


def test_the_setting_that_did_best_on_validation_rows_is_the_one_that_is_compared(
    whole: tuple[CompareRecipe, list[str]],
) -> None:
    for method in ("entropy", "late steps"):
        trials = [r for r in cells(whole[0].folder, "tuning") if r["method"] == method]
        assert {r["settings"]["optim.learning_rate"] for r in trials} == {0.01, 0.0001}
        assert all(set(r["accuracy"].values()) == {0.0} for r in trials), "the reward decides between equals"
        best = max(trials, key=lambda record: sum(record["reward"].values()))
        finals = [r for r in cells(whole[0].folder, "final") if r["method"] == method]
        assert {r["settings"]["optim.learning_rate"] for r in finals} == {best["settings"]["optim.learning_rate"]}
        for record in (*trials, *finals):
            (run,) = (whole[0].folder / "runs").glob(f"*-{record['seed']}-{record['variant']}_*")
            config = yaml.safe_load((run / "config.yaml").read_text())
            assert config["optim"]["learning_rate"] == record["settings"]["optim.learning_rate"]
            assert config["evaluation"]["split"] == ("validation" if record["stage"] == "tuning" else "test")
            assert config["max_token_passes"] == {"tuning": 3_000, "final": 6_000}[record["stage"]]


def test_the_measurements_are_those_of_the_recipe(whole: tuple[CompareRecipe, list[str]]) -> None:
    for record in cells(whole[0].folder, "final"):
        assert set(record["accuracy"]) == set(record["reward"]) == {"0", "0.9"}
        assert set(record["decoding_accuracy"]) == set(record["decoding_reward"]) == {"2", "4", "8"}
        assert record["decoding_reward"]["4"] == record["reward"]["0"]
        steps = record["steps"]
        start, middle, end = record["curve"]
        assert (start["step"], end["step"]) == (0, steps)
        assert (start["token_passes"], end["token_passes"]) == (0, record["token_passes"])
        # The first step that reaches half of the budget.
        before = middle["token_passes"] - max(PASSES * (4 + 3 * 2), 1)
        assert before < 3_000 <= middle["token_passes"]
    for record in cells(whole[0].folder, "base"):
        assert set(record["decoding_accuracy"]) == {"2", "4", "8"}
        assert record["token_passes"] == 0


def test_only_configurations_metrics_and_the_models_that_were_compared_are_kept(
    whole: tuple[CompareRecipe, list[str]],
) -> None:
    runs = whole[0].folder / "runs"
    assert len(list(runs.iterdir())) == len(list(runs.glob("*/config.yaml"))) == 3 + 4 + 4
    assert not list(runs.glob("*/checkpoints"))
    assert {path.parent.name.split("-")[0] for path in runs.glob("*/final")} == {"pretraining", "final"}


# --- going on ---


@pytest.mark.parametrize("lines_before", [2, 10])
def test_a_comparison_that_is_stopped_goes_on_to_the_same_results(
    whole: tuple[CompareRecipe, list[str]], tmp_path: Path, lines_before: int
) -> None:
    recipe, told = small(tmp_path), list[str]()

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == lines_before:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(CompareStoppedError) as stop:
        compare(recipe, tell=tell)
    assert (stop.value.signal_number, len(facts(recipe.folder))) == (signal.SIGINT, lines_before)
    compare(recipe, tell=quiet)
    # Variants differ with the folder no more than the results do.
    assert facts(recipe.folder) == facts(whole[0].folder)


def test_a_run_that_is_stopped_in_its_middle_goes_on_from_there(
    whole: tuple[CompareRecipe, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, begun = small(tmp_path), list[tuple[str, int]]()

    class Recorded(Trainer):
        """Records the run and the checkpoint that each training starts from."""

        def train(self) -> Path:
            begun.append((self.folder.path.name.rpartition("-")[0], self.folder.last_step()))
            return super().train()

    do_step = TrainingSteps.step

    def step_and_stop(self: TrainingSteps, step: int) -> dict[str, Any]:
        if step == 1 and begun[-1] == ("final-sudoku-late-steps-1", 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return do_step(self, step)

    monkeypatch.setattr(jobs_module, "Trainer", Recorded)
    monkeypatch.setattr(TrainingSteps, "step", step_and_stop)
    with pytest.raises(CompareStoppedError) as stop:
        compare(recipe, tell=quiet)
    assert (stop.value.signal_number, len(facts(recipe.folder))) == (signal.SIGTERM, 12)
    begun.clear()
    compare(recipe, tell=quiet)
    assert begun == [("final-sudoku-late-steps-1", 2)]
    assert facts(recipe.folder) == facts(whole[0].folder)


def test_what_has_a_result_is_not_run_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / "small" / "cells.jsonl").read_text()
    monkeypatch.setattr(jobs_module, "Trainer", None)
    told: list[str] = []
    compare(small(copy), tell=told.append)
    assert (told, (copy / "small" / "cells.jsonl").read_text()) == ([], before)


def test_seeds_and_methods_can_be_added(copy: Path) -> None:
    before = facts(copy / "small")
    new = {
        "settings": {
            "method.type": "egspo",
            "method.num_selected": 1,
            "method.step_choice": "uniform",
            "method.beta": 0.0,
        }
    }
    recipe = small(copy, methods=SMALL["methods"] | {"uniform": new}, seeds=[0, 2], baselines=["uniform"])
    compare(recipe, tell=quiet)
    after = facts(copy / "small")
    assert after[: len(before)] == before
    assert sorted((r["stage"], r["method"], r["seed"]) for r in after[len(before) :]) == [
        ("base", "base", 2),
        *(
            ("final", method, seed)
            for method, seed in (("entropy", 2), ("late steps", 2), ("uniform", 0), ("uniform", 2))
        ),
        ("pretraining", "base", 2),
        *[("tuning", "uniform", 100)] * 2,
    ]


def test_changed_settings_are_refused_by_name_and_what_they_touch_is_run_again_if_asked(copy: Path) -> None:
    before = facts(copy / "small")
    changed = small(copy, "methods.entropy.settings.method.epsilon=0.3")
    with pytest.raises(RunError) as caught:
        compare(changed, tell=quiet)
    assert "\n  methods.entropy.settings.method.epsilon: None -> 0.3\n" in str(caught.value)
    assert facts(copy / "small") == before
    told: list[str] = []
    compare(changed, rerun_changed=True, tell=told.append)
    assert [line.partition("has ")[2] for line in told if "superseded.jsonl" in line] == [
        f"2 results of stage {stage} from other settings, which move to superseded.jsonl."
        for stage in ("tuning", "final")
    ]
    after = facts(copy / "small")
    assert [r for r in after if r["method"] != "entropy"] == [r for r in before if r["method"] != "entropy"]
    variants = [{r["variant"] for r in records if r["method"] == "entropy"} for records in (before, after)]
    assert not variants[0] & variants[1]
    # And back: nothing is run again.
    told.clear()
    compare(small(copy), rerun_changed=True, tell=told.append)
    assert len(told) == 2
    assert sorted(map(str, before)) == sorted(map(str, facts(copy / "small")))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("evaluation.num_rows=8", "evaluation.num_rows: 16 -> 8"),
        ("tasks.sudoku.budget=20000", "tasks.sudoku.budget: 6000 -> 20000"),
        ("tuning.seeds=[7]", "tuning.seeds: [100] -> [7]"),
    ],
)
def test_any_other_setting_is_refused_by_name(copy: Path, override: str, key: str) -> None:
    with raises(RunError, "output_dir") as caught:
        compare(small(copy, override), tell=quiet)
    assert key in str(caught.value)


def test_a_change_of_a_recipe_that_a_task_names_is_refused_too(tmp_path: Path) -> None:
    """Not by key, for the comparison's own recipe is what it was."""
    mine, path = yaml.safe_load(find_recipe("sudoku-tiny").read_text()), tmp_path / "mine.yaml"
    tasks = {"sudoku": SMALL["tasks"]["sudoku"] | {"recipe": str(path)}}
    one = {"tuning": None, "seeds": [0], "methods": {"m": SMALL["methods"]["entropy"]}, "baselines": [], "tasks": tasks}
    path.write_text(yaml.safe_dump(mine))
    compare(small(tmp_path, name="other", **one), tell=quiet)
    path.write_text(yaml.safe_dump(mine | {"logprob_temperature": 1.0}))
    changed, before = small(tmp_path, name="other", **one), facts(tmp_path / "other")
    with raises(RunError, "stage base"):
        compare(changed, tell=quiet)
    assert facts(tmp_path / "other") == before
    assert not (tmp_path / "other" / "superseded.jsonl").exists()
    compare(changed, rerun_changed=True, tell=quiet)
    assert len(facts(tmp_path / "other")) == len(before)


# --- edited code ---


class Lab:
    """A folder with a reward of one's own in a file, and a comparison that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "mine.py"
        self.write(1.0)

    def write(self, value: float) -> None:
        """Edit the reward."""
        self.file.write_text(f"def reward(completions, **_):\n    return [{value} * len(c) for c in completions]\n")

    def recipe(self, **changes: Any) -> CompareRecipe:
        sound = SMALL["methods"]["entropy"]
        mine = {"settings": sound["settings"] | {"reward_funcs": [f"{self.file}:reward"]}}
        return small(
            self.folder,
            "tuning=",
            **{"methods": {"mine": mine, "sound": sound}, "seeds": [0], "baselines": []} | changes,
        )

    def rewards(self) -> dict[str, float]:
        return {r["method"]: r["reward"]["0"] for r in cells(self.folder / "small", "final")}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    compare(made.recipe(), tell=quiet)
    return made


def test_results_of_code_that_was_edited_are_refused_by_cell_and_file(lab: Lab) -> None:
    before = facts(lab.folder / "small")
    lab.write(-1.0)
    with pytest.raises(RunError) as caught:
        compare(lab.recipe(), tell=quiet)
    said = str(caught.value)
    assert "has results of code that has changed since:\n  final  sudoku  mine: 1 result\n" in said
    assert f"Changed: {lab.file}." in said
    assert "--rerun-changed" in said
    assert "sound" not in said
    assert facts(lab.folder / "small") == before
    # Undoing the edit makes the results current again.
    lab.write(1.0)
    compare(lab.recipe(), tell=quiet)
    assert [r for r in facts(lab.folder / "small") if r["stage"] == "final"] == [
        r for r in before if r["stage"] == "final"
    ]


def test_results_of_edited_code_run_again_on_request_and_return_if_the_edit_is_undone(lab: Lab) -> None:
    before = lab.rewards()
    lab.write(-1.0)
    told: list[str] = []
    compare(lab.recipe(), rerun_changed=True, tell=told.append)
    assert told[0].startswith("1 results of code that has changed move to superseded.jsonl")
    assert [line.split(":")[0] for line in told[1:]] == ["final 1/1  sudoku  mine  seed 0"]
    assert lab.rewards()["mine"] < 0 < before["mine"]
    assert lab.rewards()["sound"] == before["sound"]
    lab.write(1.0)
    told.clear()
    compare(lab.recipe(), rerun_changed=True, tell=told.append)
    assert (len(told), lab.rewards()) == (1, before), "nothing is run"


def test_results_of_edited_code_are_kept_on_request_and_marked_in_the_tables(lab: Lab) -> None:
    lab.write(-1.0)
    compare(lab.recipe(seeds=[0, 1]), keep_changed=True, tell=quiet)
    records = cells(lab.folder / "small", "final")
    assert [(r["method"], r["seed"], r["reward"]["0"] > 0) for r in records if r["method"] == "mine"] == [
        ("mine", 0, True),
        ("mine", 1, False),
    ]
    table = report(lab.recipe(seeds=[0, 1])).read_text()
    assert "| mine † |" in table
    assert "| sound |" in table
    assert f"results of code that has changed since: {lab.file}" in table
    with raises(ConfigError, "exclude"):
        compare(lab.recipe(), keep_changed=True, rerun_changed=True, tell=quiet)


def test_a_run_that_was_cut_off_does_not_go_on_with_edited_code(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[tuple[str, int]]()

    class Recorded(Trainer):
        """Records the run and the checkpoint that each training starts from."""

        def train(self) -> Path:
            begun.append((self.folder.path.name.split("_")[0], self.folder.last_step()))
            return super().train()

    do_step = TrainingSteps.step

    def step_and_stop(self: TrainingSteps, step: int) -> dict[str, Any]:
        if step == 2 and len(begun) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return do_step(self, step)

    monkeypatch.setattr(jobs_module, "Trainer", Recorded)
    monkeypatch.setattr(TrainingSteps, "step", step_and_stop)
    with pytest.raises(CompareStoppedError):
        compare(lab.recipe(seeds=[1]), tell=quiet)
    lab.write(3.0)
    compare(lab.recipe(seeds=[1]), tell=quiet)
    run, last_step = begun[0]
    assert run.startswith("final-sudoku-mine-1-")
    # With the edit the run starts again; without it, it would continue at step 3.
    assert [step for name, step in begun[1:] if name == run] == [0]
    lab.write(1.0)
    compare(lab.recipe(seeds=[1]), rerun_changed=True, tell=quiet)
    assert [step for name, step in begun[1:] if name == run] == [0, 3]


def test_an_edit_while_a_run_is_under_way_is_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class Editing(Trainer):
        def train(self) -> Path:
            lab.write(5.0)
            return super().train()

    monkeypatch.setattr(jobs_module, "Trainer", Editing)
    with raises(RunError, "mine", "sudoku"):
        compare(lab.recipe(seeds=[0, 1]), tell=quiet)
    assert [(r["method"], r["seed"]) for r in cells(lab.folder / "small", "final")] == [("mine", 0), ("sound", 0)]


def test_results_of_a_version_that_kept_no_track_of_code_stay_and_say_so(lab: Lab) -> None:
    path = lab.folder / "small" / "cells.jsonl"
    old = [{k: v for k, v in record.items() if k != "code"} for record in read_json_lines(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    (lab.folder / "small" / "code.json").unlink()
    # Its folders were named without the code.
    for folder in (lab.folder / "small" / "runs").iterdir():
        folder.rename(folder.with_name(folder.name.rpartition("_")[0]))
    lab.write(-1.0)
    told: list[str] = []
    compare(lab.recipe(), tell=told.append)
    assert (told, facts(path.parent)) == ([], [{k: r[k] for k in KEPT if k in r} for r in old])
    assert "come from a version of unmask that did not record its code" in report(lab.recipe()).read_text()
    # A method is added, and starts from the base that is there.
    more = lab.recipe(methods={"late": SMALL["methods"]["late steps"], "sound": SMALL["methods"]["entropy"]})
    compare(more, tell=told.append)
    assert [line.split(" ")[0] for line in told] == ["final"]


def run_the_package_in(source: Path, printed: Path, *commands: list[str]) -> None:
    """Run commands of the package in a folder, in a process that has imported another one, until one
    fails, and write their output to a file."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "unmask"]:
        del sys.modules[name]
    sys.path.insert(0, str(source))
    from unmask import cli

    assert Path(str(cli.__file__)).is_relative_to(source)
    with printed.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for command in commands:
            sys.argv = ["unmask", *command]
            try:
                cli.main()
            except SystemExit as stop:
                if stop.code:
                    raise


def test_a_method_of_the_package_is_edited_between_two_comparisons(tmp_path: Path) -> None:
    """In a copy of the package, and by the command, since a process runs the code that it began
    with."""
    package, printed = tmp_path / "src" / "unmask", tmp_path / "printed.txt"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    # Else each process would compile the package.
    compileall.compile_dir(package, quiet=1)
    small(tmp_path, "tuning=", seeds=[0], evaluation=SMALL["evaluation"] | {"curve_points": 1})
    command = ("compare", str(tmp_path / "small.yaml"), "tuning=", "seeds=[0]")

    def run(*several: tuple[str, ...]) -> int:
        commands = [[*command, *options] for options in several or ((),)]
        return exit_code_of(run_the_package_in, tmp_path / "src", printed, *commands, timeout=600)

    assert run() == 0, printed.read_text()
    method = package / "methods" / "egspo.py"
    text = method.read_text()
    method.write_text(text.replace("LossOutput(inputs.weight * loss", "LossOutput(-inputs.weight * loss"))
    assert method.read_text() != text
    assert run() == 2
    said = printed.read_text()
    assert "Changed: unmask/methods/egspo.py." in said
    assert "final  sudoku  entropy: 1 result" in said
    assert run(("--rerun-changed",)) == 0, printed.read_text()
    before, after = (
        {r["method"]: r["code"] for r in read_json_lines(tmp_path / "small" / f"{name}.jsonl") if r["stage"] == "final"}
        for name in ("superseded", "cells")
    )
    assert before.keys() == after.keys() == {"entropy", "late steps"}
    assert all(before[name] != after[name] for name in before)
    # What is only said about the code changes nothing.
    method.write_text(method.read_text().replace('"""', '"""In other words. ', 1))
    assert run(("--report",), ()) == 0, printed.read_text()


# --- faults ---


def test_a_run_that_fails_is_recorded_and_stops_no_other_and_can_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def flawed(completions, **_):\n    raise ZeroDivisionError('no reward today')\n")
    sound = SMALL["methods"]["entropy"]
    flawed = {"settings": sound["settings"] | {"reward_funcs": [f"{tmp_path}/mine.py:flawed"]}}
    recipe = small(tmp_path, "tuning=", methods={"flawed": flawed, "sound": sound}, seeds=[5], baselines=[])
    told: list[str] = []
    compare(recipe, tell=told.append)
    bad, good = cells(recipe.folder, "final")
    assert (bad["method"], good["method"], "failed" in good) == ("flawed", "sound", False)
    assert "no reward today" in bad["failed"]
    assert any(line.startswith("final 1/2  sudoku  flawed  seed 5: FAILED: reward") for line in told)
    assert "- flawed on sudoku, seed 5: reward" in report(recipe).read_text()
    compare(recipe, tell=quiet)
    assert len(read_json_lines(recipe.folder / "cells.jsonl")) == len(told)
    (tmp_path / "mine.py").write_text(
        "def flawed(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    told.clear()
    compare(recipe, retry_failed=True, tell=told.append)
    assert [line.split(":")[0] for line in told] == ["final 1/1  sudoku  flawed  seed 5"]
    assert "## Failed" not in report(recipe).read_text()


def test_a_setting_whose_loss_is_nan_is_recorded_as_failed_and_not_chosen(tmp_path: Path) -> None:
    rates, methods = "tuning.grid.optim.learning_rate=[1.0e+30, 1.0e-4]", {"m": SMALL["methods"]["entropy"]}
    recipe = small(tmp_path, rates, methods=methods, seeds=[0], baselines=[])
    compare(recipe, tell=quiet)
    trials = cells(recipe.folder, "tuning")
    assert ["failed" in record for record in trials] == [True, False]
    assert "Nothing was overwritten" in trials[0]["failed"]
    assert [record["settings"]["optim.learning_rate"] for record in cells(recipe.folder, "final")] == [1e-4]


def test_without_its_base_a_run_fails_with_the_bases_message(tmp_path: Path) -> None:
    recipe = small(tmp_path, "tuning=", "seeds=[0]", "tasks.sudoku.base_overrides.max_completion_length=3")
    compare(recipe, tell=quiet)
    failed = {r["stage"]: r["failed"] for r in read_json_lines(recipe.folder / "cells.jsonl")}
    assert "the demonstration has 16 tokens and does not fit" in failed["pretraining"]
    assert failed["base"] == failed["final"] == f"the pretraining of its base failed: {failed['pretraining']}"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    recipe = small(tmp_path)

    def tell(_line: str) -> None:
        with raises(RunError, "another process"):
            compare(recipe, tell=quiet)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        compare(recipe, tell=tell)


def test_it_is_not_started_by_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(ConfigError, "accelerate"):
        compare(small(tmp_path), tell=quiet)


# --- several processes ---


def test_two_processes_killed_with_their_parent_and_begun_again_come_to_the_same_results(
    whole: tuple[CompareRecipe, list[str]], tmp_path: Path
) -> None:
    recipe = small(tmp_path)
    command = [sys.executable, "-m", "unmask", "compare", str(tmp_path / "small.yaml"), "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("tuning 2/4"):
                break
        process.kill()
    before = len(facts(recipe.folder))
    assert 7 <= before < len(facts(whole[0].folder))
    # The server of the processes of other tests has imported the package already.
    compare(recipe, jobs=2, tell=quiet)
    assert sorted(map(str, facts(recipe.folder))) == sorted(map(str, facts(whole[0].folder)))


def test_a_job_has_a_summary_of_one_line(whole: tuple[CompareRecipe, list[str]]) -> None:
    plan = Plan(whole[0])
    facts_of_run = {"accuracy": {"0.9": 0.25, "0": 0.5}, "steps": 6, "seconds": 2.4}
    assert _summary(plan.trials()[0], facts_of_run) == (
        "sudoku  entropy  seed 100  learning_rate 0.01: sampled at 0.9 0.250, greedy 0.500 (6 steps, 2 s)"
    )
    assert _summary(plan.bases()[1], {"failed": "no"}) == "sudoku  seed 1: FAILED: no"
