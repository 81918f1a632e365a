"""Whole runs: they are reproducible, write what the docs say, and a resumed run equals an
uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import unmask
from tests.helpers.messages import raises
from tests.helpers.paths import ROOT
from tests.helpers.runs import metrics, steps_saved, train_recipe, weights
from unmask.core.errors import ConfigError, DataError, RewardError, RunError
from unmask.models import load_model
from unmask.recipes.load import validate
from unmask.recipes.schema import TrainRecipe
from unmask.rewards import per_completion
from unmask.runs.saved_rollouts import SavedRollout
from unmask.sampling.encoding import decode
from unmask.sampling.engine import LocalEngine
from unmask.tasks import Sudoku
from unmask.trainer import Trainer
from unmask.trainer.distributed.progress import Progress
from unmask.trainer.distributed.stopping import RunStoppedError


class Reward:
    """Rewards that vary. The call `fail_at`, counted from 1, returns what `failure` makes of
    them."""

    per_completion = True

    def __init__(self, fail_at: int | None = None, failure: Callable[[list[float]], Any] | None = None) -> None:
        self.calls, self.fail_at, self.failure = 0, fail_at, failure

    def __call__(self, completions: list[str], **_: Any) -> Any:
        self.calls += 1
        values = [text.count("1") + 0.1 * len(text) for text in completions]
        return self.failure(values) if self.calls == self.fail_at and self.failure else values


def train(recipe: TrainRecipe, reward: Any = None, **options: Any) -> Path:
    return Trainer(recipe, [reward or Reward()], **options).train()


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    return train(train_recipe(tiny_model, tmp_path_factory.mktemp("whole") / "run"))


# --- uninterrupted runs ---


@pytest.mark.slow
def test_the_same_run_gives_the_same_metrics_and_weights(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    again = train(train_recipe(tiny_model, tmp_path / "run"))
    assert metrics(again) == metrics(whole)
    assert weights(again) == weights(whole)


@pytest.mark.slow
def test_another_seed_gives_other_metrics_and_weights(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = train(train_recipe(tiny_model, tmp_path / "run", "seed=1"))
    assert [line["step"] for line in metrics(other)] == [line["step"] for line in metrics(whole)]
    assert all(
        ours["reward"] != theirs["reward"] for ours, theirs in zip(metrics(other)[1:], metrics(whole)[1:], strict=True)
    )
    assert weights(other) != weights(whole)


def test_weights_change_and_transformers_loads_the_final_model(whole: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    trained, _ = load_model(whole / "final")
    assert weights(whole) != (tiny_model / "model.safetensors").read_bytes()
    native = AutoModelForCausalLM.from_pretrained(whole / "final")
    assert all(torch.equal(a, b) for a, b in zip(trained.backbone.parameters(), native.parameters(), strict=True))


def test_a_line_is_logged_for_every_step_and_evaluations_when_they_are_due(whole: Path) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(7))
    assert [line["step"] for line in lines if "eval/test@0/accuracy" in line] == [0, 3, 6]
    assert [line["step"] for line in lines if "eval/test@0.9/accuracy" in line] == [0, 3, 6]
    assert all(line["reward"] == line["rewards/Reward/mean"] for line in lines[1:])
    assert all(len(line["diffusion/entropy_by_step"]) == 4 for line in lines[1:])
    assert [line["learning_rate"] for line in lines[1:]] == pytest.approx(
        [6e-4 * share for share in (0.5, 1.0, 0.775, 0.55, 0.325, 0.1)]
    )


def test_an_evaluation_uses_the_current_model_and_examples_that_training_never_sees(
    whole: Path, tiny_model: Path
) -> None:
    from unmask.evaluation.evaluate import evaluate
    from unmask.rewards.scorer import Scorer

    recipe = train_recipe(tiny_model, whole)
    rows = Sudoku().rows("test", 4)
    sampler = recipe.sampler.model_copy(update={"temperature": 0.9})
    result = evaluate(LocalEngine(load_model(whole / "final")), Sudoku(), Scorer({"r": Reward()}), rows, sampler)
    last = metrics(whole)[-1]
    names = ("accuracy", "low", "high", "reward")
    assert [last[f"eval/test@0.9/{name}"] for name in names] == [getattr(result, name) for name in names]


def test_an_evaluation_may_take_more_steps_than_rollouts(tiny_model: Path, tmp_path: Path) -> None:
    from unmask.evaluation.evaluate import evaluate
    from unmask.rewards.scorer import Scorer

    settings = ("evaluation.num_steps=16", "evaluation.num_rows=20", "evaluation.eval_steps=0", "max_steps=1")
    recipe = train_recipe(tiny_model, tmp_path / "run", *settings)
    folder = train(recipe)
    engine, scorer = LocalEngine(load_model(folder / "final")), Scorer({"r": Reward()})
    found = metrics(folder)[-1]["eval/test@0.9/reward"]
    expected, other = (
        evaluate(engine, Sudoku(), scorer, Sudoku().rows("test", 20), sampler).reward
        for sampler in (recipe.evaluation_sampler(0.9), recipe.sampler)
    )
    assert recipe.evaluation_sampler(0.9).steps == 16
    assert found == expected != other


def test_a_run_without_evaluations_in_between_evaluates_the_end(tiny_model: Path, tmp_path: Path) -> None:
    folder = train(train_recipe(tiny_model, tmp_path / "run", "evaluation.eval_steps=0", "max_steps=2"))
    assert [line["step"] for line in metrics(folder) if "eval/test@0/accuracy" in line] == [2]


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert steps_saved(whole) == [4, 6]
    folder = train(train_recipe(tiny_model, tmp_path / "run", "save_total_limit=1", "save_steps=4"))
    assert steps_saved(folder) == [6]


def test_the_saved_settings_give_the_same_recipe(whole: Path, tiny_model: Path) -> None:
    tree = yaml.safe_load((whole / "config.yaml").read_text())
    assert validate(TrainRecipe, tree) == train_recipe(tiny_model, whole)


@pytest.mark.slow
def test_rollouts_are_saved_with_their_texts_and_hold_every_state(tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run", "log_rollouts_steps=3", "log_rollouts_groups=1")
    folder = train(recipe)
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == [
        "step-00000003.safetensors",
        "step-00000006.safetensors",
    ]
    saved = SavedRollout.load(folder / "rollouts" / "step-00000003.safetensors")
    rollout = saved.rollout
    path, (_, tokenizer) = rollout.trajectory, load_model(tiny_model)
    assert (len(path), rollout.group_size, path.num_steps, path.sampler.temperature) == (2, 2, 4, 0.9)
    assert saved.completions == decode(tokenizer, path.tokens)
    assert rollout.reward.tolist() == pytest.approx(Reward()(saved.completions))
    assert (path.state_before(0) == path.mask_id).all()
    for step in range(4):
        before, after = path.state_before(step), path.state_before(step + 1)
        written = path.unmask_step == step
        assert torch.equal(before[~written], after[~written])
        assert (before[written] == path.mask_id).all()
        assert torch.equal(after[written], path.tokens[written])


def test_every_metric_is_explained(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    explained = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(key)) for key in metrics_page()] + ["step"]
    with_reference = train(train_recipe(tiny_model, tmp_path / "run", "method.beta=0.04", "max_steps=1"))
    for key in {key for folder in (whole, with_reference) for line in metrics(folder) for key in line}:
        assert any(re.fullmatch(pattern, key) for pattern in explained), key


def test_the_file_that_the_docs_name_for_a_metric_holds_its_whole_key() -> None:
    for key, file in metrics_page().items():
        assert f'"{key}"' in (SOURCES / file).read_text(), (key, file)


def test_every_key_of_a_metric_in_the_code_is_explained() -> None:
    page = metrics_page()
    spaces = "|".join({key.partition("/")[0] for key in page if "/" in key})
    files = [*(SOURCES / "trainer").glob("*.py"), *(SOURCES / "methods").glob("*.py")]
    keys = {key for file in files for key in re.findall(rf'"((?:{spaces})/[^"]+)"', file.read_text())}
    assert len(keys) > 20
    assert {re.sub(r":\w+\}", "}", key) for key in keys} - page.keys() - EXAMPLES == set()


SOURCES = Path(unmask.__file__).parent
EXAMPLES = {"eval/validation@0/accuracy", "eval/validation@0.9/accuracy", "eval/test@0/accuracy"}
"""Keys in examples of docstrings."""


def metrics_page() -> dict[str, str]:
    """Return the keys in the table of docs/metrics.md, each with the file that computes it."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`.+?) \| .* \| `(\S+)` \|$", text, flags=re.MULTILINE)
    return {key: file for keys, file in rows for key in re.findall(r"`([^`]+)`", keys)}


@pytest.mark.slow
def test_an_observer_sees_each_line(tiny_model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []
    folder = train(train_recipe(tiny_model, tmp_path / "run"), observe=lambda step, line: seen.append((step, line)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step} | line for step, line in seen] == lines


# --- interrupted runs ---


def test_a_resume_leaves_a_finished_run_as_it_is(whole: Path, tiny_model: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes(), weights(whole)
    train(train_recipe(tiny_model, whole), resume=True)
    assert ((whole / "metrics.jsonl").read_bytes(), weights(whole)) == before


@pytest.fixture
def hangup() -> Iterator[None]:
    """Give SIGHUP its default handler, even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.slow
def test_a_signal_finishes_the_step_saves_and_says_how_to_continue(
    whole: Path, tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    recipe = train_recipe(tiny_model, tmp_path / "run")

    def stop(step: int, line: dict[str, Any]) -> None:
        if step == 3 and "loss" in line:
            os.kill(os.getpid(), number)

    with pytest.raises(RunStoppedError) as caught:
        train(recipe, observe=stop)
    assert str(caught.value) == (
        f"stopped after step 3 of 6; everything is in {tmp_path / 'run'}. "
        "To continue, give the same command again with --resume."
    )
    assert caught.value.signal_number == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert steps_saved(tmp_path / "run") == [2, 3]
    assert not (tmp_path / "run" / "final").exists()
    folder = train(recipe, resume=True)
    assert metrics(folder) == metrics(whole)
    assert weights(folder) == weights(whole)


@pytest.mark.slow
def test_a_hangup_that_is_ignored_stays_ignored(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    def hang_up(step: int, line: dict[str, Any]) -> None:
        if step == 3 and "loss" in line:
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        folder = train(train_recipe(tiny_model, tmp_path / "run"), observe=hang_up)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert weights(folder) == weights(whole)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Give SIGINT its default handler: background jobs of a shell ignore it, and so do their
    children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_the_run_at_once(tiny_model: Path, tmp_path: Path) -> None:
    def stop(step: int, _: dict[str, Any]) -> None:
        # Raised in this thread: another thread could receive both before it handles one.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(train_recipe(tiny_model, tmp_path / "run"), observe=stop)


# Calls 1 and 2 of the reward belong to the evaluation at step 0, greedy and sampled. Each step
# makes two calls, for finished and for one-step completions. Calls 9 and 10 belong to the
# evaluation after step 3.
IN_STEP_4, AFTER_STEP_3 = 11, 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (lambda values: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda values: [float("nan")] * len(values), "returned nan for the completion"),
        (lambda values: values[1:], "rewards for"),
        (lambda values: "no", "returned str; it must return a list"),
    ],
    ids=["raises", "nan", "wrong count", "no list"],
)
@pytest.mark.parametrize("call", [IN_STEP_4, AFTER_STEP_3], ids=["in a step", "in an evaluation"])
def test_a_reward_that_fails_loses_nothing(
    whole: Path, tiny_model: Path, tmp_path: Path, call: int, failure: Any, message: str
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    with pytest.raises(RewardError, match=f'^reward function "Reward" .*{message}') as caught:
        train(recipe, Reward(call, failure))
    assert caught.value.__notes__ == ["The state after step 3 is saved. Correct the error, then add --resume."]
    assert steps_saved(tmp_path / "run") == [2, 3]
    folder = train(recipe, resume=True)
    assert metrics(folder) == metrics(whole)
    assert weights(folder) == weights(whole)


@pytest.mark.slow
def test_an_evaluation_that_fails_twice_still_loses_nothing(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    for resume, call in ((False, AFTER_STEP_3), (True, 1), (True, 5)):
        # The third run evaluates after step 3, and fails in step 5.
        with pytest.raises(RewardError):
            train(recipe, Reward(call, lambda _: None), resume=resume)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4]
    folder = train(recipe, resume=True)
    assert metrics(folder) == metrics(whole)
    assert weights(folder) == weights(whole)


def test_after_a_reward_that_fails_at_once_the_folder_can_be_used(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError) as caught:
        train(train_recipe(tiny_model, tmp_path / "run"), Reward(1, lambda _: None))
    assert not hasattr(caught.value, "__notes__")
    train(train_recipe(tiny_model, tmp_path / "run", "seed=5", "max_steps=1"))


@pytest.mark.slow
def test_an_incomplete_line_and_lines_after_the_checkpoint_are_replaced(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    with pytest.raises(RewardError):
        train(recipe, Reward(IN_STEP_4, lambda _: None))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    folder = train(recipe, resume=True)
    assert metrics(folder) == metrics(whole)


@pytest.mark.slow
def test_a_resume_without_a_checkpoint_starts_at_step_0(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    with pytest.raises(RewardError):
        train(recipe, Reward(3, lambda _: None))
    assert steps_saved(tmp_path / "run") == []
    assert metrics(train(recipe, resume=True)) == metrics(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_previous_one_can_be_used(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(tiny_model, tmp_path / "run")
    with pytest.raises(RewardError):
        train(recipe, Reward(IN_STEP_4, lambda _: None))
    damaged = tmp_path / "run" / "checkpoints" / "step-00000003"
    file = damaged / "state-00000.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with raises(RunError, f"the checkpoint {damaged} cannot be read", "Remove this folder"):
        train(recipe, resume=True)
    for part in damaged.iterdir():
        part.unlink()
    damaged.rmdir()
    folder = train(recipe, resume=True)
    assert metrics(folder) == metrics(whole)
    assert weights(folder) == weights(whole)


def test_a_loss_that_is_not_finite_names_the_step_and_overwrites_nothing(tiny_model: Path, tmp_path: Path) -> None:
    def break_down(step: int, line: dict[str, Any]) -> None:
        if step == 3 and "loss" in line:
            trainer.denoiser.register_forward_hook(
                lambda m, a, y: y * float("nan") if torch.is_grad_enabled() else None
            )

    trainer = Trainer(train_recipe(tiny_model, tmp_path / "run"), [Reward()], observe=break_down)
    with raises(
        RunError, "step 4: the loss is nan in completions [0, 1, 2, 3]", "checkpoint of step 2", "learning_rate"
    ):
        trainer.train()
    assert steps_saved(tmp_path / "run") == [2]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3]


# --- runs that cannot start ---


def test_rows_without_a_column_that_the_reward_needs_are_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path
) -> None:
    @per_completion
    def needs(completions: list[str], difficulty: list[int]) -> list[float]:
        return [float(d) for d in difficulty]

    with pytest.raises(
        DataError, match='^reward function "needs" needs the column "difficulty", which the rows do not'
    ):
        train(train_recipe(tiny_model, tmp_path / "run"), needs)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("report_to=[tensorbord]", 'report_to: unknown tracker "tensorbord". Did you mean "tensorboard"?'),
        ("report_to=[aim]", "report_to: aim is not installed. Install it, or leave it out."),
        ("reward_weights=[1, 2]", "2 reward_weights for 1 reward functions; give one for each."),
    ],
)
def test_an_unusable_setting_is_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(train_recipe(tiny_model, tmp_path / "run", override))
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def longest(completions: list[str], **_: Any) -> list[float]:
    """Compare completions with each other, which no rank can do for a part of a group."""
    best = max(map(len, completions))
    return [float(len(text) == best) for text in completions]


@pytest.mark.parametrize(
    ("overrides", "rewards", "word"),
    [
        (("method={type: vrpo}",), [], "the loss of vrpo compares"),
        (("method={type: diffu_grpo}",), [longest], "@per_completion"),
    ],
)
def test_groups_that_the_ranks_cannot_divide_are_refused(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    rewards: list[Any],
    word: str,
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 4)
    # The other three ranks do not exist, so there is nothing to watch.
    monkeypatch.setattr(Progress, "set_up", lambda self: nullcontext())
    recipe = train_recipe(tiny_model, tmp_path / "run", "num_prompts=6", "num_generations=4", *overrides)
    with raises(ConfigError, "num_prompts = 6", "4 ranks", "multiple of 4", word):
        Trainer(recipe, rewards)


def test_two_reward_functions_of_one_name_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='^two reward functions are called "Reward"'):
        Trainer(train_recipe(tiny_model, tmp_path / "run"), [Reward(), Reward()])


def test_a_tracker_gets_the_metrics_too(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(train_recipe(tiny_model, tmp_path / "run", "report_to=[tensorboard]", "max_steps=2"))
    events = EventAccumulator(str(folder / "unmask"))
    events.Reload()
    logged = [event.value for event in events.Scalars("reward")]
    assert logged == pytest.approx([line["reward"] for line in metrics(folder)[1:]])


@pytest.mark.slow
def test_the_compute_of_the_reference_counts(tiny_model: Path, tmp_path: Path) -> None:
    spent = []
    for beta in (0.0, 0.1):
        folder = tmp_path / str(beta)
        Trainer(train_recipe(tiny_model, folder, f"method.beta={beta}", "max_steps=1")).train()
        spent.append(metrics(folder)[1]["compute/token_passes"])
    # The reference adds one forward pass of 4 views of 33 tokens.
    assert spent[1] - spent[0] == 4 * 33


def test_a_launcher_that_would_skip_updates_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match="gradient_accumulation_steps = 4, which would skip updates"):
        Trainer(train_recipe(tiny_model, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_without_signal_warns_once(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @per_completion
    def same(completions: list[str], **_: Any) -> list[float]:
        return [0.5] * len(completions)

    Trainer(train_recipe(tiny_model, tmp_path / "run"), [same]).train()
    (message,) = [record.message for record in caplog.records if record.name == "unmask"]
    assert message.startswith("for 5 steps the advantages of all groups have been 0")
    assert "In 0% of the groups all completions are the same text." in message
