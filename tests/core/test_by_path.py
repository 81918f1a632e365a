"""Methods, tasks, orders and rewards that are named by path behave like those of the package."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.messages import raises
from tests.helpers.runs import metrics, unmask, weights
from unmask import Trainer, load_recipe
from unmask.core.by_path import load_class, load_object
from unmask.core.config import OptimConfig, SamplerConfig
from unmask.core.errors import ConfigError
from unmask.methods import Method
from unmask.methods.egspo import EGSPO
from unmask.recipes.load import dump, make_sampler, make_task
from unmask.recipes.schema import TrainRecipe
from unmask.runs.saved_rollouts import SavedRollout
from unmask.sampling.orders import Proposal, order_of
from unmask.trainer.comparison.sources import own_files
from unmask.trainer.distributed.shards import Native
from unmask.trainer.optimizer import make_optimizer, set_learning_rate

FILES = {
    "my_method.py": '''
import torch
from helper import SIGN
from unmask.functional.advantage import group_advantage
from unmask.methods import Method
from unmask.methods.egspo import EGSPO
from unmask.methods.views import step_views
from unmask.core.records import LossOutput, Needs


class FirstSteps(Method):
    """REINFORCE at the first steps of each completion."""

    count: int = 1
    """Number of steps."""

    def needs(self):
        return Needs()

    def plan(self, rollout, generator):
        path = rollout.trajectory
        steps = torch.arange(self.count).expand(len(path), -1)
        return step_views(path, steps, torch.ones(steps.shape))

    def advantage(self, rollout):
        return group_advantage(rollout.reward, rollout.group_size, "leave_one_out")

    def loss(self, inputs):
        return LossOutput(SIGN * inputs.advantage * inputs.new.sum(-1))

    def check(self, sampler, num_generations):
        super().check(sampler, num_generations)
        self.refuse_more_than_steps("count", sampler)


class Milder(EGSPO):
    """EGSPO under another name."""

    epsilon: float = 0.1
    num_selected: int = 2


class Unfinished(Method):
    pass
''',
    "helper.py": "SIGN = -1.0\n",
    "my_task.py": '''
import random

from unmask.tasks import Task


class Reverse(Task):
    """Task of writing a few digits backwards."""

    digits: int = 4
    """Number of digits."""
    reward_columns = ("answer",)

    @property
    def completion_length(self):
        return self.digits

    @property
    def alphabet(self):
        return "01234="

    def row(self, split, index, seed):
        text = "".join(self._rng(split, index, seed).choices("1234", k=self.digits))
        return {"prompt": self._prompt(f"{text}=", f"Reverse {text}."), "answer": text[::-1]}

    def demonstration(self, row, rng, sloppy):
        return row["answer"]

    def score(self, answer, row):
        return sum(a == b for a, b in zip(answer, row["answer"])) / self.digits

    def is_right(self, answer, row):
        return answer == row["answer"]
''',
    "my_order.py": '''
def outside_in(proposal):
    """Commit positions near either end first."""
    return (proposal.positions - 1.5).abs()


class Middle:
    def __call__(self, proposal):
        return -(proposal.positions - 1.5).abs()


def narrow(proposal):
    return proposal.positions[:, :1]


HALF = 0.5
''',
    "my_optim.py": '''
import torch


def make(parameters, lr, factor=2.0):
    """SGD with a larger learning rate for vectors."""
    vectors, matrices = [p for p in parameters if p.ndim == 1], [p for p in parameters if p.ndim > 1]
    groups = [{"params": matrices}, {"params": vectors, "lr": factor * lr}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


class Counting(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["count"] = 1


def nothing(parameters, lr):
    return None
''',
    "my_reward.py": """
from unmask.rewards import per_completion


@per_completion
def right(completions, answer, **columns):
    return [float(text[:1] == a[:1]) for text, a in zip(completions, answer)]
""",
}

SETTINGS = {
    "task": {"type": "my_task.py:Reverse", "digits": 4},
    "method": {"type": "my_method.py:FirstSteps", "count": 2},
    "sampler": {"max_completion_length": 4, "num_steps": 4, "order": "my_order.py:outside_in"},
    "reward_funcs": ["my_reward.py:right"],
    "reward_workers": 0,
    "num_prompts": 2,
    "num_generations": 4,
    "num_rows": 20,
    "max_steps": 4,
    "save_steps": 2,
    "log_rollouts_steps": 1,
    "optim": {"learning_rate": 1e-2, "warmup_steps": 0},
    "evaluation": {"num_rows": 4, "eval_steps": 2, "batch_size": 4},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a user's folder, which is the current folder."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    # The folder's name is unique to the test, so that no module of an earlier test is reused.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return tmp_path


def options(tree: dict, prefix: str = "") -> list[str]:
    """Return the settings as key=value arguments."""
    found = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += options(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    return found


def own_recipe(model: Path, output: str, **changes: object) -> TrainRecipe:
    return load_recipe({**SETTINGS, "model": str(model), "output_dir": output}, changes)


# --- from training to comparison ---


@pytest.mark.slow
def test_yaml_command_line_and_python_train_alike_on_parts_named_by_path(folder: Path, tiny_model: Path) -> None:
    (folder / "mine.yaml").write_text(yaml.safe_dump({**SETTINGS, "model": str(tiny_model), "output_dir": "yaml"}))
    assert unmask("train", "mine.yaml") == 0
    own = ("task", "method", "sampler", "reward_funcs")
    packaged = {"task": {"type": "sudoku"}, "method": {"type": "egspo", "num_selected": 1}}
    others = {key: value for key, value in SETTINGS.items() if key not in own}
    (folder / "base.yaml").write_text(yaml.safe_dump({**packaged, **others, "model": str(tiny_model)}))
    assert unmask("train", "base.yaml", *options({key: SETTINGS[key] for key in own}), "output_dir=line") == 0
    Trainer(own_recipe(tiny_model, "python"), progress=False).train()
    by_yaml, by_line, by_python = (folder / name for name in ("yaml", "line", "python"))
    assert metrics(by_yaml) == metrics(by_python)
    assert weights(by_yaml) == weights(by_line) == weights(by_python) != (tiny_model / "model.safetensors").read_bytes()
    assert "rewards/right/mean" in metrics(by_yaml)[1]
    # The run folder names the parts, and the model card says that they are not part of the package.
    recorded = yaml.safe_load((by_yaml / "config.yaml").read_text())
    assert recorded["method"] == SETTINGS["method"]
    assert recorded["task"]["type"] == "my_task.py:Reverse"
    card = (by_yaml / "final" / "README.md").read_text()
    assert "REINFORCE at the first steps of each completion" in card
    assert "The method `my_method.py:FirstSteps` is not a part of unmask and states no paper." in card
    assert all(f"code `{path}`" in card for path in ("my_task.py:Reverse", "my_order.py:outside_in"))
    # Completions were committed from both ends, and a saved rollout is readable without the order's
    # file.
    (folder / "my_order.py").unlink()
    rollout = SavedRollout.load(by_yaml / "rollouts" / "step-00000001.safetensors").rollout
    assert rollout.trajectory.sampler.order == "my_order.py:outside_in"
    assert {frozenset(row[[0, 3]].tolist()) for row in rollout.trajectory.unmask_step} == {frozenset({0, 1})}


@pytest.mark.slow
def test_an_interrupted_run_resumes_from_its_folder_bit_for_bit(folder: Path, tiny_model: Path) -> None:
    whole = Trainer(own_recipe(tiny_model, "whole"), progress=False).train()

    def cut(step: int, metrics: object) -> None:
        if step == 3:
            raise OSError("the machine is gone")

    with pytest.raises(OSError, match="gone"):
        Trainer(own_recipe(tiny_model, "cut"), observe=cut, progress=False).train()
    assert unmask("train", "cut/config.yaml", "--resume") == 0
    assert weights(folder / "cut") == weights(whole)


@pytest.mark.slow
def test_a_finished_model_is_evaluated_with_parts_named_by_path(folder: Path, tiny_model: Path) -> None:
    places = ("--task", "my_task.py:Reverse", "--order", "my_order.py:Middle", "--reward", "my_reward.py:right")
    assert unmask("eval", tiny_model, *places, "--option", "digits=3", "--rows", 4, "--output", "e.json") == 0
    found = yaml.safe_load((folder / "e.json").read_text())
    assert found["results"][0]["num_rows"] == 4
    assert (folder / "e.jsonl").read_text().count("my_task") == 0
    assert unmask("sample", tiny_model, "--task", "my_task.py:Reverse", "--order", "my_order.py:Middle") == 0


@pytest.mark.slow
def test_compare_accepts_parts_named_by_path_and_notices_an_edit_of_their_files(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {key: value for key, value in SETTINGS.items() if key not in ("method", "max_steps", "save_steps")}
    (folder / "mine.yaml").write_text(yaml.safe_dump({**shared, "method": {"type": "egspo", "num_selected": 1}}))
    own = {"method.type": "my_method.py:FirstSteps", "method.count": 2}
    comparison = {
        "tasks": {"reverse": {"recipe": "mine.yaml", "model": str(tiny_model), "budget": 2000}},
        "methods": {"own": {"settings": own}, "egspo": {}},
        "seeds": [0],
        "evaluation": {"num_rows": 4, "curve_points": 1, "curve_rows": 4, "temperatures": [0.0]},
        "output_dir": "compared",
    }
    (folder / "against.yaml").write_text(yaml.safe_dump(comparison))
    assert unmask("compare", "against.yaml") == 0
    lines = [yaml.safe_load(line) for line in (folder / "compared" / "cells.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines if line["stage"] == "final"} == {"own", "egspo"}
    capsys.readouterr()
    (folder / "helper.py").write_text("SIGN = 1.0\n")
    assert unmask("compare", "against.yaml") != 0
    assert "helper.py" in capsys.readouterr().err


@pytest.mark.slow
def test_a_result_depends_on_the_files_of_its_parts_and_of_their_base_classes(folder: Path, tiny_model: Path) -> None:
    files = own_files([own_recipe(tiny_model, "x")])
    assert {Path(name).name for name in files} >= {*FILES} - {"my_optim.py"}
    assert str(folder / "my_optim.py") in own_files([own_recipe(tiny_model, "x", **{"optim.type": "my_optim.py:make"})])
    milder = own_recipe(tiny_model, "x", **{"method.type": "my_method.py:Milder"})
    assert "unmask/methods/egspo.py" in own_files([milder])
    before = own_files([milder])
    (folder / "my_order.py").write_text("def outside_in(proposal):\n    return proposal.positions\n")
    assert {name for name, value in own_files([milder]).items() if before[name] != value} == {
        str(folder / "my_order.py")
    }


# --- recipes ---


def test_a_subclass_outside_the_package_is_named_by_its_path(folder: Path, tiny_model: Path) -> None:
    recipe = own_recipe(tiny_model, "x", **{"method.type": "my_method.py:Milder"})
    assert isinstance(recipe.method, EGSPO)
    assert (recipe.method.type, recipe.method.type_name) == ("my_method.py:Milder", "Milder")
    assert recipe.method.epsilon == 0.1
    # It inherits no claims from the package's class.
    assert recipe.method.summary == "EGSPO under another name"
    assert recipe.method.estimates == "not stated"
    assert EGSPO.estimates != "not stated"
    assert load_recipe(recipe) == recipe == load_recipe(yaml.safe_load(dump(recipe)))


def test_an_object_or_a_class_can_replace_its_path(folder: Path, tiny_model: Path) -> None:
    cls = load_class("my_method.py:FirstSteps", Method, "method")
    for method in (cls(count=3), {"type": cls, "count": 3}):
        recipe = load_recipe(own_recipe(tiny_model, "x"), {"method": method})
        assert recipe.method == cls(count=3)
        assert recipe.method.type == "my_method.py:FirstSteps"
    with raises(ConfigError, "method.count = 9 is more than"):
        load_recipe(own_recipe(tiny_model, "x"), {"method": cls(count=9)})
    assert load_recipe(recipe, {"method": {"type": EGSPO, "num_selected": 1}}).method.type == "egspo"


def test_a_class_inside_a_function_is_refused_because_a_resumed_run_cannot_load_it(tiny_model: Path) -> None:
    class Hidden(EGSPO):
        pass

    with raises(ConfigError, "Hidden", "inside a function", "top level of a file"):
        load_recipe("sudoku-tiny", {"model": str(tiny_model), "method": Hidden()})


@pytest.mark.slow
def test_another_process_unpickles_a_recipe_with_parts_named_by_path(folder: Path, tiny_model: Path) -> None:
    recipe = own_recipe(tiny_model, "x")
    (folder / "sent").write_bytes(pickle.dumps((recipe.method, recipe.task)))
    code = "import pickle; m, t = pickle.load(open('sent', 'rb')); print(type(m).__name__, m.count, t.digits)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "FirstSteps 2 4\n", ran.stderr


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("method.type=none.py:M", ("method", "none.py", "no file", "current folder")),
        ("method.type=my_method.py:FirstStep", ("my_method.py:FirstStep", "Did you mean", "FirstSteps")),
        ("method.type=:M", ("must be given as", "file.py:Class")),
        ("method.type=my_task.py:Reverse", ("does not derive from unmask.methods.Method", "subclass")),
        ("method.type=my_method.py:Unfinished", ("does not define advantage, loss, needs, plan",)),
        ("method.type=my_order.py:HALF", ("a float", "does not derive from unmask.methods.Method")),
        ("method.type=no_such_module:M", ("ModuleNotFoundError", "no_such_module")),
        ("method.type=broken.py:M", ("ZeroDivisionError", "broken.py, line 2")),
        ("method.type=frist", ("unknown method", "my_method.py:MyMethod")),
        ("method.coutn=1", ("method has no setting", "coutn", "count")),
        ("method.num_selected=1", ("method has no setting", "is an option of", "egspo_sa", "my_method.py:FirstSteps")),
        ("method.count=many", ("method.count", "'many'", "integer")),
        ("method.count=5", ("method.count = 5", "4 denoising steps")),
        ("task.type=my_method.py:FirstSteps", ("does not derive from unmask.tasks.Task",)),
        ("task.digit=1", ("task has no setting", "digits")),
        ("sampler.order=my_order.py:HALF", ("order", "is a float, not a function")),
        ("sampler.order=my_order.py:none", ("order", "outside_in")),
        ("sampler.order=randm", ("unknown order", "random", "my_order.py:mine")),
    ],
)
def test_an_invalid_path_or_option_is_refused_with_a_remedy(
    folder: Path, tiny_model: Path, change: str, parts: tuple[str, ...]
) -> None:
    (folder / "broken.py").write_text("\n1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe({**SETTINGS, "model": str(tiny_model)}, [change])
    assert all(part in str(caught.value) for part in parts), caught.value


def test_an_order_gives_a_priority_for_each_position(folder: Path) -> None:
    positions = torch.arange(4).expand(2, 4)
    proposal = Proposal(
        torch.zeros(2, 4, 3), torch.zeros(2, 4), positions, torch.zeros(2), torch.zeros(2, 1, dtype=torch.long)
    )
    assert order_of("my_order.py:outside_in")(proposal)[0].tolist() == [1.5, 0.5, 0.5, 1.5]
    assert order_of("my_order.py:Middle")(proposal)[0].tolist() == [-1.5, -0.5, -0.5, -1.5]
    with raises(ConfigError, "my_order.py:narrow", "shape [2, 1]", "[2, 4]"):
        order_of("my_order.py:narrow")(proposal)
    # Making settings loads no file; using the sampler does.
    assert SamplerConfig(order="nowhere.py:order").order == "nowhere.py:order"
    with raises(ConfigError, "nowhere.py"):
        make_sampler(order="nowhere.py:order")


# --- optimizers ---


@pytest.mark.slow
def test_an_optimizer_of_a_users_folder_trains_and_resumes_bit_for_bit(folder: Path, tiny_model: Path) -> None:
    own = {"optim.type": "my_optim.py:make", "optim.options": {"factor": 4.0}}
    whole = Trainer(own_recipe(tiny_model, "whole", **own), progress=False).train()

    def cut(step: int, metrics: object) -> None:
        if step == 3:
            raise OSError("the machine is gone")

    with pytest.raises(OSError, match="gone"):
        Trainer(own_recipe(tiny_model, "cut", **own), observe=cut, progress=False).train()
    assert unmask("train", "cut/config.yaml", "--resume") == 0
    assert weights(folder / "cut") == weights(whole)
    other = Trainer(own_recipe(tiny_model, "other", **{"optim.type": "torch.optim.SGD"}), progress=False).train()
    assert weights(other) != weights(whole)


def test_the_schedule_scales_the_learning_rates_of_an_optimizers_groups(folder: Path) -> None:
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    optim = OptimConfig(type="my_optim.py:make", learning_rate=0.1, warmup_steps=0, lr_schedule="linear", lr_floor=0.5)
    optimizer = make_optimizer(parameters, optim)
    assert set_learning_rate([optimizer], optim, 9, 10) == pytest.approx(0.05, abs=0.01)
    small, large = (group["lr"] for group in optimizer.param_groups)
    assert large == pytest.approx(2 * small)
    assert small == pytest.approx(0.05, abs=0.01)


def test_torch_optimizers_get_the_settings_that_they_have_arguments_for(folder: Path) -> None:
    settings = {"learning_rate": 0.1, "weight_decay": 0.2, "betas": (0.5, 0.6)}
    parameter = torch.nn.Parameter(torch.ones(2))
    sgd = make_optimizer([parameter], OptimConfig(type="torch.optim.SGD", options={"momentum": 0.7}, **settings))
    adam = make_optimizer([parameter], OptimConfig(type="torch.optim:Adam", **settings))
    assert [sgd.defaults[key] for key in ("lr", "weight_decay", "momentum")] == [0.1, 0.2, 0.7]
    assert [adam.defaults[key] for key in ("lr", "weight_decay", "betas")] == [0.1, 0.2, (0.5, 0.6)]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"optim.type": "sgd"}, ("optim", "neither adamw nor", "torch.optim.SGD")),
        ({"optim.type": "torch.optim.SDG"}, ("optimizer", "torch.optim:SDG")),
        ({"optim.type": "my_optim.py"}, ("my_optim.py:make",)),
        ({"optim.options": {"momentum": 0.9}}, ("optim.options", "optim.type")),
        ({"optim.type": "torch.optim.SGD", "optim.options": {"momentm": 1}}, ("momentm", "optim.options")),
        ({"optim.type": "my_optim.py:nothing"}, ("NoneType", "torch.optim.Optimizer")),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_refused_with_a_remedy(
    folder: Path, tiny_model: Path, changes: dict, parts: tuple[str, ...]
) -> None:
    def make() -> None:
        make_optimizer([torch.nn.Parameter(torch.ones(2))], own_recipe(tiny_model, "x", **changes).optim)

    with pytest.raises(ConfigError) as caught:
        make()
    assert all(part in str(caught.value) for part in parts), caught.value


def test_changing_the_optimizer_keeps_the_learning_rate_and_drops_the_old_options(
    folder: Path, tiny_model: Path
) -> None:
    before = own_recipe(
        tiny_model, "x", **{"optim.type": "torch.optim.SGD", "optim.options.momentum": 0.9, "optim.learning_rate": 0.3}
    )
    after = load_recipe(before, ["optim.type=adamw"]).optim
    assert (after.learning_rate, after.options) == (0.3, {})


def test_an_optimizer_whose_state_cannot_be_saved_is_refused(folder: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([parameter], OptimConfig(type="my_optim.py:Counting"))
    parameter.grad = torch.ones(2)
    optimizer.step()
    with raises(ConfigError, 'keeps "count" as int', "tensor"):
        Native([optimizer]).own_state(parameter)


# --- files ---


def test_a_file_is_executed_once_and_again_when_its_text_has_changed(folder: Path) -> None:
    (folder / "counted.py").write_text("class A:\n    x = 1\n")
    first = load_object("counted.py:A", "class")
    assert load_object(str(folder / "counted.py:A"), "class") is first
    (folder / "counted.py").write_text("class A:\n    x = 2\n")
    assert load_object("counted.py:A", "class").x == 2


def test_files_of_the_same_name_in_two_folders_are_two_modules(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "same.py").write_text(f"class A:\n    x = '{name}'\n")
    first, second = (load_object(f"{name}/same.py:A", "class") for name in ("a", "b"))
    assert (first.x, second.x, first.__module__ != second.__module__) == ("a", "b", True)


def test_the_rows_of_a_task_do_not_depend_on_where_its_file_is(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "moved.py").write_text(FILES["my_task.py"])
    here, there = make_task("my_task.py:Reverse"), make_task("elsewhere/moved.py:Reverse")
    assert here.rows("train", 5) == there.rows("train", 5)


# --- pages ---


def test_the_catalogue_shows_a_method_and_a_task_by_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("methods", "my_method.py:FirstSteps") == 0
    shown = capsys.readouterr().out
    assert "no paper stated" in shown
    assert "REINFORCE at the first steps of each completion" in shown
    assert "Number of steps." in shown
    assert unmask("tasks", "my_task.py:Reverse", "digits=2") == 0
    shown = capsys.readouterr().out
    assert "Task of writing a few digits backwards." in shown
    assert make_task("my_task.py:Reverse", ["digits=2"]).rows("train", 1)[0]["prompt"] in shown
    assert unmask("methods", "my_method.py:None") == 2
    assert unmask("tasks", "my_method.py:FirstSteps") == 2
