"""The engine that samples on servers gives our own sampler's rollout, and refuses every wrong answer with a message."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.helpers.messages import check
from tests.helpers.servers import NoWeights, app_of, running
from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError, EngineError
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser, Policy, char_tokenizer
from unmask.sampling.engine import LocalEngine
from unmask.sampling.remote.client import Patience, Server
from unmask.sampling.remote.engine import HttpEngine
from unmask.sampling.remote.served import ServedModel
from unmask.sampling.remote.servers import Servers
from unmask.tasks.sudoku import Sudoku

PROMPTS = ["1234", "12=", "4321", "12="]
SAMPLER = SamplerConfig(max_completion_length=8, num_steps=4, block_length=4, temperature=0.9, top_k=3)
NEEDS = Needs(greedy=True, selection=("entropy_topk", 2), branches=Branches(1))


@pytest.fixture
def policy(lively: Denoiser) -> Policy:
    return Policy(lively, char_tokenizer(Sudoku().alphabet))


class Opener:
    """Makes engines on servers, and closes their connections after a test."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.made = policy, []

    def __call__(self, url: str, **patience: Any) -> HttpEngine:
        own = {"timeout": 10.0, "max_wait": 1.0, "retries": 1} | patience
        servers = Servers([Server(url, Patience(**own))], NoWeights(), self.policy.denoiser)
        servers.version = 0
        self.made.append(servers)
        return HttpEngine(self.policy, servers)


@pytest.fixture
def engine_on(policy: Policy) -> Iterator[Opener]:
    opener = Opener(policy)
    yield opener
    for servers in opener.made:
        servers.close()


def rollout(engine: HttpEngine | LocalEngine, needs: Needs | None = NEEDS, **options: Any) -> Trajectory:
    return engine.rollout(PROMPTS, SAMPLER, torch.arange(4), needs=needs, **options)


def test_a_rollout_is_that_of_our_own_sampler(policy: Policy, engine_on: Opener) -> None:
    model = ServedModel(policy, "model")
    with running(app_of(model.generate)) as url:
        path, own = rollout(engine_on(url)), rollout(LocalEngine(policy))
        for name, value in own.tensors().items():
            assert torch.equal(getattr(path, name), value), name
        assert (path.sampler, path.mask_id, path.eos_id, path.turn_end_id, path.policy_version) == (
            own.sampler,
            own.mask_id,
            own.eos_id,
            own.turn_end_id,
            0,
        )
        state, first = own.state_before(2), torch.full((4,), 2)
        again = rollout(engine_on(url), None, completion=state, first_step=first)
        assert torch.equal(again.tokens, own.tokens)
        with pytest.raises(DataError, match="do not fit"):
            engine_on(url).rollout(["1" * 5000], SAMPLER, torch.arange(1))


def test_the_token_passes_of_the_server_are_counted(policy: Policy, engine_on: Opener) -> None:
    seen: list[int] = []
    handle = policy.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    rollout(LocalEngine(policy))
    handle.remove()
    with running(app_of(ServedModel(policy, "model").generate)) as url:
        engine = engine_on(url)
        rollout(engine)
        assert engine.servers.passes.take() == sum(seen) > 0


def changed(row: int, *way: Any, to: Any) -> Callable[[list[Any]], Any]:
    """A change of one value in the answers."""

    def change(answers: list[Any]) -> Any:
        place = answers[row]
        for step in way[:-1]:
            place = place[step]
        place[way[-1]] = to(place[way[-1]]) if callable(to) else to
        return answers

    return change


def without(row: int, *way: Any) -> Callable[[list[Any]], Any]:
    def change(answers: list[Any]) -> Any:
        place = answers[row]
        for step in way[:-1]:
            place = place[step]
        del place[way[-1]]
        return answers

    return change


def of_all(name: str, value: Any) -> Callable[[list[Any]], Any]:
    """A change of one value of the record of every row."""
    return lambda answers: [answer | {"unmask": answer["unmask"] | {name: value}} for answer in answers]


def entry(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda answers: {"answers": len(answers)}, ("not a list of 4",)),
        (lambda answers: answers[:3], ("a list of 3", "4 answers")),
        (lambda answers: [*answers, answers[0]], ("a list of 5",)),
        (lambda answers: [answers[0], answers[0], *answers[2:]], ("answer 1", "row 0 of this request")),
        (lambda answers: answers[::-1], ("answer 0", "row 3 of this request")),
        (changed(2, "meta_info", "id", to="mallory"), ("answer 2", "another request", "mallory")),
        (changed(1, "meta_info", "weight_version", to="older"), ("answer 1", "'older'", "'default'")),
        (without(1, "meta_info", "weight_version"), ("answer 1", "None")),
        (without(1, "unmask"), ("answer 1.unmask",)),
        (without(1, "unmask", "logprob"), ("unmask.logprob is missing",)),
        (changed(1, "unmask", "tokens", to=lambda v: v[:-1]), ("tokens",)),
        (changed(1, "unmask", "tokens", to=entry(999)), ("tokens", "vocabulary")),
        (changed(1, "unmask", "tokens", to=entry(10**30)), ("tokens",)),
        (changed(1, "unmask", "tokens", to=entry(1)), ("tokens", "MASK")),
        (changed(1, "unmask", "tokens", to=entry(-1)), ("tokens", "-1")),
        (changed(1, "unmask", "tokens", to=entry("4")), ("tokens", "'4'")),
        (changed(1, "unmask", "unmask_step", to=entry(3)), ("row 1", "step 3", "block")),
        (changed(1, "unmask", "unmask_step", to=entry(-1)), ("row 1", "step -1")),
        (changed(1, "unmask", "unmask_step", to=entry(77)), ("row 1", "step 77")),
        (changed(1, "unmask", "unmask_step", to=lambda v: [1 - v[0], *v[1:]]), ("sampler.schedule = fixed",)),
        (changed(1, "unmask", "logprob", to=entry(0.5)), ("logprob",)),
        (changed(1, "unmask", "logprob", to=entry(float("nan"))), ("logprob",)),
        (changed(1, "unmask", "logprob", to=entry(float("-inf"))), ("logprob",)),
        (changed(1, "unmask", "entropy", to=entry(-2.0)), ("entropy",)),
        (without(1, "unmask", "one_step_tokens"), ("lacks one_step_tokens",)),
        (changed(1, "unmask", "one_step_tokens", to=lambda v: v[:1]), ("one_step_tokens",)),
        (of_all("one_step_tokens", [[7] * 8] * 2), ("one_step_tokens", "differs")),
        (changed(1, "unmask", "branch_tokens", to=lambda v: [[[999] * 8]] * 2), ("branch_tokens", "vocabulary")),
        (changed(1, "unmask", "token_passes", to=-5), ("token_passes", "-5")),
        (changed(1, "output_ids", to="text"), ("output_ids",)),
        (changed(1, "unmask", "support", to=entry([0, 1, 2])), ("support", "MASK")),
        (changed(1, "unmask", "support", to=lambda v: [[-1, -1, -1]] * 8), ("support lacks",)),
    ],
)
def test_a_wrong_answer_is_refused(
    policy: Policy, engine_on: Opener, change: Callable[[list[Any]], Any], words: tuple[str, ...]
) -> None:
    model = ServedModel(policy, "model")
    with running(app_of(lambda content: change(model.generate(content)))) as url:
        engine = engine_on(url)
        with pytest.raises(EngineError) as caught:
            rollout(engine)
        check(
            str(caught.value).replace(url, "URL"),
            "the server URL",
            *words,
            snapshot=not any("request" in word for word in words),
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("branch_tokens", [[[7] * 8]] * 2), ("one_step_tokens", [[7] * 8] * 2), ("choice_logprob", [0.0] * 8)],
)
def test_a_record_that_was_not_requested_is_refused(
    policy: Policy, engine_on: Opener, name: str, value: list[Any]
) -> None:
    model = ServedModel(policy, "model")
    change = of_all(name, value)
    with (
        running(app_of(lambda content: change(model.generate(content)))) as url,
        pytest.raises(EngineError, match=f"{name}, which was not requested"),
    ):
        rollout(engine_on(url), None)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Response(b"<html>"), ("not JSON", "<html>")),
        (Response(b"\x80\x04K\x01."), ("not JSON",)),
        (Response(b"[" * 50_000), ("not JSON",)),
        (JSONResponse({"error": {"message": "no idea"}}, 400), ("status 400", "no idea")),
        (JSONResponse({"detail": "x"}, 404), ("status 404",)),
        (Response(b"oops", 500), ("status 500", "oops")),
        (RedirectResponse("http://127.0.0.1:1/"), ("status 307",)),
        (Response(b" " * 10_000_000), ("more than the",)),
    ],
    ids=["html", "pickle", "nested", "400", "404", "500", "redirect", "large"],
)
def test_an_answer_that_is_none_is_refused(engine_on: Opener, answer: Response, words: tuple[str, ...]) -> None:
    with running(app_of(lambda content: answer)) as url, pytest.raises(EngineError) as caught:
        rollout(engine_on(url))
    check(str(caught.value).replace(url, "URL"), "the server URL", *words)


def test_a_slow_server_is_asked_again_and_then_given_up(engine_on: Opener) -> None:
    calls: list[float] = []

    async def endless(request: Request) -> Response:
        calls.append(time.monotonic())

        async def drip() -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0.05)

        return StreamingResponse(drip())

    app = Starlette(routes=[Route("/generate", endless, methods=["POST"])])
    with running(app) as url, pytest.raises(EngineError) as caught:
        rollout(engine_on(url, timeout=0.4, retries=2))
    assert len(calls) == 3
    check(str(caught.value).replace(url, "URL"), "more than 0.4 s, 3 times", "rollout_engine.timeout")


def test_a_server_whose_headers_arrive_slowly_is_given_up(engine_on: Opener) -> None:
    calls, ended = [], threading.Event()

    def dribble(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            # The headers never end, and each byte arrives well within the limit of one read.
            while not ended.wait(0.05):
                connection.sendall(b"x")

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                calls.append(listening.accept()[0])
                threading.Thread(target=dribble, args=(calls[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        # If the limit did not hold, the server would end the headers' wait by closing the connections.
        stop = threading.Timer(20, ended.set)
        stop.start()
        with pytest.raises(EngineError, match=r"more than 0\.4 s, 2 times"):
            rollout(engine_on(url, timeout=0.4, retries=1))
        stop.cancel()
        assert not ended.is_set()
        ended.set()
    assert len(calls) == 2


@pytest.mark.parametrize("status", [408, 504])
def test_the_time_limit_of_a_server_is_not_taken_for_that_of_the_run(engine_on: Opener, status: int) -> None:
    calls: list[int] = []

    def generate(content: Any) -> Response:
        calls.append(status)
        return JSONResponse({"error": {"message": "the request took more than 5 s."}}, status)

    with running(app_of(generate)) as url, pytest.raises(EngineError) as caught:
        rollout(engine_on(url, retries=1))
    assert len(calls) == 2
    check(
        str(caught.value).replace(url, "URL"), "gave up", f"status {status}", "more than 5 s", "unmask serve --timeout"
    )
    assert "rollout_engine.timeout" not in str(caught.value)


def test_control_characters_of_a_server_reach_no_message(engine_on: Opener, caplog: pytest.LogCaptureFixture) -> None:
    hostile, statuses = "\x1b[2J\nthe run has ended\u202e" + "x" * 2000, iter([503, 400])
    with (
        caplog.at_level(logging.WARNING, "unmask"),
        running(app_of(lambda content: JSONResponse({"message": hostile}, next(statuses)))) as url,
        pytest.raises(EngineError) as caught,
    ):
        rollout(engine_on(url))
    logged = [record.getMessage() for record in caplog.records if record.name == "unmask"]
    assert len(logged) == 2, "the wait and its end"
    for text in (logged[0], str(caught.value)):
        assert text.isprintable()
        assert r"'\x1b[2J\nthe run has ended\u202exxx" in text
        assert len(text) < 800


def test_a_busy_server_is_waited_for(policy: Policy, engine_on: Opener, caplog: pytest.LogCaptureFixture) -> None:
    model, answers = ServedModel(policy, "model"), iter([503, 502, 200])

    def generate(content: Any) -> Any:
        status = next(answers)
        return model.generate(content) if status == 200 else JSONResponse({"message": "busy"}, status)

    with caplog.at_level(logging.WARNING, "unmask"), running(app_of(generate)) as url:
        path = rollout(engine_on(url, max_wait=30.0))
    assert torch.equal(path.tokens, rollout(LocalEngine(policy)).tokens)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "does not answer (status 503, 'busy'). Waiting" in said
    assert "answers again" in said


def test_a_thread_uses_prompts_that_were_encoded_before(policy: Policy, engine_on: Opener) -> None:
    model = ServedModel(policy, "model")
    with running(app_of(model.generate)) as url:
        engine = engine_on(url)
        assert engine.encode(PROMPTS) == engine.encode(PROMPTS)
        before = dict(engine._encoded)
        rollout(engine)
        assert engine._encoded == before
