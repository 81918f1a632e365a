"""Evaluation: the counts are those of the texts, the interval is Wilson's, and batches do not
matter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import raises
from unmask.core.config import SamplerConfig
from unmask.core.errors import ConfigError
from unmask.core.records import Row
from unmask.evaluation.evaluate import SCORED_AT_ONCE, Evaluation, check_samples, evaluate
from unmask.functional.intervals import wilson_interval
from unmask.functional.pass_at_k import pass_at_k
from unmask.models import Denoiser, Policy, char_tokenizer, load_model
from unmask.rewards.scorer import Scorer
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.tasks import Sudoku

TASK = Sudoku()
ROWS = TASK.rows("test", 8)
SAMPLER = SamplerConfig(max_completion_length=16, num_steps=4, temperature=0.9)


@pytest.fixture
def run(lively: Denoiser) -> Callable[..., Evaluation]:
    def _run(
        sampler: SamplerConfig = SAMPLER, rows: list[Any] = ROWS, batch_size: int = 256, **options: Any
    ) -> Evaluation:
        scorer = Scorer({"ones": lambda completions, **_: [text.count("1") for text in completions]})
        engine = LocalEngine(Policy(lively, char_tokenizer(TASK.alphabet)), BatchLimits(batch_size))
        return evaluate(engine, TASK, scorer, rows, sampler, **options)

    return _run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Callable[[list[str]], Evaluation]:
    """`scripted(texts)`: the evaluation of completions that are what we say."""

    def _scripted(texts: list[str]) -> Evaluation:
        monkeypatch.setattr("unmask.evaluation.evaluate.decode", lambda *_: texts)
        rows = ROWS[: len(texts)]
        return evaluate(LocalEngine(load_model(tiny_model)), TASK, Scorer(TASK.rewards()), rows, SAMPLER)

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
        "row": 4,
        "sample": 0,
        "prompt": ROWS[4]["prompt"],
        "answer": ROWS[4]["answer"],
        "completion": texts[4],
        "reward": pytest.approx(partial),
        "solved": False,
        "measures": {"cells": pytest.approx(partial)},
        "forwards": result.items[4]["forwards"],
        "tokens": result.items[4]["tokens"],
    }
    # Whole puzzles and cells are two numbers: three of five, and nearly four.
    cells = result.measures["cells"]
    assert cells.value == pytest.approx((3 + partial) / 5)
    assert 0 < cells.low < cells.value < cells.high <= 1
    assert (result.samples, result.pass_at) == (1, {})


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


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_forward_passes_are_those_that_the_model_runs(
    run: Callable[..., Evaluation], lively: Denoiser, guidance: float
) -> None:
    rows: list[int] = []
    lively.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    adaptive = {"num_steps": None, "schedule": "entropy_bound=1", "guidance": guidance}
    shares: list[float] = []
    result = run(SamplerConfig(**SAMPLER.model_dump() | adaptive), observe=shares.append, batch_size=3)
    # The eight prompts differ, so no two completions share a first step.
    assert result.forwards == sum(item["forwards"] for item in result.items) / 8 == sum(rows) / 8
    committed = sum(item["tokens"] for item in result.items)
    assert result.tokens_per_forward == committed / sum(rows)
    assert len({item["forwards"] for item in result.items}) > 1
    assert result.schedule == "entropy_bound=1"
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    fixed = run(SamplerConfig(**SAMPLER.model_dump() | {"guidance": guidance}))
    assert fixed.forwards <= 4 * (2 if guidance else 1)


@pytest.fixture
def uneven() -> list[Row]:
    """Rows whose prompts differ in length, so that batches pad."""
    return [ROWS[i] | {"prompt": ROWS[i]["prompt"][: 3 + 2 * i]} for i in range(8)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.slow
def test_a_result_does_not_depend_on_what_else_is_in_the_batch(
    run: Callable[..., Evaluation], uneven: list[Row], temperature: float
) -> None:
    sampler = SAMPLER.model_copy(update={"temperature": temperature})
    whole = run(sampler, uneven, batch_size=8)
    assert run(sampler, uneven, batch_size=1) == run(sampler, uneven, batch_size=3) == whole
    assert run(sampler, uneven[:5], batch_size=2).items == whole.items[:5]


def test_a_model_that_sees_padding_would_depend_on_its_batch(
    run: Callable[..., Evaluation], uneven: list[Row], lively: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The negative control: without the mask, as released codes denoise, the same comparison fails.
    forward = type(lively).forward
    monkeypatch.setattr(type(lively), "forward", lambda self, ids, mask, at: forward(self, ids, None, at))
    assert run(rows=uneven, batch_size=1).items != run(rows=uneven, batch_size=8).items


def test_the_seed_matters_to_sampling_and_not_to_greedy_decoding(run: Callable[..., Evaluation]) -> None:
    greedy = SAMPLER.model_copy(update={"temperature": 0.0})
    assert run(seed=1) == run(seed=1)
    assert run(seed=1).items != run(seed=2).items
    assert run(greedy, seed=1) == run(greedy, seed=2)


def test_fewer_rows_get_what_they_get_among_more(run: Callable[..., Evaluation]) -> None:
    assert run(rows=ROWS[:3]).items == run().items[:3]


def test_a_summary_is_everything_but_the_items_and_goes_into_json(run: Callable[..., Evaluation]) -> None:
    result = run(samples=2)
    summary = json.loads(json.dumps(result.summary()))
    assert set(summary) == {field.name for field in fields(Evaluation)} - {"items"}
    assert summary["measures"]["cells"] == result.measures["cells"]._asdict()
    assert summary["pass_at"]["2"]["value"] == result.pass_at[2].value
    assert summary["accuracy"] == result.accuracy


def test_rows_that_are_all_alike_are_no_proof(scripted: Callable[[list[str]], Evaluation]) -> None:
    assert scripted([row["answer"] for row in ROWS[:4]]).measures["cells"] == (1.0, *wilson_interval(4, 4))
    assert scripted([""] * 4).measures["cells"] == (0.0, *wilson_interval(0, 4))


def test_several_samples_at_temperature_0_are_refused_before_anything_is_done() -> None:
    greedy = SAMPLER.model_copy(update={"temperature": 0.0})
    check_samples(SAMPLER, 2)
    check_samples(greedy, 1)
    with raises(ConfigError, "2 samples"):
        check_samples(greedy, 2)


def test_an_observer_gets_the_share_of_finished_steps(run: Callable[..., Evaluation]) -> None:
    seen: list[float] = []
    assert run(batch_size=3, observe=seen.append) == run()
    # Four steps of three rows, of three, and of two.
    done = itertools.accumulate([3] * 8 + [2] * 4)
    assert seen == pytest.approx([rows / 32 for rows in done])


# --- several samples ---


def test_known_samples_give_known_pass_at_k(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    # Of four samples a row, the rows get 4, 1 and 0 right.
    counts = (4, 1, 0)
    texts = [row["answer"] if i < count else "" for row, count in zip(ROWS, counts, strict=False) for i in range(4)]
    monkeypatch.setattr("unmask.evaluation.evaluate.decode", lambda *_: texts)
    result = evaluate(LocalEngine(load_model(tiny_model)), TASK, Scorer(TASK.rewards()), ROWS[:3], SAMPLER, samples=4)
    assert (result.num_rows, result.num_solved, result.accuracy) == (3, 5, 5 / 12)
    assert {k: estimate.value for k, estimate in result.pass_at.items()} == {
        k: pytest.approx(sum(pass_at_k(4, c, k) for c in counts) / 3) for k in (1, 2, 4)
    }
    assert result.pass_at[4].value == pytest.approx(2 / 3)
    # Twelve completions of three examples are not twelve trials: the interval is wider than
    # Wilson's.
    assert (result.low, result.high) == result.pass_at[1][1:]
    assert result.high - result.low > wilson_interval(5, 12)[1] - wilson_interval(5, 12)[0]
    assert [(item["row"], item["sample"]) for item in result.items[3:6]] == [(0, 3), (1, 0), (1, 1)]


def test_samples_differ_and_more_of_them_leave_the_first_ones_as_they_were(run: Callable[..., Evaluation]) -> None:
    three, one = run(samples=3, batch_size=5), run()
    assert [item for item in three.items if item["sample"] == 0] == one.items
    assert [item for item in three.items if item["sample"] < 2] == run(samples=2).items
    texts = [item["completion"] for item in three.items]
    assert sum(len({*texts[i : i + 3]}) for i in range(0, 24, 3)) > 16
    assert list(three.pass_at) == [1, 2, 3]


def test_samples_without_temperature_are_refused(run: Callable[..., Evaluation]) -> None:
    with raises(ConfigError, "4 samples"):
        run(SAMPLER.model_copy(update={"temperature": 0.0}), samples=4)


def test_rewards_are_computed_for_few_completions_at_a_time(lively: Denoiser) -> None:
    calls: list[int] = []

    def counting(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        return [float(len(calls))] * len(completions)

    rows = TASK.rows("test", SCORED_AT_ONCE + 6)
    sampler = SAMPLER.model_copy(update={"num_steps": 1})
    result = evaluate(
        LocalEngine(Policy(lively, char_tokenizer(TASK.alphabet))), TASK, Scorer({"n": counting}), rows, sampler
    )
    assert calls == [SCORED_AT_ONCE, 6]
    assert [item["reward"] for item in result.items] == [1.0] * SCORED_AT_ONCE + [2.0] * 6
