"""A server answers in SGLang's format, gives the rollout of its weights bit for bit, and answers wrong requests with a
message."""

from __future__ import annotations

import ast
import gc
import json
import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.messages import check, raises
from tests.helpers.paths import ROOT
from tests.helpers.servers import get, post, running, serving
from tests.helpers.sglang import exchanges, write_lines
from unmask.core.branches import Branches
from unmask.core.config import LoraConfig, SamplerConfig
from unmask.core.errors import ConfigError, ModelError
from unmask.core.records import Needs, Trajectory
from unmask.models import Denoiser, Policy, char_tokenizer, load_model, save_model
from unmask.models.adapters import Adapters
from unmask.sampling.encoding import encode_all
from unmask.sampling.engine import BatchLimits, LocalEngine
from unmask.sampling.remote import served as served_module
from unmask.sampling.remote.app import (
    SPARE_CONNECTIONS,
    ServerLimits,
    hosts_of,
    is_loopback,
    listening_socket,
    make_app,
)
from unmask.sampling.remote.extension import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    Expected,
    RowRecord,
    needs_fields,
    settings_of,
    tensors_of,
)
from unmask.sampling.remote.format import FormatError, SamplingParams
from unmask.sampling.remote.importing import imported
from unmask.sampling.remote.recorded import read_recorded
from unmask.sampling.remote.served import ServedModel
from unmask.sampling.remote.worker import Job, Worker
from unmask.tasks.sudoku import Sudoku

PROMPTS = ["1234", "12=3", "4321", "12=3"]
SAMPLER = SamplerConfig(max_completion_length=8, num_steps=4, block_length=4, temperature=0.9)


def policy_of(denoiser: Denoiser) -> Policy:
    return Policy(denoiser, char_tokenizer(Sudoku().alphabet))


@pytest.fixture
def policy(lively: Denoiser) -> Policy:
    return policy_of(lively)


@pytest.fixture
def url(policy: Policy) -> Iterator[str]:
    with serving(policy) as address:
        yield address


def request_of(policy: Policy, sampler: SamplerConfig = SAMPLER, **unmask: Any) -> dict[str, Any]:
    """A request for the rollout of `PROMPTS`."""
    return {
        "input_ids": encode_all(policy.tokenizer, PROMPTS),
        "sampling_params": SamplingParams.of(sampler).model_dump(),
        "return_step_maps": True,
        "unmask": {
            "sampler": settings_of(sampler),
            "seeds": list(range(len(PROMPTS))),
            "return_record": True,
            **unmask,
        },
    }


def local(policy: Policy, sampler: SamplerConfig = SAMPLER, **options: Any) -> Trajectory:
    return LocalEngine(policy).rollout(PROMPTS, sampler, torch.arange(len(PROMPTS)), **options)


def record_of(
    policy: Policy, answers: list[Any], sampler: SamplerConfig = SAMPLER, **parts: Any
) -> dict[str, torch.Tensor]:
    """The tensors of the records in answers, as a client reads them."""
    denoiser = policy.denoiser
    options = {"needs": None, "has_choice": False, "is_given": None} | parts
    expected = Expected(denoiser.vocab_size, denoiser.mask_id, denoiser.eos_id, sampler, **options)
    assert isinstance(answers, list), answers
    records = [RowRecord.model_validate(answer["unmask"]) for answer in answers]
    return tensors_of(records, torch.arange(len(PROMPTS)), expected)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, None),
        ({"num_steps": 8, "order": "random", "top_k": 4}, Needs(greedy=True, selection=("entropy_topk", 2))),
        ({"guidance": 0.5}, Needs(greedy=True, selection=("uniform", 3))),
        ({"order": "plackett_luce"}, Needs(greedy=True, selection=("all", 1), choice=True)),
        ({"schedule": "threshold=0.5", "num_steps": 8}, Needs(greedy=True, selection=("entropy_topk", 2))),
        ({}, Needs(greedy=True, selection=("entropy_topk", 1), branches=Branches(2, with_taken=True))),
    ],
    ids=["plain", "one-step", "guided", "plackett_luce", "adaptive", "branches"],
)
def test_a_rollout_of_a_server_is_that_of_its_weights_bit_for_bit(
    policy: Policy, url: str, settings: dict[str, Any], needs: Needs | None
) -> None:
    sampler = SamplerConfig(**SAMPLER.model_dump() | settings)
    path = local(policy, sampler, needs=needs, entropy_temperature=1.5)
    answers = post(url, request_of(policy, sampler, needs=needs_fields(needs), entropy_temperature=1.5)).json()
    own = record_of(policy, answers, sampler, needs=needs, has_choice=path.choice_rank is not None)
    expected = {
        name: value for name, value in path.tensors().items() if name not in ("prompt_ids", "prompt_mask", "seed")
    }
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
        assert own[name].dtype == value.dtype, name


def test_a_rollout_goes_on_from_a_state(policy: Policy, url: str) -> None:
    whole = local(policy)
    state, first = whole.state_before(2), torch.full((4,), 2)
    path = local(policy, completion=state, first_step=first)
    answers = post(url, request_of(policy, completion=state.tolist(), first_step=first.tolist())).json()
    own = record_of(policy, answers, is_given=state != policy.denoiser.mask_id, first_step=first)
    assert torch.equal(own["tokens"], path.tokens)
    assert torch.equal(own["unmask_step"], path.unmask_step)
    assert torch.equal(own["tokens"], whole.tokens), "the continuation is that of the whole rollout"


def test_answers_are_in_sglangs_format_and_import_to_the_same_rollout(policy: Policy, url: str, tmp_path: Path) -> None:
    path, request = local(policy), request_of(policy)
    del request["unmask"]["return_record"]
    request |= {"return_logprob": True, "rid": ["a", "b", "c", "d"]}
    answers = post(url, request).json()
    assert [answer["meta_info"]["id"] for answer in answers] == ["a", "b", "c", "d"]
    for answer, line in zip(answers, exchanges(path, logprobs=True), strict=True):
        expected = line["response"]
        assert answer["output_ids"] == expected["output_ids"]
        for name in ("step_maps", "finish_reason", "prompt_tokens", "completion_tokens", "output_token_logprobs"):
            assert answer["meta_info"][name] == expected["meta_info"][name], name
        assert "unmask" not in answer
    file = write_lines(tmp_path / "a.jsonl", [{"request": request, "response": answers}])
    found = imported(file, read_recorded(file), policy, block_length=4)
    assert torch.equal(found.trajectory.unmask_step, path.unmask_step)
    torch.testing.assert_close(found.trajectory.logprob, path.logprob, atol=1e-5, rtol=0)


def test_draws_follow_from_the_sampling_seed_and_are_random_without_one(url: str) -> None:
    def tokens(**more: Any) -> list[list[int]]:
        content = {"input_ids": [[4, 5]] * 4, "sampling_params": {"max_new_tokens": 8, **more}}
        return [answer["output_ids"] for answer in post(url, content).json()]

    assert tokens(sampling_seed=5) == tokens(sampling_seed=5) != tokens(sampling_seed=6)
    assert tokens() != tokens()
    assert len({tuple(row) for row in tokens(sampling_seed=5)}) > 1, "completions of one prompt differ"
    assert post(url, {"input_ids": [4], "sampling_params": {"sampling_seed": "5"}}).status_code == 400


def test_a_single_prompt_has_a_single_answer_and_texts_are_encoded(policy: Policy, url: str) -> None:
    sampling = {"max_new_tokens": 8, "temperature": 0.0}
    one = post(url, {"text": "12=3", "sampling_params": sampling}).json()
    two = post(url, {"input_ids": encode_all(policy.tokenizer, ["12=3"]), "sampling_params": sampling}).json()
    assert isinstance(one, dict)
    assert one["output_ids"] == two[0]["output_ids"]
    assert "step_maps" not in one["meta_info"]
    assert get(url, "/health").json() == {"status": "ok"}
    info = get(url, "/get_model_info").json()
    assert (info["weight_version"], info["unmask"]["mask_id"]) == ("default", policy.denoiser.mask_id)


SHORT = {"input_ids": [4], "sampling_params": {"max_new_tokens": 8}}
"""A request that is right."""


@pytest.fixture(scope="module")
def shared_url(tiny_model: Path) -> Iterator[str]:
    """The address of a server for all wrong requests, which must leave it working."""
    with serving(load_model(tiny_model), max_rows=8) as address:
        yield address
        assert post(address, SHORT).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ({}, 400, ("input_ids",)),
        ([], 400, ("request = []",)),
        ({"input_ids": []}, 400, ("no prompt",)),
        ({"input_ids": [[]]}, 400, ("no prompt",)),
        ({"input_ids": [4, "5"]}, 400, ("'5'",)),
        ({"input_ids": [4, 10**12]}, 400, ("1000000000000",)),
        ({"input_ids": [4, 99]}, 400, ("99", "9 tokens")),
        ({"input_ids": [4], "sampling_params": {"temperature": -1}}, 400, ("temperature", "-1")),
        ({"input_ids": [4], "sampling_params": {"min_p": 0.5}}, 400, ("min_p",)),
        ({"input_ids": [4], "sampling_params": {"max_new_tokens": 10**9}}, 400, ("max_new_tokens",)),
        ({"input_ids": [4], "sampling_params": {"max_new_tokens": 100_000}}, 400, ("do not fit",)),
        ({"input_ids": [4], "stream": True}, 400, ("stream",)),
        ({"input_ids": [4], "image_data": "x"}, 400, ("image_data",)),
        ({"input_ids": [4], "unmask": {"magic": 1}}, 400, ("unmask.magic",)),
        ({"input_ids": [4], "unmask": {"sampler": {"order": "evil.py:run"}}}, 400, ("evil.py:run", "cannot name code")),
        ({"input_ids": [4], "unmask": {"sampler": {"order": "sideways"}}}, 400, ("sideways",)),
        ({"input_ids": [4], "unmask": {"sampler": {"num_steps": 7, "block_length": 64}}}, 400, ("num_steps",)),
        ({"input_ids": [4], "unmask": {"sampler": {"temperature": 2.0}}}, 400, ("'temperature'",)),
        (SHORT | {"unmask": {"seeds": [1, 2]}}, 400, ("seeds", "[1]")),
        ({"input_ids": [4], "sampling_params": {"temperature": 1e-300}}, 400, ("temperature = 1e-300",)),
        ({"input_ids": [4], "sampling_params": {"temperature": 1e308}}, 400, ("temperature = 1e+308",)),
        ({"input_ids": [4], "unmask": {"sampler": {"guidance": 1e300}}}, 400, ("guidance = 1e+300",)),
        ({"input_ids": [4], "unmask": {"sampler": {"order_temperature": 1e-300}}}, 400, ("order_temperature",)),
        (SHORT | {"unmask": {"entropy_temperature": 1e-300, "return_record": True}}, 400, ("entropy_temperature",)),
        (SHORT | {"unmask": {"first_step": [100]}}, 400, ("first_step = [100]", "num_steps = 4")),
        (SHORT | {"unmask": {"first_step": [4]}}, 400, ("first_step = [4]", "num_steps = 4")),
        (SHORT | {"rid": ["a", "b"]}, 400, ("2 names", "prompts is 1")),
        ({"text": "\ud800"}, 400, ("surrogate",)),
        (SHORT | {"unmask": {"completion": [[1, 1]]}}, 400, ("completion", "[1, 8]")),
        ({"input_ids": [4], "unmask": {"needs": {"selection": ["best", 1]}}}, 400, ("'best'",)),
        ({"input_ids": [4], "unmask": {"needs": {"selection": ["uniform", 10**6]}}}, 400, ("selection",)),
        ({"input_ids": [4], "unmask": {"weight_version": "other"}}, 409, ("'other'", "'default'")),
        ({"input_ids": [[4]] * 9}, 400, ("9 prompts",)),
    ],
)
def test_a_wrong_request_is_answered_with_a_message(
    shared_url: str, content: Any, status: int, words: tuple[str, ...]
) -> None:
    answer = post(shared_url, content)
    assert answer.status_code == status, answer.text
    check(answer.json()["error"]["message"], *words)


def test_requests_that_are_not_json_are_refused(policy: Policy) -> None:
    with serving(policy, limits=ServerLimits(max_bytes=1000)) as url, httpx2.Client(trust_env=False) as client:
        header = {"content-type": "application/json"}
        assert client.post(f"{url}/generate", content=b"{", headers=header).status_code == 400
        assert client.post(f"{url}/generate", content=b"\x80\x04K\x01.", headers=header).status_code == 400
        assert client.post(f"{url}/generate", content=b"[" * 900, headers=header).status_code == 400
        assert client.post(f"{url}/generate", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
        assert client.post(f"{url}/generate", content=b" " * 2000, headers=header).status_code == 413
        # Without an announced length, too.
        assert client.post(f"{url}/generate", content=iter([b" " * 600] * 3), headers=header).status_code == 413
        assert client.get(f"{url}/generate").status_code == 405
        check(client.get(f"{url}/etc/passwd").json()["message"], "/etc/passwd")
        assert client.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 400),
        ({"host": "evil.example:80", "origin": "http://evil.example"}, 400),
        ({"origin": "http://127.0.0.1"}, 403),
    ],
)
def test_a_web_page_cannot_call_a_server_of_this_machine(shared_url: str, headers: dict[str, str], status: int) -> None:
    assert post(shared_url, SHORT, headers=headers).status_code == status


def test_clients_may_call_a_server_of_this_machine_by_its_addresses_only() -> None:
    with listening_socket("127.0.0.5", 0) as bound:
        assert set(hosts_of(bound) or ()) == {"localhost", "127.0.0.1", "[::1]", "127.0.0.5"}
    with listening_socket("0.0.0.0", 0) as bound:
        assert hosts_of(bound) is None


@pytest.mark.parametrize("name", ["temperature", "order_temperature", "guidance", "entropy_temperature"])
@pytest.mark.parametrize("value", [SMALLEST_SCALE, LARGEST_SCALE])
def test_the_most_extreme_scales_that_are_accepted_give_numbers(policy: Policy, name: str, value: float) -> None:
    entropy_temperature = value if name == "entropy_temperature" else 1.0
    settings = {} if name == "entropy_temperature" else {name: value}
    sampler = SamplerConfig(**SAMPLER.model_dump() | {"order": "plackett_luce"} | settings)
    request = request_of(policy, sampler, entropy_temperature=entropy_temperature)
    answers = ServedModel(policy, "model").generate(request)
    # The client's checks include that all numbers are finite.
    record_of(policy, answers, sampler, has_choice=True)


def test_connections_wait_for_a_server_that_starts_and_nobody_else_takes_its_port() -> None:
    with listening_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with raises(ConfigError, f"127.0.0.1:{port}", "--port", snapshot=False):
            listening_socket("127.0.0.1", port)


def test_a_server_that_ends_before_it_answers_does_not_keep_its_caller_waiting(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    with pytest.raises(RuntimeError, match="ended before it answered"), running(make_app(ServedModel(policy, "model"))):
        pass


def test_a_request_may_begin_after_the_last_step_with_a_whole_completion(policy: Policy) -> None:
    tokens = local(policy).tokens
    request = request_of(policy, completion=tokens.tolist(), first_step=[4] * 4)
    answers = ServedModel(policy, "model").generate(request)
    assert [answer["output_ids"] for answer in answers] == tokens.tolist()


@pytest.mark.parametrize(("schedule", "first"), [("fixed", 2), ("threshold=0.5", 4)])
def test_a_request_cannot_begin_after_the_block_of_a_masked_position(policy: Policy, schedule: str, first: int) -> None:
    sampler = SamplerConfig(**SAMPLER.model_dump() | {"schedule": schedule})
    state = local(policy, sampler).tokens
    state[3, 0] = policy.denoiser.mask_id

    def request(step: int) -> dict[str, Any]:
        return request_of(policy, sampler, completion=state.tolist(), first_step=[0, 0, 0, step])

    with pytest.raises(FormatError, match=rf"first_step = \[0, 0, 0, {first}\]"):
        ServedModel(policy, "model").generate(request(first))
    # One step earlier, the position gets a token.
    answers = ServedModel(policy, "model").generate(request(first - 1))
    assert answers[3]["output_ids"][0] != policy.denoiser.mask_id


def test_the_size_of_an_answer_counts_the_selected_steps(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 rows of 8 positions, each with its token and, at all 4 steps, a one-step completion.
    monkeypatch.setattr(served_module, "MAX_NUMBERS", 4 * 8 * 5)
    request = request_of(policy, needs=needs_fields(Needs(greedy=True, selection=("all", 1))))
    ServedModel(policy, "model").generate(request)
    monkeypatch.setattr(served_module, "MAX_NUMBERS", 4 * 8 * 5 - 1)
    with pytest.raises(FormatError, match="160 tokens, more than 159. Send fewer prompts at a time"):
        ServedModel(policy, "model").generate(request)


def test_jobs_that_were_given_up_leave_the_queue() -> None:
    worker, release = Worker(1), threading.Event()
    begun = threading.Event()

    def first(_: Job) -> str:
        begun.set()
        release.wait(10)
        return "first"

    running_job = worker.submit(first)
    assert begun.wait(10)
    waiting = worker.submit(lambda _: "second")
    with pytest.raises(queue.Full):
        worker.submit(lambda _: "third")
    waiting.abandon()
    third = worker.submit(lambda _: "third")
    release.set()
    assert (running_job.result.result(10), third.result.result(10)) == ("first", "third")
    assert waiting.result.cancelled()


def test_connections_beyond_the_limit_are_refused_before_their_bodies_are_read(policy: Policy) -> None:
    limits = ServerLimits(max_waiting=1)
    with serving(policy, limits=limits) as url, ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        for _ in range(1 + limits.max_waiting + SPARE_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)).sendall(b"POST ")
        one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        # The body does not follow.
        one.sendall(
            b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
        assert one.recv(100).startswith(b"HTTP/1.1 503")
        stack.close()
        deadline = time.monotonic() + 10
        while (status := post(url, SHORT).status_code) == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status == 200


def test_too_many_and_too_slow_requests_are_refused(policy: Policy) -> None:
    model, release, begun = ServedModel(policy, "model"), threading.Event(), threading.Event()
    generate = model.generate

    def slow(content: Any, working: Any) -> Any:
        begun.set()
        while not release.wait(0.02):
            working()
        return generate(content, working)

    model.generate = slow  # type: ignore[method-assign]
    with running(make_app(model, ServerLimits(max_waiting=1, timeout=1.0))) as url:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(post(url, SHORT).status_code)) for _ in range(4)]
        threads[0].start()
        # Until it runs, it is the one that waits.
        assert begun.wait(10)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        # One runs until its time is up, one waits as long, and the others find the queue full.
        assert sorted(answers) == [503, 503, 504, 504]
        release.set()
        assert post(url, SHORT).status_code == 200


def test_a_request_whose_client_has_gone_is_given_up(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    model, ended = ServedModel(policy, "model"), threading.Event()

    def endless(content: Any, working: Any) -> Any:
        try:
            while True:
                time.sleep(0.02)
                working()
        finally:
            ended.set()

    model.generate = endless  # type: ignore[method-assign]
    with running(make_app(model)) as url:
        with httpx2.Client(trust_env=False, timeout=0.3) as client, pytest.raises(httpx2.ReadTimeout):
            client.post(f"{url}/generate", json={"input_ids": [4]})
        assert ended.wait(10)
    gc.collect()
    assert "never retrieved" not in caplog.text


def perturbed(policy: Policy, folder: Path) -> Policy:
    """Write a model with other weights to a folder, and return it."""
    with torch.no_grad():
        for parameter in policy.denoiser.parameters():
            parameter.mul_(1.1)
    save_model(policy.denoiser, policy.tokenizer, folder)
    return policy


def test_the_weights_of_a_folder_replace_those_of_the_server(tiny_model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    new = perturbed(load_model(tiny_model), weights / "1")
    served = load_model(tiny_model)
    request = request_of(served)
    with serving(served, weights) as url:
        before = post(url, request).json()
        done = post(
            url, {"model_path": str(weights / "1"), "weight_version": "run:1"}, "/update_weights_from_disk"
        ).json()
        assert done["success"] is True
        after = post(url, request | {"unmask": request["unmask"] | {"weight_version": "run:1"}}).json()
        assert after[0]["meta_info"]["weight_version"] == "run:1"
        own = record_of(new, after)
        for name in ("tokens", "logprob", "entropy"):
            assert torch.equal(own[name], getattr(local(new), name)), name
        assert not torch.equal(record_of(new, before)["logprob"], own["logprob"])


@pytest.mark.slow
def test_the_weights_of_an_adapter_are_merged_as_training_merges_them(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    trained, served = load_model(tiny_model), load_model(tiny_model)
    adapters, lora = Adapters(trained.denoiser, LoraConfig(r=4, alpha=8.0)), tmp_path / "weights"
    with serving(served, lora) as url:
        for version in (1, 2):
            with torch.no_grad():
                for index, (_, parameter) in enumerate(adapters.parameters()):
                    parameter.normal_(generator=torch.Generator().manual_seed(version * 100 + index))
            adapters.save(lora / str(version) / "adapter")
            content = {"model_path": str(lora / str(version)), "weight_version": str(version)}
            assert len(post(url, content, "/update_weights_from_disk").json()["unmask"]["base_fingerprint"]) == 16
            whole = load_model(tiny_model)
            whole.denoiser.backbone.load_state_dict(adapters.merged())
            own = record_of(whole, post(url, request_of(whole)).json())
            assert torch.equal(own["logprob"], local(whole).logprob)
        # Adapters of other settings do not fit.
        other = Adapters(load_model(tiny_model).denoiser, LoraConfig(r=2, alpha=8.0))
        other.save(lora / "3" / "adapter")
        refused = post(url, {"model_path": str(lora / "3")}, "/update_weights_from_disk")
        assert refused.status_code == 422
        check(refused.json()["message"].replace(str(tmp_path), "<tmp>"), "other settings")
        assert get(url, "/get_model_info").json()["weight_version"] == "2"


def test_weights_that_cannot_be_used_leave_those_of_the_server(tiny_model: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    policy = load_model(tiny_model)
    shutil.copytree(tiny_model, weights / "damaged")
    (weights / "damaged" / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    shutil.copytree(tiny_model, weights / "short")
    tensors = load_file(weights / "short" / "model.safetensors")
    save_file(
        {name: value for name, value in list(tensors.items())[1:]},
        weights / "short" / "model.safetensors",
        {"format": "pt"},
    )
    (weights / "empty").mkdir()
    (weights / "way-out").symlink_to(tiny_model)
    with serving(policy, weights) as url:
        for name, status in (("damaged", 422), ("short", 422), ("empty", 422), ("none", 422), ("../weights/../x", 403)):
            answer = post(
                url, {"model_path": str(weights / name), "weight_version": "new"}, "/update_weights_from_disk"
            )
            assert answer.status_code == status, (name, answer.text)
            assert answer.json()["success"] is False
        for path in (tiny_model, weights / "way-out", "/etc"):
            assert post(url, {"model_path": str(path)}, "/update_weights_from_disk").status_code == 403
        half = ({"model_path": "/etc/\udcff"}, {"model_path": "a", "weight_version": "\ud800"})
        for content in (
            {},
            {"model_path": 5},
            {"model_path": "a\0b"},
            {"model_path": "a", "weight_version": 3},
            *half,
        ):
            assert post(url, content, "/update_weights_from_disk").status_code == 400
        long = post(url, {"model_path": str(weights / ("x" * 300))}, "/update_weights_from_disk")
        assert long.status_code == 422
        assert "too long" in long.json()["message"]
        assert get(url, "/get_model_info").json()["weight_version"] == "default"
        own = record_of(policy, post(url, request_of(policy)).json())
        assert torch.equal(own["logprob"], local(load_model(tiny_model)).logprob)
    with serving(policy) as url:
        refused = post(url, {"model_path": str(weights / "short")}, "/update_weights_from_disk")
        assert refused.status_code == 403
        check(refused.json()["message"], "--weights-dir")


def without_a_tensor(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})


def truncated(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def pickled(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    torch.save(tensors, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()


def of_another_form(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": 5}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_a_tensor, ("lacks the tensor",)),
        (truncated, ("cannot be read",)),
        (pickled, ("no file", "Pickled")),
        (of_another_form, ("target_modules",)),
    ],
)
def test_a_first_adapter_that_cannot_be_used_leaves_the_weights_of_the_server(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    pytest.importorskip("peft")
    trained, served = load_model(tiny_model), load_model(tiny_model)
    adapters = Adapters(trained.denoiser, LoraConfig(r=4, alpha=8.0))
    with torch.no_grad():
        for index, (_, parameter) in enumerate(adapters.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(index))
    adapters.save(tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    damage(tmp_path / "bad")
    model, names = ServedModel(served, "model", tmp_path), set(served.denoiser.state_dict())
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            model.update(str(tmp_path / "bad"), "1")
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert set(served.denoiser.state_dict()) == names
    assert not hasattr(served.denoiser.backbone, "peft_config")
    before = record_of(served, model.generate(request_of(served)))
    assert torch.equal(before["logprob"], local(load_model(tiny_model)).logprob)
    # An adapter that can be used still follows.
    model.update(str(tmp_path / "good"), "2")
    whole = load_model(tiny_model)
    whole.denoiser.backbone.load_state_dict(adapters.merged())
    after = record_of(whole, model.generate(request_of(whole)))
    assert torch.equal(after["logprob"], local(whole).logprob)
    assert not torch.equal(after["logprob"], before["logprob"])


def test_a_rollout_in_progress_keeps_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    perturbed(load_model(tiny_model), tmp_path / "weights" / "1")
    policy = load_model(tiny_model)
    model, begun = ServedModel(policy, "model", tmp_path / "weights"), threading.Event()
    expected = local(policy).logprob.clone()
    generate = model.generate

    def slow(content: Any, working: Any) -> Any:
        def step() -> None:
            begun.set()
            time.sleep(0.1)

        return generate(content, step)

    model.generate = slow  # type: ignore[method-assign]
    with running(make_app(model)) as url:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.extend(post(url, request_of(policy)).json()))
        thread.start()
        assert begun.wait(10)
        content = {"model_path": str(tmp_path / "weights" / "1"), "weight_version": "1"}
        assert post(url, content, "/update_weights_from_disk").status_code == 200
        thread.join()
    assert answers[0]["meta_info"]["weight_version"] == "default"
    assert torch.equal(record_of(policy, answers)["logprob"], expected)


def test_limits_of_the_server_bound_those_of_a_request(policy: Policy) -> None:
    model = ServedModel(policy, "model", limits=BatchLimits(2))
    rows: list[int] = []
    policy.denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model.generate(request_of(policy, batch_size=3))
    assert max(rows) == 2
    rows.clear()
    model.generate(request_of(policy, batch_size=1))
    assert max(rows) == 1


def test_nothing_listens_beyond_the_loopback_unless_asked() -> None:
    bound = listening_socket("127.0.0.1", 0)
    bound.listen()
    port = bound.getsockname()[1]
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    # Linux routes all of 127.0.0.0/8 to this machine: an open socket would accept this address, too.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    assert is_loopback(bound)
    everywhere = listening_socket("0.0.0.0", 0)
    everywhere.listen()
    socket.create_connection(("127.0.0.2", everywhere.getsockname()[1]), timeout=5).close()
    assert not is_loopback(everywhere)
    with raises(ConfigError, "cannot listen", "--port", snapshot=False):
        listening_socket("127.0.0.1", port)
    bound.close()
    everywhere.close()


def test_a_model_that_computes_no_numbers_is_reported(policy: Policy, url: str) -> None:
    with torch.no_grad():
        next(policy.denoiser.parameters()).fill_(float("nan"))
    answer = post(url, SHORT)
    assert answer.status_code == 422
    check(answer.json()["message"], "not finite", "weights")


def test_nothing_on_the_wire_is_unpickled() -> None:
    files = sorted((ROOT / "src" / "unmask" / "sampling" / "remote").glob("*.py"))
    assert len(files) > 8
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & {
                name.partition(".")[0] for name in names
            }, file
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"), file


def test_the_numbers_of_a_record_survive_json() -> None:
    values = torch.tensor([0.1, 1 / 3, 1e-38, -123.456], dtype=torch.float32)
    assert torch.equal(torch.tensor(json.loads(json.dumps(values.tolist())), dtype=torch.float32), values)
