"""Every command that a document shows is run here at tiny size, or is on the short list of those that cannot be."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from tests.helpers.messages import raises
from tests.helpers.runs import unmask, without_report
from tests.helpers.sglang import exchanges, write_lines
from tests.helpers.shown import ROOT, Page, pages
from unmask.cli import app
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.models import TinyConfig, char_tokenizer, load_model, save_model, tiny_denoiser
from unmask.recipes.load import load, load_recipe
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.rewards.protocol import load_reward
from unmask.sampling.engine import LocalEngine

pytestmark = pytest.mark.slow

NOT_RUN = {
    r"unmask (train|eval|data check) .*\b(gsm8k|math|math500|kodcode|humaneval|mbpp)\b": "its rows are on the hub",
    r"unmask convert": "its checkpoint is on the hub; tests/models/test_whole_path.py converts mini ones, there and back",
    r"unmask train model=ORIGINAL": "it stands for a refusal",
    r"unmask harness": "its tasks are on the hub; tests/evaluation/test_lm_eval.py runs it on tasks of its own",
    r"unmask compare (?!.*--report)[\w-]+( |$)": "it takes minutes or hours; tests/trainer/comparison is small",
    r"unmask serve": "it runs until it is stopped; tests/cli/test_serving.py starts and stops it",
    r"unmask demo": "a minute; tests/cli/test_cli.py runs it at tiny size",
    r"accelerate launch\b|torchrun |srun ": "processes of their own; recipes and options are checked here",
    r"make |pip |git |\.venv/bin/": "it sets the repository up, or runs these tests; targets, extras and paths are looked up",
    r"python -m benchmark\.": "minutes to hours; its module and its options are looked up here",
}
"""Patterns of commands that are checked without being run, with the reason."""

TINY_TRAIN = {
    "max_steps": 1,
    "num_prompts": 2,
    "num_iterations": 1,
    "num_minibatches": 1,
    "num_rows": 20,
    "log_rollouts_steps": 1,
    "evaluation.num_rows": 2,
    "evaluation.eval_steps": 0,
    "optim.warmup_steps": 0,
}
TINY_PRETRAIN = {
    "max_steps": 2,
    "batch_size": 4,
    "num_rows": 20,
    "tiny.num_layers": 1,
    "tiny.width": 16,
    "tiny.num_heads": 2,
    "optim.warmup_steps": 0,
}
LANGUAGE = {
    "sampler.max_completion_length": 32,
    "sampler.num_steps": 16,
    "sampler.block_length": 16,
    "precision": "float32",
}
"""Of recipes for language models, whose completions are long."""
PLACEHOLDERS = {
    "MODEL": "models/any",
    "NAME": "egspo",
    "RECIPE": "sudoku-tiny",
    "RUN...": "runs/any",
    "TASK": "sudoku",
}
ALONE = ("methods", "tasks", "models", "recipes", "doctor", "demo", "--help")
"""Commands that need no argument. Others without any are only spoken of."""
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the commands are run one after the other, as a reader would, with the repository's files beside."""
    place = tmp_path_factory.mktemp("world")
    shape = TinyConfig(num_layers=1, width=16, num_heads=2, max_length=700)
    tokenizer = char_tokenizer("".join(sorted(set(string.printable) - set("\r\x0b\x0c"))))
    tokenizer.chat_template = CHAT
    save_model(tiny_denoiser(shape, tokenizer, seed=0), tokenizer, place / "models" / "any")
    for name in ("examples", "src", "docs"):
        (place / name).symlink_to(ROOT / name)
    (place / "rows.csv").write_text("prompt,answer\n" + "".join(f"{i}=,{i}\n" for i in range(60)))
    (place / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        write(place, next(page for page in pages() if page.name == "README.md").files())
        shutil.copy("mine.yaml", "my-recipe.yaml")
        Path("base.yaml").write_text("task: {type: dataset, path: rows.csv}\ntiny: {max_length: 16}\n")
        yield place


def write(place: Path, files: dict[str, str]) -> None:
    """The files of a page; a recipe must hold as it stands there, and is then made tiny."""
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
    for name, text in files.items():
        tree = yaml.safe_load(text) if name.endswith(".yaml") else {}
        if "method" in tree:
            load_recipe(str(place / name))
        elif "methods" in tree:
            small = {"sampler.num_steps": 4, "num_rows": 20, "num_prompts": 2, "evaluation.num_rows": 2}
            for task in tree["tasks"].values():
                task |= {"budget": 5000, "overrides": small, "base_overrides": TINY_PRETRAIN}
            for method in tree["methods"].values():
                method["settings"].pop("num_prompts", None)
            tree |= {"seeds": [0], "evaluation": {"num_rows": 4, "curve_points": 1, "curve_rows": 4}}
            (place / name).write_text(yaml.safe_dump(tree, sort_keys=False))


def has_model(source: str) -> str:
    """A model under this path: a tiny one that knows all letters, unless a command has put one there."""
    if not Path(source, "config.json").exists():
        shutil.copytree("models/any", source, dirs_exist_ok=True)
    return source


def overrides(settings: dict[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def command_of(name: str) -> Any:
    """A command as its parser is."""
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


def train(words: list[str]) -> None:
    source, rest = words[0], [word for word in words[1:] if word != "--resume"]
    load_recipe(source, rest)
    size = dict(TINY_TRAIN)
    recipe = load_recipe(source, rest)
    if recipe.sampler.max_completion_length > 64:
        size |= LANGUAGE
    elif recipe.method.type in ("just_grpo", "mask_aware"):
        size["sampler.num_steps"] = recipe.sampler.max_completion_length
    small: TrainRecipe = load_recipe(source, [*rest, *overrides(size)])
    has_model(small.model)
    folder = Path(small.output_dir or "")
    if "--resume" not in words:
        shutil.rmtree(folder, ignore_errors=True)
    with without_report():
        assert unmask("train", *words, *overrides(size)) == 0
    assert (folder / "final" / "model.safetensors").exists()


def pretrain(words: list[str]) -> None:
    recipe = load(PretrainRecipe, words[0], [*words[1:], *overrides(TINY_PRETRAIN)])
    shutil.rmtree(recipe.output_dir or "", ignore_errors=True)
    assert unmask("pretrain", *words, *overrides(TINY_PRETRAIN)) == 0


def evaluate(words: list[str]) -> None:
    has_model(words[0])
    size = ["--rows", 2] + ([] if "--length" in words else ["--length", 32 if "--block-length" in words else 16])
    steps = [] if "--steps" in words else ["--steps", 4]
    assert unmask("eval", *words, *size, *steps) == 0


def compare(words: list[str]) -> None:
    if "--report" in words:
        name = words[0]
        shutil.copytree(ROOT / "benchmark" / "results" / name, "results", dirs_exist_ok=True)
        words = [word for word in words if not word.startswith("output_dir=")] + ["output_dir=results"]
    # In this process: another one takes the seconds of its imports.
    assert unmask("compare", *[word for word in words if word not in ("--jobs", "2")]) == 0


def record_answers(model: str, file: Path) -> None:
    """Write a file of recorded answers of a model."""
    policy = load_model(model)
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, block_length=4, temperature=0.9)
    path = LocalEngine(policy).rollout(["12=3", "4=56"], sampler, torch.arange(2))
    write_lines(file, exchanges(path, [1.0, 0.0]))


def run(words: list[str]) -> None:
    """Run a command of unmask's, or check it if it is on the list."""
    name, *rest = words
    if any(word.startswith("[") or {*word.split("/")} & {"NAME", "PRESET", "FOLDER", "FILE"} for word in rest):
        # A synopsis: what it names must be there.
        known = {option for parameter in command_of(name).params for option in parameter.opts}
        assert {word.strip("[]") for word in rest if word.strip("[").startswith("--")} <= known
        return
    if "..." in rest or (not rest and name not in ALONE):
        assert command_of(name), name
        return
    match name:
        case "train":
            train(rest)
        case "pretrain":
            pretrain(rest)
        case "eval":
            evaluate(rest)
        case "estimate":
            if not load_recipe(rest[0]).model.startswith("GSAI-ML/"):
                has_model(load_recipe(rest[0]).model)
            assert unmask("estimate", *rest) == 0
        case "sample":
            has_model(rest[0])
            assert unmask("sample", *rest) == 0
        case "compare":
            compare(rest)
        case "import-rollouts":
            record_answers(has_model(rest[0]), Path(rest[1]))
            assert unmask(name, *rest) == 0
        case "data":
            assert unmask("data", *rest, "--rows", 50) in (0, 1)
        case "report" | "plot":
            for folder in (word for word in rest if word.startswith("runs/")):
                if not (Path(folder, "metrics.jsonl").exists() or Path(folder, "cells.jsonl").exists()):
                    train(["sudoku-tiny", f"output_dir={folder}"])
            assert unmask(name, *rest) == 0
        case _:
            assert unmask(name, *rest) == 0


def checked(words: list[str]) -> None:
    """What can be said of a command that is not run: it parses, its recipe is valid, its rewards, files and options are there."""
    match words:
        case ["unmask", "train", *rest]:
            if "=" not in rest[0]:
                for path in load_recipe(rest[0], [word for word in rest[1:] if word != "--resume"]).reward_funcs:
                    load_reward(path)
        case ["srun", "bash", script, *rest]:
            assert (ROOT / script).is_file()
            checked(["unmask", *rest])
        case ["accelerate", "launch", *rest] | ["torchrun", *rest] if "-m" in rest:
            parser = launch_command_parser() if words[0] == "accelerate" else get_args_parser()
            assert parser.parse_known_args(rest)[0].training_script == "unmask"
            checked(["unmask", *rest[rest.index("unmask") + 1 :]])
        case ["accelerate", "launch" | "config", *_]:
            pass
        case ["unmask", *rest]:
            command = typer.main.get_command(app)
            while hasattr(command, "commands"):
                command, rest = command.commands[rest[0]], rest[1:]
            if rest and command.name != "harness":
                command.make_context(command.name, list(rest))
        case ["make", *rest]:
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert [word for word in rest if "=" not in word][0] in targets
        case ["pip", "install", *rest]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert all(extra in known for word in rest for extra in re.findall(r"unmask\[(.+)\]", word))
        case ["python", "-m", module, *rest]:
            place = ROOT / module.replace(".", "/")
            file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
            source = file.read_text(encoding="utf-8")
            assert all(word.lstrip("-") in source for word in rest if word.startswith("--")), words
        case [".venv/bin/pytest", folder, *_]:
            assert (ROOT / folder).exists()
        case ["git", *_]:
            pass
        case _:
            raise AssertionError(f"nobody knows how to check {shlex.join(words)}")


def generated() -> list[Page]:
    """The pages that the site makes from the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "site"))
        import catalogue

        return [
            Page(place, text) for place, text in catalogue.pages().items() if place.startswith(("tasks/", "models/"))
        ]


DONE: set[str] = set()
"""Commands that were run: one that stands on several pages is run once, unless a page brings files for it."""


def follow(page: Page, world: Path) -> int:
    """Do what a page says, and return how many commands it shows."""
    files = page.files()
    write(world, files)
    commands = page.commands()
    for command in commands:
        named = {"NAME": "paper-tiny"} if "compare" in command else {}
        words = [(PLACEHOLDERS | named).get(word, word) for word in command]
        line = shlex.join(words)
        own = any(name in word for name in files for word in words) or any(
            re.search(r"runs/(mine|base)", w) for w in words
        )
        if line in DONE and not own:
            continue
        DONE.add(line)
        if any(re.match(pattern, line.replace("'", "")) for pattern in NOT_RUN):
            checked(words)
        elif words[0] == "unmask":
            run(words[1:])
        else:
            program, script = words
            assert program == "python", line
            runpy.run_path(script, run_name="__main__")
    return len(commands)


@pytest.mark.parametrize("page", [page for page in pages() if page.commands()], ids=lambda page: page.name)
def test_every_command_on_the_page_does_what_it_says(page: Page, world: Path) -> None:
    assert follow(page, world) > 0


def test_every_command_on_the_pages_that_are_made_from_the_code_runs(world: Path) -> None:
    assert sum(follow(page, world) for page in generated()) > 20


@pytest.mark.parametrize(
    "page", [page for page in pages() if page.python() and page.name != "docs/python.md"], ids=lambda page: page.name
)
def test_every_piece_of_python_on_the_page_runs(page: Page, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import unmask as package

    write(world, page.files())
    has_model("runs/base/final")
    has_model("runs/sudoku-tiny-base/final")
    if "final/adapter" in page.text:
        train(["sudoku-tiny", "lora={}", f"model={has_model('path/to/base')}", "output_dir=runs/mine"])
    tiny = [*overrides(TINY_TRAIN), "num_generations=2"]
    monkeypatch.setattr(
        package, "load_recipe", lambda source, given=(), **more: load_recipe(load_recipe(source, given, **more), tiny)
    )
    shutil.rmtree("runs/from-python", ignore_errors=True)
    for source in page.python():
        exec(compile(source, page.name, "exec"), {"__name__": "shown"})


def test_the_commands_are_found_and_the_list_of_those_not_run_is_short() -> None:
    commands = [shlex.join(command) for page in pages() for command in page.commands()]
    assert len(commands) > 80
    for wanted in ("unmask train sudoku-tiny", "unmask data check sudoku", "unmask methods NAME", "make demo"):
        assert wanted in commands
    assert len(NOT_RUN) <= 12
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line.replace("'", "")) for line in commands) or "demo" in pattern, pattern


def test_a_command_that_does_not_hold_is_noticed(world: Path) -> None:
    def said(text: str) -> None:
        follow(Page("page.md", f"```bash\n{text}\n```\n"), world)

    for wrong in ("unmask tasks --al", "unmask eval MODEL --task sudok", "make demos", 'pip install "unmask[maths]"'):
        with pytest.raises(AssertionError):
            said(wrong)
    with raises(ConfigError, "optim", '"rate"'):
        said("unmask train sudoku-tiny optim.rate=1")
    with raises(ConfigError, "gsm9k"):
        said("accelerate launch -m unmask train published/egspo-sa-llada-gsm9k")
    with pytest.raises(FileNotFoundError):
        said("python -m benchmark.nothing")
