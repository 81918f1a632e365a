"""Recorded answers in SGLang's format import to the rollout that our own sampler made, and answers that are no rollout of
the policy are refused with file and line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from tests.helpers.sglang import exchanges, write_lines
from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError
from unmask.core.records import Trajectory
from unmask.models import Denoiser, Policy, char_tokenizer, convert, load_model
from unmask.sampling.engine import LocalEngine
from unmask.sampling.remote.importing import Imported, imported
from unmask.sampling.remote.recorded import read_recorded
from unmask.tasks.sudoku import Sudoku

PROMPTS = [f"{i}{j}{k}4" for i in range(4) for j in range(4) for k in range(4)]


@pytest.fixture
def policy(lively: Denoiser) -> Policy:
    return Policy(lively, char_tokenizer(Sudoku().alphabet))


def sampled(policy: Policy, *, copies: int = 1, prompts: int = 4, **settings: Any) -> Trajectory:
    """A rollout of our own sampler."""
    sampler = SamplerConfig(
        **{"max_completion_length": 8, "num_steps": 8, "block_length": 4, "temperature": 0.9} | settings
    )
    texts = [prompt for prompt in PROMPTS[:prompts] for _ in range(copies)]
    return LocalEngine(policy).rollout(texts, sampler, torch.arange(len(texts)))


def import_lines(policy: Policy, file: Path, lines: list[dict[str, Any]], **settings: Any) -> Imported:
    return imported(file, read_recorded(write_lines(file, lines)), policy, block_length=4, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_steps": 4},
        {"top_k": 4},
        {"order": "random"},
        {"num_steps": 2, "temperature": 0.7},
        {"schedule": "threshold=0.2"},
        {"schedule": "entropy_bound=0.5", "order": "max_probability"},
    ],
    ids=str,
)
def test_recorded_answers_import_to_the_rollout_of_our_own_sampler(
    policy: Policy, tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = sampled(policy, copies=2, **settings)
    assert (path.unmask_step == path.num_steps).any(), "one completion must end early"
    lines = exchanges(path, logprobs=True)
    own = {name: value for name, value in settings.items() if name in ("order", "schedule")}
    found = import_lines(policy, tmp_path / "a.jsonl", lines, **own)
    own = found.trajectory
    for name in ("prompt_ids", "prompt_mask", "tokens", "unmask_step"):
        assert torch.equal(getattr(own, name), getattr(path, name)), name
    torch.testing.assert_close(own.logprob, path.logprob, atol=1e-5, rtol=0)
    torch.testing.assert_close(own.entropy, path.entropy, atol=1e-5, rtol=0)
    assert own.sampler == path.sampler
    assert (own.eos_id, own.mask_id, own.turn_end_id) == (path.eos_id, path.mask_id, path.turn_end_id)
    assert found.group_size == 2
    assert found.mismatch is not None
    assert found.mismatch.largest < 1e-5


@pytest.mark.slow
def test_answers_of_a_block_causal_model_import_to_the_rollout_of_our_own_sampler(tmp_path: Path) -> None:
    # SGLang serves such models: blocks of four, a threshold, and keys and values of finished blocks in a cache.
    convert(mini_checkpoint("sdar", tmp_path / "original"), tmp_path / "native")
    policy = load_model(tmp_path / "native")
    sampler = SamplerConfig(max_completion_length=12, block_length=4, schedule="threshold=0.02", temperature=0.8)
    prompts = [[5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]]
    path = LocalEngine(policy).rollout_of_tokens(prompts, sampler, torch.tensor([3, 4]))
    assert path.steps_taken.max() < 12, "some step commits several tokens"
    file = write_lines(tmp_path / "a.jsonl", exchanges(path, logprobs=True))
    found = imported(file, read_recorded(file), policy, schedule="threshold=0.02")
    assert torch.equal(found.trajectory.tokens, path.tokens)
    assert torch.equal(found.trajectory.unmask_step, path.unmask_step)
    torch.testing.assert_close(found.trajectory.logprob, path.logprob, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.trajectory.entropy, path.entropy, atol=1e-5, rtol=0)


def test_a_batch_is_a_list_of_responses(policy: Policy, tmp_path: Path) -> None:
    path = sampled(policy)
    lines = exchanges(path)
    batch = {
        "request": lines[0]["request"] | {"input_ids": [line["request"]["input_ids"] for line in lines]},
        "response": [line["response"] for line in lines],
    }
    found = import_lines(policy, tmp_path / "a.jsonl", [batch])
    assert torch.equal(found.trajectory.unmask_step, path.unmask_step)


def test_log_probabilities_of_the_engine_are_compared_and_never_used(policy: Policy, tmp_path: Path) -> None:
    path = sampled(policy)
    lines = exchanges(path, logprobs=True)
    for line in lines:
        for entry in line["response"]["meta_info"]["output_token_logprobs"]:
            entry[0] -= 0.25
    found = import_lines(policy, tmp_path / "a.jsonl", lines)
    assert found.mismatch is not None
    assert found.mismatch.mean == pytest.approx(0.25, abs=1e-5)
    torch.testing.assert_close(found.trajectory.logprob, path.logprob, atol=1e-5, rtol=0)


def changed(**parts: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the values of one line by dotted name; ... removes the value."""

    def change(line: dict[str, Any]) -> None:
        for name, value in parts.items():
            *way, last = name.split("__")
            place = line
            for step in way:
                place = place[step]
            if value is ...:
                del place[last]
            else:
                place[last] = value(place[last]) if callable(value) else value

    return change


def with_entry(index: int, value: object) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:index], value, *values[index + 1 :]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(response__meta_info__step_maps=...), ("step_maps", "return_step_maps")),
        (changed(response__meta_info__step_maps=None), ("step_maps", "return_step_maps")),
        (changed(response__meta_info__step_maps=with_entry(1, [1, 2])), ("position 1", "edited")),
        (
            changed(response__meta_info__step_maps=lambda steps: [*steps[4:], *[s + 4 for s in steps[:4]]][::-1]),
            ("contradicts",),
        ),
        (changed(response__meta_info__step_maps=with_entry(7, 9)), ("without a gap",)),
        (changed(response__meta_info__step_maps=lambda steps: steps[:-1]), ("7 entries", "8 output tokens")),
        (changed(response__output_ids=with_entry(0, 999)), ("999", "tokens")),
        (changed(response__output_ids=with_entry(0, -5)), ("-5",)),
        (changed(response__output_ids=with_entry(0, "4")), ("'4'", "response.output_ids.0")),
        (changed(response__output_ids=with_entry(0, 1)), ("MASK", "position 0")),
        (changed(response__output_ids=lambda ids: [*ids, 4, 4, 4, 4]), ("12 tokens", "8")),
        (changed(response__output_ids=...), ("response.output_ids is missing",)),
        (changed(response__meta_info__finish_reason__type="abort"), ("abort",)),
        (changed(request__sampling_params__temperature=0.5), ("temperature = 0.5", "line 1")),
        (changed(request__sampling_params__top_k=2), ("top_k = 2", "line 1")),
        (changed(request__sampling_params__min_p=0.1), ("min_p = 0.1",)),
        (changed(request__sampling_params__repetition_penalty=1.2), ("repetition_penalty = 1.2",)),
        (changed(request__sampling_params__magic=1), ("magic = 1", "not known")),
        (changed(request__sampling_params__temperature="hot"), ("'hot'", "request.sampling_params.temperature")),
        (changed(request__input_ids=...), ("input_ids",)),
        (changed(request__input_ids=lambda ids: [4, *ids]), ("5 tokens", "multiple")),
        (changed(request__input_ids=[999]), ("999",)),
        (changed(response=[]), ("response",)),
        (changed(response=...), ("response",)),
    ],
)
def test_an_answer_that_is_no_path_is_refused_with_its_line(
    policy: Policy, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: tuple[str, ...]
) -> None:
    path = sampled(policy, prompts=16)
    whole = [i for i in range(16) if (path.unmask_step[i] < 8).all() and path.eos_id not in path.tokens[i]]
    lines = exchanges(path.rows(torch.tensor(whole[:3])))
    import_lines(policy, tmp_path / "good.jsonl", lines)
    lines = copy.deepcopy(lines)
    change(lines[1])
    with raises(DataError, "a.jsonl, line 2", *words):
        import_lines(policy, tmp_path / "a.jsonl", lines)


def test_a_completion_that_stops_without_an_eos_is_refused(policy: Policy, tmp_path: Path) -> None:
    path = sampled(policy, prompts=16)
    whole = next(i for i in range(16) if path.eos_id not in path.tokens[i])
    lines = exchanges(path.rows(slice(whole, whole + 1)))
    response = lines[0]["response"]
    response["output_ids"], response["meta_info"]["step_maps"] = (
        response["output_ids"][:4],
        response["meta_info"]["step_maps"][:4],
    )
    with raises(DataError, "line 1", "4 of 8 tokens"):
        import_lines(policy, tmp_path / "a.jsonl", lines)
    response["output_ids"], response["meta_info"]["step_maps"] = response["output_ids"][:3], [1, 2, 3]
    with raises(DataError, "line 1", "middle of a block"):
        import_lines(policy, tmp_path / "a.jsonl", lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("empty",)),
        ("\n\n", ("empty",)),
        ('{"request": {"input_ids": [4, 5', ("line 1", "cut off")),
        ("[1, 2]", ("line 1", '"request"')),
        ("[" * 50_000, ("line 1", "cut off")),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with raises(DataError, "a.jsonl", *words):
        read_recorded(file)


def test_a_truncated_last_line_is_refused(policy: Policy, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", exchanges(sampled(policy)))
    file.write_text(file.read_text()[:-20])
    with raises(DataError, "line 4", "cut off"):
        read_recorded(file)
    file.write_bytes(b"\xff\xfe\n")
    with raises(DataError, "line 1", "UTF-8"):
        read_recorded(file)
    with raises(DataError, "there is no file"):
        read_recorded(tmp_path / "none.jsonl")


def test_groups_of_different_sizes_are_refused(policy: Policy, tmp_path: Path) -> None:
    lines = exchanges(sampled(policy, copies=2))
    with raises(DataError, "line 7", "1 and 2"):
        import_lines(policy, tmp_path / "a.jsonl", lines[:-1])


def test_greedy_answers_at_a_temperature_are_refused(policy: Policy, tmp_path: Path) -> None:
    for settings in ({"order": "random"}, {"num_steps": 8}):
        drawn = sampled(policy, prompts=64, **settings)
        order = drawn.sampler.order
        assert import_lines(policy, tmp_path / "drawn.jsonl", exchanges(drawn), order=order).num_tested > 60
        lines = exchanges(sampled(policy, prompts=64, temperature=0.0, **settings))
        for line in lines:
            line["request"]["sampling_params"]["temperature"] = 0.9
        with raises(DataError, "a.jsonl", "0 of", "most likely token"):
            import_lines(policy, tmp_path / "a.jsonl", lines, order=order)


def test_answers_of_other_weights_are_refused(policy: Policy, tmp_path: Path) -> None:
    lines = exchanges(sampled(policy, prompts=64, temperature=1.5))
    for line in lines:
        line["request"]["sampling_params"]["temperature"] = 0.1
    with raises(DataError, "a.jsonl", "unlikely"):
        import_lines(policy, tmp_path / "a.jsonl", lines)


def test_a_token_outside_the_support_is_refused(policy: Policy, tmp_path: Path) -> None:
    lines = exchanges(sampled(policy, temperature=1.5))
    for line in lines:
        line["request"]["sampling_params"]["top_k"] = 2
    with raises(DataError, "a.jsonl, line", "top_k = 2", "support"):
        import_lines(policy, tmp_path / "a.jsonl", lines)


def test_an_engine_that_adapts_its_steps_needs_its_schedule(policy: Policy, tmp_path: Path) -> None:
    lines = exchanges(sampled(policy, schedule="threshold=0.2"))
    with raises(DataError, "a.jsonl", "--schedule"):
        import_lines(policy, tmp_path / "a.jsonl", lines)
    with raises(DataError, "a.jsonl", "takes", "num_steps"):
        import_lines(policy, tmp_path / "a.jsonl", lines, schedule="threshold=0.2", num_steps=2)


def test_an_order_that_draws_positions_is_refused(policy: Policy, tmp_path: Path) -> None:
    with raises(DataError, "plackett_luce"):
        import_lines(policy, tmp_path / "a.jsonl", exchanges(sampled(policy)), order="plackett_luce")


def test_the_prompt_of_a_server_that_counts_blocks_from_the_completion_may_have_any_length(
    policy: Policy, tmp_path: Path
) -> None:
    sampler = SamplerConfig(max_completion_length=8, num_steps=8, block_length=4, temperature=0.9)
    path = LocalEngine(policy).rollout(["12=", "1234="], sampler, torch.arange(2))
    lines = exchanges(path)
    with raises(DataError, "line 1", "3 tokens"):
        import_lines(policy, tmp_path / "a.jsonl", lines)
    for line in lines:
        line["response"]["meta_info"]["blocks_from"] = "completion"
    assert torch.equal(import_lines(policy, tmp_path / "a.jsonl", lines).trajectory.unmask_step, path.unmask_step)
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["response"]["meta_info"]["blocks_from"]
