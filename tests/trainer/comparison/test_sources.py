"""What a result depends on: which files are found, and which edits of them count."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.comparisons import SMALL, small
from unmask.recipes.load import load_recipe
from unmask.recipes.schema import TrainRecipe
from unmask.trainer.comparison.plan import Plan
from unmask.trainer.comparison.sources import digest_of, edited, engine_files, missing, own_files

REWARD = '''"""Rewards of mine."""
from helper import length

def reward(completions, **_):
    """One for each character."""
    return [length(text) for text in completions]  # as a number
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with a reward function, and a module beside it that it imports."""
    (tmp_path / "helper.py").write_text("def length(text):\n    return float(len(text))\n")
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


def recipe(*overrides: str, name: str = "sudoku-tiny") -> TrainRecipe:
    return load_recipe(name, overrides)


def test_a_run_depends_on_its_own_method_task_and_order_and_on_no_other() -> None:
    files = own_files([recipe("method.type=egspo_ca", "sampler.order=margin")])
    expected = {
        "methods/egspo_ca",
        "methods/ratio",
        "tasks/sudoku",
        "tasks/base",
        "rewards/grading/answers",
        "sampling/orders/margin",
    }
    assert {f"unmask/{name}.py" for name in expected} <= files.keys()
    # Base classes of the standard library and of installed packages do not count.
    assert all(name.startswith("unmask/") for name in files)
    others = ("methods/dispo", "tasks/countdown", "sampling/orders/entropy", "methods/__init__", "tasks/__init__")
    assert not {f"unmask/{name}.py" for name in others} & {*files, *engine_files()}
    engine = {
        "methods/base",
        "trainer/loop",
        "trainer/learn",
        "sampling/encoding",
        "evaluation/evaluate",
        "trainer/pretrain",
        "sampling/denoise",
        "functional/surrogate",
    }
    assert {f"unmask/{name}.py" for name in engine} <= engine_files().keys()
    assert not any("report" in name or "console" in name or "/cli/" in name for name in engine_files())


def test_files_that_a_recipe_names_count_and_what_they_import_from_their_folder(mine: Path) -> None:
    (mine / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    files = own_files(
        [recipe(f"task={{type: dataset, path: {mine / 'rows.jsonl'}}}", f"reward_funcs=[{mine}/mine.py:reward]")]
    )
    assert {str(mine / name) for name in ("rows.jsonl", "mine.py", "helper.py")} <= files.keys()
    assert "unmask/tasks/dataset.py" in files


def test_a_reward_function_of_a_module_counts(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    assert str(mine / "mine.py") in own_files([recipe("reward_funcs=[mine:reward]")])
    assert "unmask/rewards/format.py" in own_files([recipe("reward_funcs=[unmask.rewards:tag_count]")])


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("mine.py", "length(text)", "-length(text)"),
        ("mine.py", "from helper", "import math\nfrom helper"),
        ("helper.py", "float(len(text))", "2.0"),
        ("helper.py", "return float(len(text))", "return float(len(text)) or None"),
    ],
)
def test_an_edit_is_found_in_the_file_where_it_is(mine: Path, name: str, before: str, after: str) -> None:
    files = own_files([recipe(f"reward_funcs=[{mine}/mine.py:reward]")])
    assert edited(files) == []
    path = mine / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert edited(files) == [str(path)]
    path.write_text(text)
    assert edited(files) == [], "the edit is undone"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# as a number", "# a number for each"),
        ('"""One for each character."""', '"""As long, as good."""'),
        ('"""Rewards of mine."""\n', ""),
        ("return [", "return [\n        "),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(mine: Path, before: str, after: str) -> None:
    files = own_files([recipe(f"reward_funcs=[{mine}/mine.py:reward]")])
    assert before in REWARD
    (mine / "mine.py").write_text(REWARD.replace(before, after))
    assert edited(files) == []


def test_a_file_that_is_not_python_after_an_edit_is_edited_and_raises_nothing(mine: Path) -> None:
    files = own_files([recipe(f"reward_funcs=[{mine}/mine.py:reward]")])
    (mine / "mine.py").write_bytes(b"def broken(:\n\xff\x00")
    assert edited(files) == [str(mine / "mine.py")]


def test_an_absent_file_counts_as_missing_and_not_as_edited(mine: Path) -> None:
    files = own_files([recipe(f"reward_funcs=[{mine}/mine.py:reward]")])
    (mine / "helper.py").unlink()
    assert (edited(files), missing(files)) == ([], [str(mine / "helper.py")])
    # The package is here, so one of its modules that is gone was taken out.
    assert edited({"unmask/gone.py": "0"}) == ["unmask/gone.py"]


def test_imports_with_dots_and_in_circles_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "own"
    (package / "deep").mkdir(parents=True)
    (package / "one.py").write_text("from .deep import two\ndef reward(completions, **_): ...\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "two.py").write_text("from ..three import x\n")
    (package / "three.py").write_text("import numpy, one\nx = 1\n")
    files = own_files([recipe(f"reward_funcs=[{package}/one.py:reward]")])
    assert {name.removeprefix(f"{package}/") for name in files if name.startswith(str(package))} == {
        *("one.py", "three.py", "deep/__init__.py", "deep/two.py")
    }


def test_a_model_folder_counts_by_its_content(tmp_path: Path) -> None:
    task = {key: value for key, value in SMALL["tasks"]["sudoku"].items() if not key.startswith("base")}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1")
    plan = Plan(small(tmp_path, "tuning=", tasks={"sudoku": task | {"model": str(tmp_path / "model")}}))
    before = plan.bases()[0].code_now
    (tmp_path / "model" / "model.safetensors").write_bytes(b"22")
    assert plan.bases()[0].code_now != before


def test_a_model_folder_is_found_again_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    files = own_files([], model="model")
    assert (edited(files), missing(files)) == ([], [])
    weights.write_bytes(b"22")
    assert edited(files) == [str(weights)]


def test_cells_depend_on_the_task_of_their_base_too(tmp_path: Path) -> None:
    changes = {"base_overrides": {"task.type": "countdown"}}
    other = small(tmp_path, "tuning=", tasks={"sudoku": SMALL["tasks"]["sudoku"] | changes})
    assert "unmask/tasks/countdown.py" in Plan(other).bases()[0].files[1]
    assert "unmask/tasks/countdown.py" not in Plan(small(tmp_path, "tuning=")).bases()[0].files[1]


def test_equal_files_have_one_name() -> None:
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"}) != digest_of({"a": "2", "b": "1"})
