"""A large share is several requests with the results of one, and an engine on servers of SGLang refuses other schedules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.helpers.servers import NoWeights, app_of, running
from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import EngineError
from unmask.core.records import Needs
from unmask.models import Denoiser, Policy, char_tokenizer
from unmask.sampling import engine as local
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.remote import engine as remote
from unmask.sampling.remote.client import Patience, Server
from unmask.sampling.remote.engine import HttpEngine
from unmask.sampling.remote.served import ServedModel
from unmask.sampling.remote.servers import Servers
from unmask.tasks.sudoku import Sudoku

# Prompts of several lengths, in no order.
PROMPTS = ["1234", "12=", "4321", "1", "2143", "12", "3412", "41=", "2", "34", "1423", "3=", "2314"]
SAMPLER = SamplerConfig(max_completion_length=8, num_steps=4, block_length=4, temperature=0.9, top_k=3)
NEEDS = Needs(greedy=True, selection=("entropy_topk", 2), branches=Branches(1))
SEEDS = torch.arange(len(PROMPTS))

Open = Callable[..., HttpEngine]


@pytest.fixture
def policy(lively: Denoiser) -> Policy:
    return Policy(lively, char_tokenizer(Sudoku().alphabet))


@pytest.fixture
def engine_on(policy: Policy) -> Iterator[Open]:
    made: list[Servers] = []

    def open_engine(*urls: str, limits: BatchLimits | None = None, is_ours: bool = True) -> HttpEngine:
        servers = [Server(url, Patience(10.0, 1.0, 0)) for url in urls]
        made.append(Servers(servers, NoWeights(), policy.denoiser, is_ours=is_ours))
        made[-1].version = 0
        return HttpEngine(policy, made[-1], limits)

    yield open_engine
    for servers in made:
        servers.close()


@pytest.mark.parametrize("limits", [BatchLimits(2), BatchLimits(max_tokens=25), BatchLimits()], ids=str)
def test_a_share_that_is_divided_has_the_results_of_one_request(
    policy: Policy, engine_on: Open, limits: BatchLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(local.DEFAULT_ROWS, "cpu", 3)
    model, asked, shapes = ServedModel(policy, "model"), [], []

    def generate(content: Any) -> Any:
        asked.append(len(content["input_ids"]))
        return model.generate(content)

    handle = policy.denoiser.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    own = LocalEngine(policy, limits).rollout(PROMPTS, SAMPLER, SEEDS, needs=NEEDS)
    expected = shapes.copy()
    with running(app_of(generate)) as url:
        engine = engine_on(url, limits=limits)
        for rows, is_divided in ((100, False), (5, True)):
            monkeypatch.setattr(remote, "REQUEST_ROWS", rows)
            asked.clear()
            shapes.clear()
            path = engine.rollout(PROMPTS, SAMPLER, SEEDS, needs=NEEDS)
            assert sum(asked) == len(PROMPTS)
            assert (len(asked) > 2) is is_divided
            assert max(asked) <= (5 if is_divided else len(PROMPTS))
            assert shapes == expected, "the forward passes are the same"
            assert engine.servers.passes.take() == sum(height * width for height, width in expected)
            for name, value in own.tensors().items():
                assert torch.equal(getattr(path, name), value), name
    handle.remove()


def test_several_servers_divide_their_shares(policy: Policy, engine_on: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST_ROWS", 4)
    model, whole = ServedModel(policy, "model"), LocalEngine(policy).rollout(PROMPTS, SAMPLER, SEEDS)
    one_at_a_time = threading.Lock()

    def generate(content: Any) -> Any:
        with one_at_a_time:
            return model.generate(content)

    with running(app_of(generate)) as first, running(app_of(generate)) as second:
        state, begin = whole.state_before(1), torch.ones_like(SEEDS)
        engine = engine_on(first, second, limits=BatchLimits(2))
        path = engine.rollout(PROMPTS, SAMPLER, SEEDS, completion=state, first_step=begin)
    assert torch.equal(path.seed, SEEDS)
    assert torch.equal(path.tokens, whole.tokens)


def sglang(policy: Policy, sampler: dict[str, Any], **params: Any) -> Callable[[Any], Any]:
    """A server of SGLang that has its own sampler settings, and replaces parameters of the request."""
    model = ServedModel(policy, "model")

    def generate(content: Any) -> Any:
        own = {"sampler": sampler, "seeds": SEEDS.tolist()}
        return model.generate(content | {"sampling_params": content["sampling_params"] | params, "unmask": own})

    return generate


FIXED = {"num_steps": 8, "block_length": 4}


def test_steps_of_another_schedule_than_the_recipes_are_refused(policy: Policy, engine_on: Open) -> None:
    sampler = SamplerConfig(max_completion_length=8, temperature=0.9, **FIXED)  # type: ignore[arg-type]
    with running(app_of(sglang(policy, FIXED))) as url:
        path = engine_on(url, is_ours=False).rollout(PROMPTS, sampler, SEEDS)
    own = LocalEngine(policy).rollout(PROMPTS, sampler, SEEDS)
    assert torch.equal(path.unmask_step, own.unmask_step)
    torch.testing.assert_close(path.logprob, own.logprob, atol=1e-5, rtol=0)
    with (
        running(app_of(sglang(policy, FIXED | {"schedule": "threshold=0.2"}))) as url,
        pytest.raises(EngineError, match=r"sampler\.schedule = fixed .* 4 steps for each block of 4"),
    ):
        engine_on(url, is_ours=False).rollout(PROMPTS, sampler, SEEDS)


def test_a_refused_answer_leaves_the_model_in_training_mode(policy: Policy, engine_on: Open) -> None:
    # The server samples from all tokens, and the recipe from the most likely one of each position.
    sampler = SamplerConfig(max_completion_length=8, temperature=0.9, top_k=1, **FIXED)  # type: ignore[arg-type]
    policy.denoiser.train()
    with (
        running(app_of(sglang(policy, FIXED, top_k=-1, temperature=3.0))) as url,
        pytest.raises(EngineError, match="cannot be drawn"),
    ):
        engine_on(url, is_ours=False).rollout(PROMPTS, sampler, SEEDS)
    assert policy.denoiser.training


def test_a_server_of_sglang_is_not_asked_to_go_on_from_a_state(policy: Policy, engine_on: Open) -> None:
    asked: list[Any] = []
    masked = torch.full((len(PROMPTS), 8), policy.denoiser.mask_id)
    with running(app_of(asked.append)) as url, pytest.raises(EngineError, match=r"method\.finish = rollout"):
        engine_on(url, is_ours=False).rollout(PROMPTS, SAMPLER, SEEDS, completion=masked)
    assert asked == []
