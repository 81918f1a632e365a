"""Requirements on every task: reproducible items, disjoint splits, rewards that take any text."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.helpers.messages import raises
from unmask.core.errors import DataError
from unmask.tasks import TASKS, Arithmetic, Countdown, Story, Sudoku, Sudoku9, Task
from unmask.tasks.base import stable_hash
from unmask.tasks.sourced import SourcedTask
from unmask.tasks.story_text import split_words

VARIANTS: list[Task] = [
    Sudoku(),
    Sudoku(sparse=True),
    Sudoku(min_blanks=4, max_blanks=11),
    Countdown(),
    Countdown(num_numbers=4, max_number=9),
    Countdown(num_numbers=4, max_number=99, min_target=10),
    Arithmetic(),
    Arithmetic(num_operands=2, max_operand=99),
    Arithmetic(num_operands=6, max_operand=99),
    Arithmetic(num_operands=16),
    Story(),
    Story(num_events=2, max_number=4),
    Sudoku9(),
]
TAGGED: list[Task] = [Sudoku(format="tagged"), Countdown(format="tagged"), Arithmetic(format="tagged")]
TAGGED += [Story(format="tagged"), Sudoku9(format="tagged")]

GENERATED = {
    name: cls
    for name, cls in TASKS.items()
    if not issubclass(cls, SourcedTask) and not any(field.is_required() for field in cls.model_fields.values())
}
"""Tasks that make their rows. Tasks that read rows from files or need a name have tests of their
own."""

every_variant = pytest.mark.parametrize("task", VARIANTS, ids=repr)
every_task = pytest.mark.parametrize("task", [cls.model_validate({}) for cls in GENERATED.values()] + TAGGED, ids=repr)

HOSTILE = [
    "",
    " \n",
    "\0",
    "\ud800",
    "0" * 16,
    "²³٣",
    "<answer>",
    "</answer>",
    "<answer></answer>",
    "<answer>\n \n</answer>",
    "30**100**93",
    "<answer>30**100**93</answer>",
    "(" * 100_000,
    "-" * 100_000,
    "9" * 1_000_000,
    "<answer>" + "9" * 1_000_000 + "</answer>",
    "<answer>" * 50_000 + "</answer>" * 50_000,
    "__import__('os')._exit(1)",
]


def reward(task: Task, completion: Any, row: dict[str, Any]) -> float:
    """Return the only reward of the task, called as a trainer calls it."""
    (function,) = task.rewards().values()
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    (value,) = function(prompts=[row["prompt"]], completions=[completion], **columns, trainer_state=object())
    assert value is not None
    return value


def group(task: Task, row: dict[str, Any]) -> Any:
    """Return what two splits of a task must not share."""
    return tuple(sorted(row["numbers"])) if "numbers" in row else row["answer"]


def written(task: Task, text: str) -> str:
    """Return a bare answer in the form of this format."""
    return f"So:\n<answer>\n{text}\n</answer>" if task.format == "tagged" else text


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_the_table_knows_each_task_by_its_type(name: str) -> None:
    assert TASKS[name].model_validate({}).type == name
    assert list(TASKS[name].model_validate({}).rewards()) == [name]


@every_task
def test_unknown_options_and_formats_are_refused(task: Task) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(task).model_validate({"no_such_option": 1})
    with pytest.raises(ValidationError, match="format"):
        type(task).model_validate({"format": "chatty"})


@every_variant
def test_rows_are_the_same_for_the_same_seed_and_a_prefix_of_more_rows(task: Task) -> None:
    rows = task.rows("train", 40, seed=3)
    assert rows == task.rows("train", 40, seed=3)
    assert rows[:7] == task.rows("train", 7, seed=3)
    assert rows != task.rows("train", 40, seed=4)
    assert task.rows("train", 0) == []


@pytest.mark.slow
def test_rows_do_not_depend_on_the_salt_of_the_process() -> None:
    script = (
        "import json; from unmask.tasks import TASKS; "
        f"print(json.dumps([TASKS[name]().rows('test', 5) for name in {list(GENERATED)}]))"
    )
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**env, "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert [json.loads(output) for output in outputs] == [
        [cls.model_validate({}).rows("test", 5) for cls in GENERATED.values()]
    ]


def test_bare_and_tagged_prompts_ask_the_same_items() -> None:
    for name, cls in GENERATED.items():
        for bare, tagged in zip(
            cls.model_validate({}).rows("test", 5),
            cls.model_validate({"format": "tagged"}).rows("test", 5),
            strict=True,
        ):
            (message,) = tagged["prompt"]
            assert message["role"] == "user", name
            assert "<answer>" in message["content"]
            assert {**bare, "prompt": ""} == {**tagged, "prompt": ""}


def test_an_unknown_split_and_a_negative_number_of_rows_are_refused() -> None:
    with pytest.raises(DataError, match='unknown split "tset". Did you mean "test"'):
        Sudoku().rows("tset", 1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="num_rows = -1 is negative"):
        Sudoku().rows("train", -1)


@every_variant
@pytest.mark.slow
def test_splits_share_no_answer(task: Task) -> None:
    count = 100 if isinstance(task, Sudoku9) else 400
    groups = [{group(task, row) for row in task.rows(split, count)} for split in ("train", "validation", "test")]
    assert all(groups)
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(groups, 2))


@every_task
@pytest.mark.slow
def test_a_split_by_item_would_leak(task: Task) -> None:
    """Negative control for the test above: it detects a split that shares answers."""
    rows = task.rows("train", 200 if isinstance(task, Sudoku9) else 2000)
    if len({str(row["prompt"]) for row in rows}) == len({group(task, row) for row in rows}):
        pytest.skip("every answer has one prompt, so a split by item is one by answer")
    sides: tuple[set[Any], set[Any]] = (set(), set())
    for row in rows:
        sides[stable_hash(str(row["prompt"])) % 2].add(group(task, row))
    assert not sides[0].isdisjoint(sides[1])


@every_variant
def test_the_alphabet_is_sorted_and_covers_prompts_and_completions(task: Task) -> None:
    rng = random.Random(0)
    used: set[str] = set()
    for row in task.rows("train", 300) + task.rows("test", 100):
        used |= {*row["prompt"], *row["answer"], *task.demonstration(row, rng, sloppy=True)}
    assert used <= set(task.alphabet)
    assert list(task.alphabet) == sorted(set(task.alphabet))


@every_variant
@pytest.mark.slow
def test_the_completion_length_is_tight(task: Task) -> None:
    rng = random.Random(0)
    varies = isinstance(task, Countdown | Story)
    rows = task.rows("train", 3000 if varies else 50)
    texts = [task.demonstration(row, rng, sloppy) for row in rows for sloppy in (False, True)]
    lengths = {len(split_words(text) if isinstance(task, Story) else text) for text in texts}
    if varies:
        assert max(lengths) + 1 == task.completion_length
    else:
        assert lengths == {task.completion_length}


@pytest.mark.parametrize("task", VARIANTS + TAGGED, ids=repr)
def test_a_right_demonstration_has_full_reward_and_is_solved(task: Task) -> None:
    rng = random.Random(0)
    for row in task.rows("train", 60):
        completion = written(task, task.demonstration(row, rng, sloppy=False))
        assert reward(task, completion, row) == 1.0
        assert task.solved(completion, row)
        assert reward(task, written(task, row["answer"]), row) == 1.0


@every_variant
@pytest.mark.slow
def test_a_sloppy_demonstration_is_seldom_right_and_never_the_same_each_time(task: Task) -> None:
    rng = random.Random(0)
    rows = task.rows("train", 500)
    texts = [task.demonstration(row, rng, sloppy=True) for row in rows]
    # 1/9 of the sloppy sums are right by construction, and so are about a tenth of three-number
    # countdowns.
    assert sum(task.solved(text, row) for text, row in zip(texts, rows, strict=True)) < 0.2 * len(rows)
    if not (isinstance(task, Sudoku) and task.min_blanks < 7):
        assert len({task.demonstration(rows[0], rng, sloppy=True) for _ in range(30)}) > 3


@every_task
def test_demonstrations_follow_their_generator(task: Task) -> None:
    row = task.row("train", 0, 0)
    assert task.demonstration(row, random.Random(5), True) == task.demonstration(row, random.Random(5), True)


@every_task
@pytest.mark.parametrize("completion", HOSTILE, ids=lambda text: repr(text[:24]))
@pytest.mark.slow
def test_hostile_completions_score_low(task: Task, completion: str) -> None:
    row = task.row("test", 0, 0)
    # A stray digit may hit one of Sudoku's nine blank cells; an answer that is wrong earns 0.1 in
    # Countdown.
    assert 0 <= reward(task, completion, row) < 0.12
    assert not task.solved(completion, row)


@every_task
@pytest.mark.parametrize("completion", [None, 7, b"7", [], ["7"], [{"role": "assistant", "content": None}]], ids=repr)
def test_a_completion_that_is_neither_text_nor_messages_has_no_answer(task: Task, completion: Any) -> None:
    row = task.row("test", 0, 0)
    assert reward(task, completion, row) == 0
    assert not task.solved(completion, row)


@every_task
def test_a_list_of_messages_counts_as_the_text_of_its_last_one_in_reward_verdict_and_measures(task: Task) -> None:
    row, another = task.rows("test", 2)
    for text in (written(task, row["answer"]), written(task, another["answer"]), "", "<answer>7</answer>"):
        messages = [{"role": "assistant", "content": "<answer>no</answer>"}, {"role": "assistant", "content": text}]
        assert reward(task, messages, row) == reward(task, text, row)
        assert task.solved(messages, row) == task.solved(text, row)
        assert task.measures(messages, row) == task.measures(text, row)
    assert task.solved([{"role": "assistant", "content": written(task, row["answer"])}], row)


@every_task
def test_no_answer_earns_nothing(task: Task) -> None:
    row = task.row("test", 0, 0)
    assert reward(task, "", row) == reward(task, " \n", row) == 0
    if task.format == "tagged":
        # A story's answer says that it is the answer, which needs no tag.
        assert isinstance(task, Story) or reward(task, row["answer"], row) == 0
        assert reward(task, f"<answer>{row['answer']}", row) == 1
        assert reward(task, "<answer> </answer>", row) == 0


@every_task
@given(data=st.data())
@settings(max_examples=50)
@pytest.mark.slow
def test_rewards_of_any_text_are_between_0_and_1_and_1_if_solved(task: Task, data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.text(max_size=40), st.text(task.alphabet, max_size=20)))
    row = task.row("test", data.draw(st.integers(0, 50)), 0)
    for completion in (text, f"<answer>{text}</answer>"):
        value = reward(task, completion, row)
        assert isinstance(value, float)
        assert 0 <= value <= 1
        assert value == 1.0 or not task.solved(completion, row)


@every_task
def test_a_reward_function_scores_each_completion_by_its_own_row(task: Task) -> None:
    rows = task.rows("test", 8)
    (function,) = task.rewards().values()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    completions = [written(task, row["answer"]) if i % 2 else "" for i, row in enumerate(rows)]
    prompts = columns.pop("prompt")
    assert function(prompts, completions, **columns) == [0.0, 1.0] * 4


def test_a_reward_function_names_the_column_that_is_missing() -> None:
    (function,) = Countdown().rewards().values()
    with raises(DataError, '"target"', "answer, numbers", "rows made by this task"):
        function(["q"], ["1+2"], numbers=[[1, 2]], answer=["1+2"])


@every_task
def test_reward_functions_travel_to_worker_processes(task: Task) -> None:
    (function,) = pickle.loads(pickle.dumps(task.rewards())).values()
    row = task.row("test", 0, 0)
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    assert function([row["prompt"]], [written(task, row["answer"])], **columns) == [1.0]


@pytest.mark.slow
def test_tasks_import_no_torch() -> None:
    script = "import sys, unmask.tasks; sys.exit('torch' in sys.modules)"
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    assert subprocess.run([sys.executable, "-c", script], env=env, check=False).returncode == 0


def test_the_stable_hash_never_changes() -> None:
    # First 8 bytes of the published SHA-256 of the empty string and of "abc" (FIPS 180-2).
    assert stable_hash("") == 0xE3B0C44298FC1C14
    assert stable_hash("abc") == 0xBA7816BF8F01CFEA
