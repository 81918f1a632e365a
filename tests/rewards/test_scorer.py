"""Reward functions: their arguments, the use of their results, and their errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError, DataError, RewardError, UnmaskError
from unmask.rewards import answer_tag, correct_number
from unmask.rewards.protocol import Score, load_reward, per_completion, reports
from unmask.rewards.scorer import Scorer

ROWS = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "3+4=", "answer": "7"}]


def right(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def length(completions: list[str], **_: Any) -> list[int]:
    return [len(text) for text in completions]


def returning(value: Any) -> Scorer:
    """Return a scorer whose only function, called `given`, returns `value`."""
    return Scorer({"given": lambda **_: value}, timeout=5.0)


# --- calls ---


def test_each_completion_is_scored_with_the_columns_of_its_row() -> None:
    scores = Scorer({"right": right})([ROWS[0], ROWS[1], ROWS[1], ROWS[0]], ["4", "4", "7", "7"])
    assert scores.total == [1.0, 0.0, 1.0, 0.0]
    assert scores.by_function == {"right": [1.0, 0.0, 1.0, 0.0]}


def test_prompts_arrive_with_their_completions() -> None:
    def echo(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(text.startswith(prompt)) for prompt, text in zip(prompts, completions, strict=True)]

    assert Scorer({"echo": echo})(ROWS, ["2+2=4", "2+2=4"]).total == [1.0, 0.0]


def test_equal_texts_of_a_row_are_judged_once_and_all_get_the_reward() -> None:
    seen: list[tuple[str, str]] = []

    @per_completion
    def count(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [10.0 * (prompt == "3+4=") + len(text) for prompt, text in zip(prompts, completions, strict=True)]

    first, second = ROWS
    rows = [second, first, first, second, first, second]
    total = Scorer({"count": count})(rows, ["a", "bb", "a", "a", "bb", "ccc"]).total
    assert total == [11.0, 2.0, 1.0, 11.0, 2.0, 13.0]
    assert sorted(seen) == [("2+2=", "a"), ("2+2=", "bb"), ("3+4=", "a"), ("3+4=", "ccc")]


def test_a_function_that_may_compare_sees_every_completion_in_order() -> None:
    seen: list[list[str]] = []

    def rank(completions: list[str], **_: Any) -> list[float]:
        seen.append(completions)
        return [float(completions[: i + 1].count(text)) for i, text in enumerate(completions)]

    scorer = Scorer({"rank": rank})
    assert scorer([ROWS[0]] * 3 + [ROWS[1]] * 3, ["a", "a", "b", "a", "c", "c"]).total == [1, 2, 1, 3, 1, 2]
    assert seen == [["a", "a", "b", "a", "c", "c"]]
    assert scorer.take() == 6


def test_unfinished_completions_come_in_a_separate_call_without_the_known_ones() -> None:
    seen: list[list[str]] = []

    @per_completion
    def length(completions: list[str], **_: Any) -> list[float]:
        seen.append(completions)
        return [float(len(text)) for text in completions]

    scorer = Scorer({"length": length})
    assert scorer([ROWS[0], ROWS[0], ROWS[1]], ["a", "bb", "a"]).total == [1, 2, 1]
    assert scorer.unfinished([ROWS[0], ROWS[1], ROWS[1]], ["bb", "bb", "ccc"]).total == [2, 2, 3]
    assert seen == [["a", "bb", "a"], ["bb", "ccc"]]
    assert scorer.take() == 5
    assert scorer([ROWS[0]], ["a"]).total == [1]
    assert seen[2:] == [["a"]], "rewards are forgotten with the next finished completions"


def test_a_function_that_may_compare_scores_no_unfinished_completions() -> None:
    scorer = Scorer({"right": per_completion(right), "rank": lambda completions: [0.0] * len(completions)})
    for ask in (lambda: scorer.check_unfinished("egspo_sa"), lambda: scorer.unfinished(ROWS, ["4", "7"])):
        code = "from unmask.rewards import per_completion\n\n      @per_completion\n      def rank("
        with raises(ConfigError, '"rank" does not declare', code, "method.type=diffu_grpo."):
            ask()


def test_a_lone_completion_is_a_group_of_equal_ones_to_a_function_that_compares() -> None:
    seen: list[list[str]] = []

    def first(prompts: list[str], completions: list[str]) -> list[float]:
        seen.append(completions)
        assert len(completions) % 3 == 0
        return [float(len(text) + i % 3) for i, text in enumerate(completions)]

    scores = Scorer({"first": first, "right": per_completion(right)}, group_size=3).single(ROWS, ["4", "77"])
    assert seen == [["4", "4", "4", "77", "77", "77"]]
    assert scores.by_function == {"first": [1, 2], "right": [1, 0]}
    assert scores.total == [2, 2]
    alone = Scorer({"right": per_completion(right)}, group_size=3)
    assert alone.single(ROWS, ["4", "7"]).total == [1, 1]
    assert alone.take() == 2


def test_completions_of_chat_rows_are_messages_as_in_trl() -> None:
    def shape(prompts: list[Any], completions: list[Any]) -> list[float]:
        return [
            float(completion == ([{"role": "assistant", "content": "4"}] if isinstance(prompt, list) else "4"))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    rows = [{"prompt": [{"role": "user", "content": "2+2?"}]}, {"prompt": "2+2="}]
    assert Scorer({"shape": shape})(rows, ["4", "4"]).total == [1.0, 1.0]


def test_built_in_rewards_take_both_forms() -> None:
    from unmask.tasks import Sudoku

    task = Sudoku(format="tagged")
    (row,) = task.rows("test", 1)
    chat = Scorer(task.rewards())([row, row], [f"<answer>{row['answer']}</answer>", "no"])
    assert chat.total == [1.0, 0.0]
    messages = [[{"role": "assistant", "content": "<answer>18</answer>"}]]
    assert correct_number(messages, ["18"]) == correct_number(["<answer>18</answer>"], ["18"]) == [1.0]
    assert answer_tag(messages) == [1.0]


def test_a_function_cannot_change_the_arguments_of_another_call() -> None:
    row = {"prompt": [{"role": "user", "content": "?"}], "tags": ["a"], "answer": "4"}

    def spoil(prompts: list[Any], completions: list[Any], tags: list[Any], answer: list[Any]) -> list[float]:
        sizes = [float(len(p) + len(c) + len(t)) for p, c, t in zip(prompts, completions, tags, strict=True)]
        for values in (*prompts, *completions, *tags, prompts, completions, tags, answer):
            values.append("spoilt")
        answer[:] = []
        return sizes

    scorer = Scorer({"spoil": spoil, "again": spoil})
    for _ in range(2):
        assert scorer([row, row], ["x", "x"]).by_function == {"spoil": [3, 3], "again": [3, 3]}
    assert row == {"prompt": [{"role": "user", "content": "?"}], "tags": ["a"], "answer": "4"}


def test_none_from_every_function_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer({"never": lambda completions: [None] * len(completions), "right": right})
    scorer(ROWS, ["4", "7"])
    assert not caplog.messages
    scorer = Scorer({"never": lambda completions: [None, *[1.0] * (len(completions) - 1)]})
    for _ in range(2):
        scorer(ROWS, ["4", "7"])
    (message,) = caplog.messages
    assert "every reward function (never) returned None for 1 of 2 completions." in message


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(ROWS), st.text("ab", max_size=2)), min_size=1, max_size=12))
def test_the_cache_changes_no_score(items: list[tuple[dict[str, str], str]]) -> None:
    @per_completion
    def value(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [len(prompt) + 0.5 * len(text) for prompt, text in zip(prompts, completions, strict=True)]

    rows, texts = [row for row, _ in items], [text for _, text in items]
    assert Scorer({"value": value})(rows, texts).total == value([row["prompt"] for row in rows], texts)


def test_a_function_without_keywords_receives_the_arguments_that_it_names() -> None:
    def plain(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(prompts))] * len(completions)

    def named(completions: list[str], answer: list[str]) -> list[float]:
        return [float(text == a) for text, a in zip(completions, answer, strict=True)]

    assert Scorer({"plain": plain, "named": named})(ROWS, ["4", "4"]).by_function == {"plain": [2, 2], "named": [1, 0]}


def test_an_asynchronous_function_is_awaited() -> None:
    async def slow(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [float(len(text)) for text in completions]

    assert Scorer({"slow": slow})(ROWS, ["", "abc"]).total == [0.0, 3.0]


def test_functions_are_summed_by_weight_and_none_counts_as_zero() -> None:
    def sometimes(completions: list[str], **_: Any) -> list[float | None]:
        return [None if text == "4" else 2.0 for text in completions]

    scores = Scorer({"right": right, "sometimes": sometimes}, weights=(3.0, 0.5))(ROWS, ["4", "x"])
    assert scores.total == [3.0, 1.0]
    assert scores.by_function == {"right": [1.0, 0.0], "sometimes": [None, 2.0]}
    assert Scorer({"right": right, "length": length})(ROWS, ["4", "77"]).total == [2.0, 2.0]


def test_reasons_are_reported_for_every_completion() -> None:
    @reports("unparsed", "timeout")
    def graded(completions: list[str], **_: Any) -> list[float]:
        return [Score(0.5, "unparsed") if text == "?" else 1.0 for text in completions]

    scores = Scorer({"graded": graded, "right": right}, weights=(2.0, 1.0))(
        [ROWS[0], ROWS[1], ROWS[0]], ["?", "7", "?"]
    )
    assert scores.total == [1.0, 3.0, 1.0]
    never = [False] * 3
    assert scores.reasons == {
        "graded": {"unparsed": [True, False, True], "timeout": never},
        "right": {"timeout": never},
    }


# --- return values ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "returned 1 rewards for 2 completions; it must return one for each."),
        ([1.0, 2.0, 3.0], "returned 3 rewards for 2 completions; it must return one for each."),
        (None, "returned NoneType; it must return a list."),
        (0.5, "returned float; it must return a list."),
        ({1.0, 0.0}, "returned set; it must return a list."),
        ({"4": 1.0, "7": 0.0}, "returned dict; it must return a list."),
        ("10", "returned str; it must return a list."),
        ([1.0, "good"], "returned 'good' for the completion '7'; each reward must be a number or None."),
        ([float("nan"), 1.0], "returned nan for the completion '4'."),
        ([1.0, float("-inf")], "returned -inf for the completion '7'."),
    ],
)
def test_a_value_that_is_not_a_list_of_rewards_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(RewardError) as caught:
        returning(value)(ROWS, ["4", "7"])
    assert str(caught.value) == f'reward function "given" {message}'


def test_a_generator_of_rewards_works_and_its_errors_are_reported() -> None:
    def right(completions: list[str]) -> Iterator[float]:
        yield from (float(text == "a") for text in completions)

    def raises(completions: list[str]) -> Iterator[float]:
        yield 1.0
        raise KeyError("gone")

    def endless(completions: list[str]) -> Iterator[float]:
        while True:
            yield 1.0

    rows = [{"prompt": "p"}, {"prompt": "q"}]
    assert Scorer({"right": right})(rows, ["a", "b"]).total == [1.0, 0.0]
    with pytest.raises(RewardError, match="raised KeyError"):
        Scorer({"raises": raises})(rows, ["a", "b"])
    with pytest.raises(RewardError, match="returned more than 2 rewards for 2 completions"):
        Scorer({"endless": endless})(rows, ["a", "b"])


def test_a_number_beyond_float_is_an_error_for_the_user() -> None:
    with pytest.raises(RewardError, match="must be a number or None"):
        Scorer({"huge": lambda completions: [10**5000]})([{"prompt": "p"}], ["a"])


def test_numbers_of_any_kind_are_rewards() -> None:
    import torch

    assert returning(torch.tensor([1.0, 0.25]))(ROWS, ["4", "7"]).total == [1.0, 0.25]
    assert returning((True, 2))(ROWS, ["4", "7"]).total == [1.0, 2.0]


def test_a_function_that_raises_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json\n\ndef parse(completions, **_):\n    return json.loads('{')\n")
    name, function = load_reward(f"{tmp_path}/mine.py:parse")
    with pytest.raises(RewardError, match='^reward function "parse" raised JSONDecodeError: .* \\(mine.py, line 4\\)$'):
        Scorer({name: function})(ROWS, ["4", "7"])


@pytest.mark.parametrize(("text", "message"), [("x" * 10**6, f"{'x' * 500} ... "), ("", "")])
def test_a_long_exception_of_a_function_is_shortened(text: str, message: str) -> None:
    def loud(completions: list[str]) -> list[float]:
        raise ValueError(text)

    with pytest.raises(RewardError) as caught:
        Scorer({"loud": loud})(ROWS[:1], ["a"])
    where = "(test_scorer.py, line "
    assert str(caught.value).startswith(
        f'reward function "loud" raised ValueError{": " if message else " "}{message}{where}'
    )


# --- errors before anything runs ---


def test_no_function_and_weights_that_do_not_match_are_refused() -> None:
    with raises(ConfigError, "reward_funcs"):
        Scorer({})
    with raises(ConfigError, "2 reward_weights", "1 reward functions"):
        Scorer({"right": right}, weights=(1.0, 2.0))


def test_a_column_that_a_function_needs_is_missed_by_name() -> None:
    scorer = Scorer({"right": right})
    scorer.check_columns(ROWS[0])
    with pytest.raises(DataError) as caught:
        scorer.check_columns({"prompt": "2+2=", "solution": "4"})
    assert str(caught.value) == (
        'reward function "right" needs the column "answer", which the rows do not have. They have: prompt, solution.'
    )


def test_an_argument_with_a_default_needs_no_column() -> None:
    def lenient(completions: list[str], difficulty: list[int] | None = None, *_: Any, **__: Any) -> list[float]:
        return [0.0 if difficulty is None else 1.0] * len(completions)

    scorer = Scorer({"lenient": lenient})
    scorer.check_columns(ROWS[0])
    assert scorer(ROWS, ["4", "7"]).total == [0.0, 0.0]


@pytest.mark.parametrize("column", ["prompts", "completions"])
def test_a_column_that_hides_an_argument_is_refused(column: str) -> None:
    with raises(DataError, f'"{column}"', "Rename"):
        Scorer({"right": right}).check_columns({**ROWS[0], column: "x"})


def test_every_error_is_for_the_user() -> None:
    assert all(issubclass(kind, UnmaskError) for kind in (ConfigError, DataError, RewardError))
