"""Evaluation: the counts are those of the texts, the interval is Wilson's, and batches do not matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask.config import SamplerConfig
from unmask.evaluate import Evaluation, evaluate
from unmask.functional.intervals import wilson_interval
from unmask.models import Denoiser, char_tokenizer, load_model
from unmask.score import Scorer
from unmask.tasks import Sudoku

TASK = Sudoku()
ROWS = TASK.rows("test", 8)
SAMPLER = SamplerConfig(max_completion_length=16, num_steps=4, temperature=0.9)


@pytest.fixture
def run(lively: Denoiser) -> Callable[..., Evaluation]:
    def _run(sampler: SamplerConfig = SAMPLER, rows: list[Any] = ROWS, **options: Any) -> Evaluation:
        scorer = Scorer({"ones": lambda completions, **_: [text.count("1") for text in completions]})
        return evaluate(lively, char_tokenizer(TASK.alphabet), TASK, scorer, rows, sampler, **options)

    return _run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Callable[[list[str]], Evaluation]:
    """`scripted(texts)`: the evaluation of completions that are what we say."""

    def _scripted(texts: list[str]) -> Evaluation:
        monkeypatch.setattr("unmask.evaluate.decode", lambda *_: texts)
        rows = ROWS[: len(texts)]
        return evaluate(*load_model(tiny_model), TASK, Scorer(TASK.rewards()), rows, SAMPLER)

    return _scripted


def test_known_completions_give_known_numbers(scripted: Callable[[list[str]], Evaluation]) -> None:
    # Three right, one empty, and one with a single blank cell wrong.
    texts = [row["answer"] for row in ROWS[:3]] + [""]
    puzzle, answer = ROWS[4]["puzzle"], ROWS[4]["answer"]
    blank = puzzle.index("0")
    texts.append(answer[:blank] + "1234"[int(answer[blank]) % 4] + answer[blank + 1 :])
    result = scripted(texts)
    partial = 1 - 1 / puzzle.count("0")
    assert (result.num_rows, result.num_solved, result.accuracy) == (5, 3, 0.6)
    assert (result.low, result.high) == wilson_interval(3, 5)
    assert result.reward == pytest.approx((3 + partial) / 5)
    deviations = [1 - result.reward] * 3 + [result.reward, partial - result.reward]
    assert result.reward_se == pytest.approx((sum(d * d for d in deviations) / 4 / 5) ** 0.5)
    assert [item["solved"] for item in result.items] == [True, True, True, False, False]
    assert result.items[4] == {
        "prompt": ROWS[4]["prompt"],
        "completion": texts[4],
        "reward": pytest.approx(partial),
        "solved": False,
    }


def test_one_row_has_no_standard_error(scripted: Callable[[list[str]], Evaluation]) -> None:
    result = scripted([ROWS[0]["answer"]])
    assert (result.accuracy, result.reward, result.reward_se) == (1.0, 1.0, 0.0)


def test_the_numbers_are_those_of_the_items(run: Callable[..., Evaluation]) -> None:
    result = run()
    assert [item["prompt"] for item in result.items] == [row["prompt"] for row in ROWS]
    assert [item["reward"] for item in result.items] == [item["completion"].count("1") for item in result.items]
    assert result.reward == pytest.approx(sum(item["reward"] for item in result.items) / 8)
    assert len({item["completion"] for item in result.items}) > 4
    assert (result.temperature, result.length, result.steps) == (0.9, 16, 4)


def test_the_batch_size_changes_nothing(run: Callable[..., Evaluation]) -> None:
    assert run(batch_size=3) == run(batch_size=8)


def test_the_seed_matters_to_sampling_and_not_to_greedy_decoding(run: Callable[..., Evaluation]) -> None:
    greedy = SAMPLER.model_copy(update={"temperature": 0.0})
    assert run(seed=1) == run(seed=1)
    assert run(seed=1).items != run(seed=2).items
    assert run(greedy, seed=1) == run(greedy, seed=2)


def test_fewer_rows_get_what_they_get_among_more(run: Callable[..., Evaluation]) -> None:
    assert run(rows=ROWS[:3]).items == run().items[:3]


def test_a_summary_is_everything_but_the_items(run: Callable[..., Evaluation]) -> None:
    result = run()
    summary = result.summary()
    assert "items" not in summary
    assert Evaluation(**summary, items=result.items) == result
