"""Reward functions in worker processes: their arguments, and the effect of a hang or crash."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import TRAIN, metrics, train_recipe, unmask
from unmask.core.errors import ConfigError, RewardError
from unmask.recipes.scorer import scorer_of
from unmask.rewards import Score
from unmask.rewards.isolated import Isolated
from unmask.rewards.loading import make_scorer
from unmask.rewards.local import Local
from unmask.rewards.scorer import Scorer

pytestmark = pytest.mark.slow

MODULE = """
import os, signal, sys, time
from unmask.rewards import Score, per_completion, reports

CALLS = []

def obey(text):
    if text == "hang":
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "fork":
        os.fork()
    if text == "raise":
        raise ZeroDivisionError("no reward today")
    if text == "raise long":
        raise ValueError("x" * 10**6)
    if text == "raise mute":
        raise Mute
    if text == "interrupt":
        raise KeyboardInterrupt

class Mute(Exception):
    def __str__(self):
        raise RuntimeError

class Opaque:
    __signature__ = "unknown"
    def __call__(self, **arguments):
        return [float(text == a) for text, a in zip(arguments["completions"], arguments["answer"], strict=True)]

opaque = Opaque()

@per_completion
@reports("unparsed")
def each(completions, answer, **columns):
    CALLS.append(len(completions))
    for text in completions:
        obey(text)
    return [Score(0.0, "unparsed") if not text else None if text == "none" else float(text == a)
            for text, a in zip(completions, answer)]

def longest(prompts, completions):
    groups = {}
    for prompt, text in zip(prompts, completions):
        obey(text)
        groups.setdefault(prompt, []).append(len(text))
    return [float(len(text) == max(groups[prompt])) for prompt, text in zip(prompts, completions)]

def calls(completions):
    CALLS.append(len(completions))
    return CALLS[-1:] * len(completions)

def pid(completions):
    return [os.getpid()] * len(completions)

class Late:
    def __float__(self):
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass

    def __iter__(self):
        float(self)

@per_completion
def late_number(completions):
    return [Late() if text == "hang" else 1.0 for text in completions]

@per_completion
def late_list(completions):
    return Late() if "hang" in completions else [1.0] * len(completions)

@per_completion
async def later(completions):
    import asyncio
    while "hang" in completions:
        try:
            await asyncio.sleep(0)
        except BaseException:
            pass
    return [1.0] * len(completions)

def wrong(completions):
    return [float("nan")] * len(completions)

def spoil(prompts, completions, tags):
    for values in (prompts, completions, tags):
        for value in values:
            value.append("spoilt")
    return [float(len(tag)) for tag in tags]
"""

ROWS = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "3+4=", "answer": "7"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("isolated") / "mine.py"
    file.write_text(MODULE)
    return str(file)


@pytest.fixture
def scorer(path: str) -> Iterator[Any]:
    """Return a factory: `scorer(name)` is a scorer of one function of the module, in a worker."""
    made: list[Scorer] = []

    def _scorer(name: str, workers: int = 1, timeout: float = 8.0, item_timeout: float = 0.5) -> Scorer:
        made.append(make_scorer([f"{path}:{name}"], {}, workers=workers, timeout=timeout, item_timeout=item_timeout))
        return made[-1]

    yield _scorer
    for one in made:
        one.close()


# --- values ---


def test_an_isolated_function_gives_the_same_rewards_as_in_this_process(scorer: Any, path: str) -> None:
    there, here = scorer("each"), make_scorer([f"{path}:each"], {}, workers=0)
    assert isinstance(there.functions["each"], Isolated)
    assert isinstance(here.functions["each"], Local)
    rows, texts = [ROWS[0], ROWS[1], ROWS[0], ROWS[0]], ["4", "4", "", "none"]
    for one in (there, here):
        one.check_columns(rows[0])
        scores = one(rows, texts)
        assert scores.by_function == {"each": [1.0, 0.0, 0.0, None]}
        assert scores.reasons["each"]["unparsed"] == [False, False, True, False]
    assert there.judges_each
    assert there.functions["each"].reasons == ("timeout", "unparsed")


@pytest.mark.parametrize("name", ["each", "longest", "wrong"])
def test_what_is_logged_does_not_depend_on_where_a_function_runs(scorer: Any, path: str, name: str) -> None:
    here = make_scorer([f"{path}:{name}"], {}, workers=0)
    assert scorer(name).functions[name].reasons == here.functions[name].reasons
    assert "timeout" in here.functions[name].reasons
    assert make_scorer(["unmask.rewards:answer_tag"], {}).functions["answer_tag"].reasons == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_without_a_signature_gets_all_arguments(path: str, workers: int) -> None:
    one = make_scorer([f"{path}:opaque"], {}, workers=workers)
    assert one(ROWS, ["4", "x"]).total == [1.0, 0.0]
    one.close()


def test_whole_groups_are_in_one_call_and_the_process_is_kept(scorer: Any) -> None:
    one = scorer("calls", workers=2)
    rows = [row for row in ROWS for _ in range(3)]
    assert one(rows, ["a"] * 6).total == [6.0] * 6
    pids = scorer("pid")
    assert pids(rows, ["a"] * 6).total == pids(rows, ["b"] * 6).total


def test_the_training_process_does_not_import_the_function(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("import os\nHERE = os.getpid()\ndef pid(completions):\n    return [HERE]\n")
    one = make_scorer([f"{tmp_path}/heavy.py:pid"], {})
    assert one(ROWS[:1], ["a"]).total != [os.getpid()]
    assert not any(getattr(module, "__file__", "") == f"{tmp_path}/heavy.py" for module in list(sys.modules.values()))
    one.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_processes_changes_no_reward(scorer: Any, workers: int) -> None:
    rows, texts = [ROWS[i % 2] for i in range(9)], ["4", "7", "", "x", "4", "none", "y", "z", "4"]
    assert scorer("each", workers)(rows, texts).by_function["each"] == [1, 1, 0, 0, 1, None, 0, 0, 1]


def test_a_child_that_returns_as_well_shifts_no_reward(scorer: Any) -> None:
    one = scorer("each")
    rows = [{"prompt": "p", "answer": "a"}, {"prompt": "p", "answer": "b"}]
    for _ in range(3):
        assert one([rows[0], rows[1]], ["fork", "b"]).total == [0.0, 1.0]
        assert one([rows[0], rows[1]], ["a", "c"]).total == [1.0, 0.0]


# --- hangs and crashes ---


@pytest.mark.parametrize("text", ["hang", "die"])
def test_a_completion_that_hangs_or_kills_costs_itself_alone(
    scorer: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = scorer("each")
    rows = [ROWS[0]] * 4
    with caplog.at_level(logging.WARNING, "unmask"):
        for _ in range(2):
            scores = one(rows, ["4", text, "5", "none"])
            assert scores.by_function == {"each": [1.0, 0.0, 0.0, None]}
            assert scores.reasons["each"]["timeout"] == [False, True, False, False]
    (message,) = (message for message in caplog.messages if "which score 0" in message)  # once, not for every call
    assert f"1 of 4 completions, which score 0 and count in rewards/each/timeout. The first: '{text}'" in message


@pytest.mark.parametrize("text", ["hang", "die"])
def test_a_function_that_compares_loses_the_group_alone(scorer: Any, text: str) -> None:
    scores = scorer("longest")([row for row in ROWS for _ in range(2)], ["a", text, "ccc", "dd"])
    assert scores.total == [0.0, 0.0, 1.0, 0.0]
    assert scores.reasons["longest"]["timeout"] == [True, True, False, False]


@pytest.mark.parametrize("name", ["late_number", "late_list", "later"])
def test_values_that_are_computed_late_are_within_the_limit(scorer: Any, name: str) -> None:
    scores = scorer(name)([ROWS[0]] * 3, ["a", "hang", "b"])
    assert scores.total == [1.0, 0.0, 1.0]
    assert scores.reasons[name]["timeout"] == [False, True, False]


def test_a_function_that_never_returns_is_an_error_of_the_function(scorer: Any) -> None:
    rows = [ROWS[0], ROWS[1]]
    with pytest.raises(RewardError) as caught:
        scorer("each", timeout=0.5, item_timeout=0.4)(rows, ["hang", "hang"])
    assert str(caught.value) == (
        'reward function "each" did not return within 0.5 s for 2 completions. Make it faster, or raise reward_timeout.'
    )
    with pytest.raises(RewardError, match="not return within 0.4 s for 2 .* raise reward_item_timeout"):
        scorer("each", item_timeout=0.2)(rows, ["hang", "hang"])
    with pytest.raises(RewardError, match='"each" ended its process for 2 completions'):
        scorer("each")(rows, ["die", "die"])


def test_a_function_that_has_returned_once_does_not_stop_the_run_by_hanging(scorer: Any) -> None:
    one = scorer("each", timeout=0.5)
    assert one([ROWS[0], ROWS[1]], ["4", "7"]).total == [1.0, 1.0]
    assert one([ROWS[0], ROWS[1]], ["hang", "hang"]).reasons["each"]["timeout"] == [True, True]
    assert one([ROWS[0], ROWS[1]], ["4", "7"]).total == [1.0, 1.0]


def test_the_only_completion_of_a_call_stops_no_run(scorer: Any) -> None:
    scores = scorer("each", timeout=0.5)([ROWS[0]] * 3, ["hang"] * 3)
    assert scores.reasons["each"]["timeout"] == [True] * 3
    assert all(isinstance(value, Score) for value in scores.by_function["each"])


# --- messages ---


def test_errors_and_wrong_values_have_the_same_message_as_in_this_process(scorer: Any) -> None:
    one = scorer("each")
    for text, message in [
        ("raise", r"ZeroDivisionError: no reward today"),
        ("raise long", r"ValueError: x{500} \.\.\."),
        ("raise mute", "Mute"),
        ("interrupt", "KeyboardInterrupt"),
    ]:
        with pytest.raises(RewardError, match=rf'^reward function "each" raised {message} \(mine.py, line \d+\)$'):
            one(ROWS, ["4", text])
    with pytest.raises(RewardError, match="^reward function \"wrong\" returned nan for the completion '4'.$"):
        scorer("wrong")(ROWS, ["4", "7"])


def test_a_missing_function_is_an_error_before_anything_runs(path: str) -> None:
    with pytest.raises(ConfigError, match="unknown name .missing"):
        make_scorer([f"{path}:missing"], {})


def test_a_function_cannot_change_the_rows_wherever_it_runs(path: str) -> None:
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": "?"}], "tags": ["a"]}
    for workers in (0, 1):
        one = make_scorer([f"{path}:spoil"], {}, workers=workers)
        for _ in range(2):
            # Two completions of one row each have their own copy.
            assert one([row, row], ["x", "x"]).total == [2.0, 2.0]
        assert row == {"prompt": [{"role": "user", "content": "?"}], "tags": ["a"]}
        one.close()


# --- which functions run where ---


def module_level(completions: list[str]) -> list[float]:
    return [float(os.getpid())] * len(completions)


def test_a_function_of_a_module_is_found_again_by_a_worker_and_a_closure_is_not(path: str) -> None:
    one = make_scorer([module_level, lambda completions: [0.0] * len(completions)], {})
    assert [type(function) for function in one.functions.values()] == [Isolated, Local]
    one.close()
    ours = make_scorer(["unmask.rewards:answer_tag"], {})
    assert isinstance(ours.functions["answer_tag"], Local)
    assert ours.judges_each


def test_a_recipe_has_one_scorer_wherever_it_is_used(tiny_model: Path, tmp_path: Path, path: str) -> None:
    recipe = train_recipe(
        tiny_model, tmp_path, f"reward_funcs=['{path}:each']", "reward_workers=2", "num_generations=2"
    )
    one = scorer_of(recipe)
    assert isinstance(function := one.functions["each"], Isolated)
    assert (function.num, function.timeout, function.item_timeout) == (2, 60.0, 5.0)
    assert one.group_size == 2
    one.close()


# --- runs ---

JUDGE = """
def judge(prompts, completions, **columns):
    for messages, completion in zip(prompts, completions):
        messages.append({"role": "assistant", "content": completion[0]["content"]})
    return [float(len(completion[0]["content"])) for completion in completions]
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_judge_that_appends_to_its_messages_lengthens_no_prompt(
    tiny_model: Path, tmp_path: Path, workers: int
) -> None:
    from unmask.models import load_model, save_model

    denoiser, tokenizer = load_model(tiny_model)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    save_model(denoiser, tokenizer, tmp_path / "model")
    (tmp_path / "judge.py").write_text(JUDGE)
    rows = "".join(
        f'{{"prompt": [{{"role": "user", "content": "{a}{b}="}}], "answer": "1"}}\n'
        for a in range(1, 5)
        for b in range(1, 5)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    settings = (
        *TRAIN,
        f"model={tmp_path}/model",
        f"output_dir={tmp_path}/run",
        f"task={{type: dataset, path: {tmp_path}/rows.jsonl}}",
        f"reward_funcs=[{tmp_path}/judge.py:judge]",
        f"reward_workers={workers}",
        "method.type=diffu_grpo",
        "sampler.max_completion_length=8",
        "max_steps=8",
        "log_rollouts_steps=8",
    )
    assert unmask("train", "sudoku-tiny", *settings) == 0
    from unmask.runs.saved_rollouts import SavedRollout

    path = SavedRollout.load(tmp_path / "run" / "rollouts" / "step-00000008.safetensors").rollout.trajectory
    assert path.prompt_mask.sum(-1).tolist() == [3] * len(path)
    assert "rewards/judge/mean" in metrics(tmp_path / "run")[-1]
