"""Recipes: where they are read from, which override wins, and one clear sentence for each
mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.messages import raises
from unmask.core.config import LoraConfig
from unmask.core.errors import ConfigError, DataError
from unmask.recipes.load import (
    apply_override,
    completed,
    dump,
    find_recipe,
    load,
    load_recipe,
    make_sampler,
    make_task,
    shipped_recipes,
    validate,
)
from unmask.recipes.schema import PretrainRecipe, TrainRecipe
from unmask.tasks import Sudoku

MINIMAL = {"model": "m", "task": {"type": "sudoku"}, "method": {"type": "egspo", "num_selected": 2}}


def written(folder: Path, tree: object, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def refusal(*overrides: str, source: str = "sudoku-tiny", words: Sequence[str] = ()) -> str:
    """Return the message that refuses a recipe with overrides; it is in the snapshot and contains the given words."""
    with raises(ConfigError, *words) as caught:
        load_recipe(source, overrides)
    return str(caught.value)


# --- shipped recipes and files ---


def kind_of(path: Path) -> type[TrainRecipe] | type[PretrainRecipe]:
    return TrainRecipe if "method" in yaml.safe_load(path.read_text()) else PretrainRecipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    kind = kind_of(find_recipe(name))
    recipe = load(kind, name)
    assert recipe.output_dir == f"runs/{name}"
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    assert load(kind, str(tmp_path / "copy.yaml")) == recipe


def test_every_shipped_training_recipe_starts_from_what_a_shipped_one_pretrains() -> None:
    bases = {
        f"{load(PretrainRecipe, n).output_dir}/final"
        for n, p in shipped_recipes().items()
        if kind_of(p) is PretrainRecipe
    }
    models = {load_recipe(n).model for n, p in shipped_recipes().items() if kind_of(p) is TrainRecipe}
    assert models
    assert models <= bases


def test_the_default_run_is_the_published_setting_on_the_papers_task() -> None:
    recipe = load_recipe("sudoku-tiny")
    assert (recipe.method.type, recipe.task.type) == ("egspo_sa", "sudoku")
    assert recipe.method.model_dump()["stepwise_weight"] == 0.5
    assert recipe.sampler.order == "low_confidence"


def test_a_file_is_read_and_names_its_run_folder(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, MINIMAL | {"seed": 7}))
    assert (recipe.seed, recipe.model, recipe.output_dir) == (7, "m", "runs/mine")


def test_options_of_a_method_and_a_task_survive_a_dump(tmp_path: Path) -> None:
    recipe = load_recipe(
        "sudoku-tiny",
        ["method.beta=0.5", "method.kl=exact", "task.sparse=true", "optim.betas=[0.8, 0.9]", "logprob_temperature=1.0"],
    )
    (tmp_path / "copy.yaml").write_text(dump(recipe))
    copy = load_recipe(str(tmp_path / "copy.yaml"))
    assert copy == recipe
    assert (copy.method.beta, copy.task.sparse, copy.logprob_temperature) == (0.5, True, 1.0)  # type: ignore[attr-defined]
    assert copy != load_recipe("sudoku-tiny")


# --- overrides ---


def test_the_last_override_wins_over_the_file_and_those_before_it(tmp_path: Path) -> None:
    source = written(tmp_path, MINIMAL | {"optim": {"learning_rate": 1e-3, "warmup_steps": 5}})
    recipe = load_recipe(source, ["optim.learning_rate=2e-3", "optim.learning_rate=3e-4", "seed=4"])
    # YAML reads 3e-4, which has no dot, as text; the recipe reads it as a number.
    assert (recipe.optim.learning_rate, recipe.optim.warmup_steps, recipe.seed) == (3e-4, 5, 4)


def test_an_override_makes_the_sections_that_are_not_there() -> None:
    tree: dict[str, Any] = {}
    apply_override(tree, "a.b.c=[1, x]")
    apply_override(tree, "a.b.d=k=v")
    apply_override(tree, "e=")
    assert tree == {"a": {"b": {"c": [1, "x"], "d": "k=v"}}, "e": None}


def test_a_recorded_recipe_gets_the_defaults_of_keys_that_it_lacks_and_one_with_unknown_keys_stays_as_it_is() -> None:
    now = load_recipe("sudoku-tiny").model_dump(mode="json")
    before = {key: value for key, value in now.items() if key != "num_minibatches"}
    before["method"] = {key: value for key, value in now["method"].items() if key != "epsilon"}
    assert completed(TrainRecipe)(before) == now != before
    assert completed(TrainRecipe)({**before, "gone": 1}) == {**before, "gone": 1}


@pytest.mark.parametrize(
    ("override", "word"),
    [("seed", "key=value"), ("=3", "key=value"), ("seed=[1", "YAML"), ("max_steps.x.y=1", "single value")],
)
def test_a_malformed_override_is_quoted(override: str, word: str) -> None:
    refusal(override, words=[f'"{override}"', word])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("report_to=tensorboard", "report_to", ("tensorboard",)),
        ("report_to=none", "report_to", ()),
        ("report_to=", "report_to", ()),
        ("reward_funcs=a.py:f", "reward_funcs", ("a.py:f",)),
        ("reward_weights=2", "reward_weights", (2.0,)),
        ("evaluation.temperatures=0.5", "evaluation.temperatures", (0.5,)),
        ("lora.targets=q_proj", "lora.targets", ("q_proj",)),
        ("lora.targets=all-linear", "lora.targets", "all-linear"),
    ],
)
def test_a_single_value_stands_for_a_list_of_one(override: str, key: str, value: object) -> None:
    current: Any = load_recipe("sudoku-tiny", [override])
    for name in key.split("."):
        current = getattr(current, name)
    assert current == value


def test_a_path_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, MINIMAL | {"model": "~/models/m", "output_dir": "~/runs"})
    recipe = load_recipe("~/mine.yaml", ["reward_funcs=[~/a.py:f]", "task={type: dataset, path: ~/rows.csv}"])
    assert (recipe.model, recipe.output_dir) == (f"{tmp_path}/models/m", f"{tmp_path}/runs")
    assert recipe.reward_funcs == (f"{tmp_path}/a.py:f",)
    assert recipe.task.model_dump()["path"] == f"{tmp_path}/rows.csv"


# --- from Python ---


def test_a_dict_is_a_recipe() -> None:
    recipe = load_recipe(MINIMAL | {"optim.learning_rate": 1e-3, "optim": {"warmup_steps": 3}})
    assert (recipe.model, recipe.optim.learning_rate, recipe.optim.warmup_steps) == ("m", 1e-3, 3)
    assert load(PretrainRecipe, {"task": {"type": "sudoku"}, "noise_share": 0.5}).noise_share == 0.5
    with raises(ConfigError, "unmask pretrain RECIPE"):
        load_recipe({"task": {"type": "sudoku"}, "noise_share": 0.5})


def test_changes_may_be_texts_a_dict_or_keywords_and_later_ones_win() -> None:
    changes = {"max_steps": 2, "optim": {"learning_rate": 1e-3}, "sampler.num_steps": 4}
    by_dict = load_recipe("sudoku-tiny", changes)
    assert by_dict == load_recipe("sudoku-tiny", ["max_steps=2", "optim.learning_rate=1.0e-3", "sampler.num_steps=4"])
    # A dict changes only the keys that it holds.
    assert by_dict.optim.warmup_steps == load_recipe("sudoku-tiny").optim.warmup_steps
    assert load_recipe("sudoku-tiny", {"max_steps": 2}, max_steps=3, optim={"warmup_steps": 1}).max_steps == 3
    other = load_recipe("sudoku-tiny", {"method": {"num_selected": 2, "type": "egspo_ca"}})
    assert (other.method.type, other.method.model_dump()["num_selected"]) == ("egspo_ca", 2)
    with raises(ConfigError, "sampler.temperature"):
        load_recipe("sudoku-tiny", {"temperature": 1.0})


def test_a_loaded_recipe_can_be_loaded_again_with_changes_but_not_written_to() -> None:
    recipe = load_recipe("sudoku-tiny", ["seed=4"])
    changed = load_recipe(recipe, {"max_steps": 3})
    assert (changed.seed, changed.max_steps, recipe.max_steps) == (4, 3, load_recipe("sudoku-tiny").max_steps)
    for section, name, key in ((recipe, "max_steps", "max_steps"), (recipe.method, "beta", "method.beta")):
        with raises(ConfigError, key, "load_recipe"):
            setattr(section, name, 3)


def test_evaluations_take_the_steps_of_rollouts_or_their_own() -> None:
    own = load_recipe("sudoku-tiny", {"evaluation.num_steps": 16})
    assert (own.sampler.steps, own.evaluation_sampler(0.0).steps) == (8, 16)
    same = load_recipe("sudoku-tiny", {"sampler.num_steps": 2})
    assert (same.evaluation_sampler(0.9).steps, same.evaluation_sampler(0.9).temperature) == (2, 0.9)
    with raises(ConfigError, "evaluation.num_steps", "17", "max_completion_length = 16"):
        load_recipe("sudoku-tiny", {"evaluation.num_steps": 17})


def test_what_is_not_a_recipe_is_named() -> None:
    with raises(ConfigError, "int", "YAML"):
        load_recipe(3)  # type: ignore[arg-type]


# --- unknown names ---


@pytest.mark.parametrize(
    ("override", "unknown", "nearest", "available"),
    [
        ("num_promts=3", "num_promts", "num_prompts", "num_generations"),
        ("method.num_select=3", "num_select", "num_selected", "step_choice"),
        ("task.min_blank=3", "min_blank", "min_blanks", "max_blanks"),
        ("sampler.orderr=random", "orderr", "order", "block_length"),
        ("evaluation.splits=test", "splits", "split", "num_rows"),
        ("method.type=egpso", "egpso", "egspo", "egspo_sa"),
        ("task.type=sudku", "sudku", "sudoku", "countdown"),
        ("sampler.order=randm", "randm", "random", "low_confidence"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one_and_the_full_list(
    override: str, unknown: str, nearest: str, available: str
) -> None:
    message = refusal(override, words=[f'"{unknown}"', f'Did you mean "{nearest}"?'])
    assert available in message.partition("Available: ")[2].rstrip(".").split(", ")
    assert "\n" not in message


def test_an_unknown_recipe_gets_the_nearest_one(tmp_path: Path) -> None:
    refusal(source="sudoku-tinny", words=['"sudoku-tinny"', 'Did you mean "sudoku-tiny"?', "Available"])
    missing = str(tmp_path / "none.yaml")
    assert refusal(source=missing) == f"there is no recipe file {missing}."
    assert refusal(source="none.yaml") == (
        f"there is no recipe file none.yaml. Relative paths are read from the current folder, {Path.cwd()}."
    )


def test_several_mistakes_get_a_line_each() -> None:
    message = refusal("num_promts=3", "optim.learning_rate=fast", "sampler.block_length=5")
    assert sorted(line.split(" ")[0] for line in message.splitlines()) == ["optim.learning_rate", "sampler:", "unknown"]


def test_a_recipe_of_the_other_command_names_that_command() -> None:
    assert refusal(source="sudoku-tiny-base") == (
        "sudoku-tiny-base is a recipe for the other command: unmask pretrain sudoku-tiny-base"
    )
    with raises(ConfigError, "unmask train sudoku-tiny"):
        load(PretrainRecipe, "sudoku-tiny")


# --- invalid values ---


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler.block_length=5"], ["block_length = 5", "max_completion_length = 16", "divisor"]),
        (["sampler.num_steps=17"], ["num_steps = 17", "max_completion_length = 16"]),
        (["sampler.block_length=8", "sampler.num_steps=3"], ["num_steps = 3", "2 blocks", "multiple of 2"]),
        (["method.num_selected=9"], ["method.num_selected = 9", "8 denoising steps", "8 or less"]),
        (["num_generations=1"], ["num_generations = 1", "egspo_sa", "Set num_generations"]),
        (["reward_funcs=[a:f, b:g]", "reward_weights=[1]"], ["1 reward_weights", "2 reward_funcs"]),
        (["optim.learning_rate=fast"], ["optim.learning_rate = 'fast'", "number"]),
        (["max_steps=0"], ["max_steps = 0", "1"]),
        (["num_prompts=1.5"], ["num_prompts = 1.5", "integer"]),
        (["evaluation.split=train"], ["evaluation.split = 'train'", "'validation'", "'test'"]),
        (["method=egspo"], ["method = 'egspo'", "method.type=egspo"]),
        (["optim=3"], ["optim = 3", "optim.learning_rate=VALUE"]),
        (["reward_funcs={a: 1}"], ["reward_funcs = {'a': 1}", "list"]),
        (["reward_weights=1,2"], ["reward_weights.0 = '1,2'", "[1,2]"]),
        (["model="], ["model = None", "string"]),
        (["task={}"], ["task.type"]),
        (["task.type=dataset"], ["task.path"]),
        (["task.max_blanks=3", "task.min_blanks=4"], ["min_blanks = 4", "max_blanks = 3"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_invalid_value_gets_a_message_with_a_remedy(overrides: list[str], words: list[str]) -> None:
    assert "\n" not in refusal(*overrides, words=words)


def test_all_steps_need_no_number_of_them() -> None:
    recipe = load_recipe("sudoku-tiny", ["method.num_selected=9", "method.step_choice=all"])
    assert recipe.method.needs().selection == ("all", 9)


def test_what_the_recipe_must_set_is_named(tmp_path: Path) -> None:
    message = refusal(source=written(tmp_path, {"seed": 1}))
    assert [line.split()[0] for line in message.splitlines()] == ["task", "model", "method"]


# --- files without a recipe ---


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"a: [1\nb: 2", "YAML"), (b"- 1\n- 2", "key: value"), (b"a: \xff", "UTF-8"), (b"", "nothing")],
)
def test_a_file_that_does_not_hold_a_recipe_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    refusal(source=str(path), words=[str(path), word])


# --- parts of a recipe on their own ---


def test_a_task_is_made_from_its_name_and_options() -> None:
    assert make_task("sudoku", ["min_blanks=5", "sparse=true"]) == Sudoku(min_blanks=5, sparse=True)
    for name, options, words in (
        ("sudku", [], ['"sudku"', '"sudoku"']),
        ("sudoku", ["min_blank=5"], ['"min_blank"', '"min_blanks"']),
        ("sudoku", ["min_blanks"], ['"min_blanks"', "key=value"]),
    ):
        with raises(ConfigError, *words):
            make_task(name, options)


def test_a_sampler_is_made_from_keywords() -> None:
    assert make_sampler(max_completion_length=8, num_steps=2).steps == 2
    for settings, words in (
        ({"max_completion_length": 8, "num_steps": 9}, ["num_steps = 9", "max_completion_length = 8"]),
        ({"temperature": -1}, ["temperature = -1", "0"]),
        ({"order": "randm"}, ['"randm"', '"random"']),
    ):
        with raises(ConfigError, *words):
            make_sampler(**settings)


def test_a_pretraining_recipe_has_rules_of_its_own() -> None:
    recipe = load(PretrainRecipe, "sudoku-tiny-base", ["noise_share=0.5", "tiny.width=32"])
    assert (recipe.noise_share, recipe.tiny.width, recipe.model) == (0.5, 32, None)
    with raises(ConfigError, "noise_share", "1.5"):
        load(PretrainRecipe, "sudoku-tiny-base", ["noise_share=1.5"])
    with raises(ConfigError, "widht", "width"):
        load(PretrainRecipe, "sudoku-tiny-base", ["tiny.widht=32"])


def test_a_tree_can_be_validated_without_a_file() -> None:
    recipe = validate(TrainRecipe, MINIMAL)
    assert isinstance(recipe.task, Sudoku)
    assert recipe.sampler.max_completion_length == 256
    with raises(DataError, "trian"):
        recipe.task.rows("trian", 1)  # type: ignore[arg-type]


def test_another_method_begins_with_its_published_setting_whatever_the_file_says_of_its_own() -> None:
    plain = load_recipe("sudoku-tiny", ["method.type=egspo"])
    assert (plain.method.num_selected, plain.method.beta) == (8, 0.04)
    # The beta of 0 in the file was meant for egspo_sa, not for vrpo.
    assert load_recipe("sudoku-tiny", ["method.type=vrpo"]).method.beta > 0
    # Options given together with the type belong to it, in any order and whatever the file says.
    assert load_recipe("sudoku-tiny", ["method.beta=0.0", "method.type=egspo"]).method.beta == 0.0
    other = load_recipe("sudoku-tiny", ["method.num_selected=2", "method.type=egspo_ca"])
    assert other.method.num_selected == 2
    with raises(ConfigError, "method", "beta"):
        load_recipe("sudoku-tiny", ["method.type=egspo_ca", "method.beta=0.1"])


# --- adapters, precision, memory ---


def test_adapters_are_off_until_one_key_below_them_is_set() -> None:
    assert load_recipe("sudoku-tiny").lora is None
    lora = load_recipe("sudoku-tiny", ["lora.r=8", "lora.targets=[c_attn]"]).lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.dropout, lora.targets, lora.quantize) == (8, 64.0, 0.0, ("c_attn",), "none")


def test_a_key_below_one_that_is_null_can_be_set(tmp_path: Path) -> None:
    source = written(tmp_path, MINIMAL | {"lora": None})
    assert load_recipe(source).lora is None
    assert load_recipe(source, ["lora.r=4"]).lora == LoraConfig(r=4)


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("lora.targets=[]", "all-linear"),
        ("lora.rank=3", '"rank"'),
        ("lora.dropout=1", "lora.dropout = 1"),
        ("lora.quantize=8bit", "'4bit'"),
        ("precision=half", "'bf16'"),
        ("max_tokens_per_forward=many", "auto"),
        ("max_tokens_per_forward=0", "auto"),
        ("max_tokens_per_forward=10", "16 tokens"),
        ("ref_model_mixup_alpha=0", "ref_model_mixup_alpha = 0"),
    ],
)
def test_an_impossible_value_is_refused_in_one_line(override: str, word: str) -> None:
    assert "\n" not in refusal(override, words=[override.partition("=")[0].rpartition(".")[2], word])


def test_a_reference_that_nothing_reads_cannot_follow() -> None:
    assert "uses none with these settings" in refusal("sync_ref_model=true", "method.beta=0")
    assert load_recipe("sudoku-tiny", ["sync_ref_model=true", "method.beta=0.1"]).sync_ref_model


def test_settings_that_a_critic_or_its_absence_makes_idle_are_refused() -> None:
    critic = "method={type: egspo, num_selected: 2, baseline: critic}"
    assert load_recipe("sudoku-tiny", [critic, "critic.ridge=3"]).critic.ridge == 3
    assert "critic.ridge = 3" in refusal("critic.ridge=3")
    assert "critic.decay = 0.5" in refusal("critic.decay=0.5", "method={type: egspo, num_selected: 2}")
    assert "refill_rounds = 2" in refusal(critic, "refill_rounds=2")
    weighted = critic.replace("}", ", stepwise_weight: 0.5}")
    assert "stepwise_weight = 0.5 has no effect" in refusal(weighted)
    # The default of EGSPO-SA is no setting of the user, also in the saved recipe of a run.
    saved = load_recipe("sudoku-tiny", ["method={type: egspo_sa, num_selected: 2, baseline: value}"]).model_dump()
    assert type(load_recipe("sudoku-tiny")).model_validate(saved).method.baseline == "value"


def test_a_new_model_has_nothing_to_adapt() -> None:
    with raises(ConfigError, "lora", "existing model"):
        load(PretrainRecipe, "sudoku-tiny-base", ["lora.r=4"])
    with raises(ConfigError, "muon_learning_rate"):
        load(PretrainRecipe, "sudoku-tiny-base", ["lora.r=4", "model=m", "muon_learning_rate=0.02"])
    loaded = load(PretrainRecipe, "sudoku-tiny-base", ["lora.r=4", "model=m", "muon_learning_rate=0"])
    assert loaded.lora == LoraConfig(r=4)


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("sudoku-tiny.yaml", "sudoku-tiny."),
        ("paper-tiny", "unmask compare paper-tiny"),
        ("max_steps=3", "recipe first"),
        ("SUDOKU-TINY", 'Did you mean "sudoku-tiny"?'),
        ("sudoku_tiny", 'Did you mean "sudoku-tiny"?'),
    ],
)
def test_a_source_that_is_nearly_right_is_answered_with_the_right_one(source: str, remedy: str) -> None:
    refusal(source=source, words=[source, remedy])


def test_a_folder_is_refused_and_a_run_folder_names_its_recipe(tmp_path: Path) -> None:
    with raises(ConfigError, "folder", "YAML"):
        load_recipe(str(tmp_path))
    (tmp_path / "config.yaml").touch()
    with raises(ConfigError, "config.yaml", "recipe"):
        load_recipe(str(tmp_path))


def test_a_method_in_capitals_is_answered_with_its_name() -> None:
    with raises(ConfigError, "EGSPO-SA", "egspo_sa"):
        load_recipe("sudoku-tiny", ["method.type=EGSPO-SA"])
