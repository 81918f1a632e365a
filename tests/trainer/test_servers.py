"""A run whose rollouts come from servers is the run in one process, bit for bit, and survives the death of a server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from tests.helpers.runs import metrics, steps_saved, train_recipe, weights
from tests.helpers.servers import running, serving
from unmask.core.errors import ConfigError, EngineError
from unmask.functional.noise import named_generator
from unmask.models import convert, load_model
from unmask.recipes.load import load_recipe
from unmask.sampling.encoding import row_seeds
from unmask.sampling.remote.app import listening_socket, make_app
from unmask.sampling.remote.served import ServedModel
from unmask.trainer import Trainer
from unmask.trainer.learn import Learner

METHOD = ("method.num_selected=2", "method.beta=0.04")


def on(urls: list[str], folder: Path, **settings: Any) -> list[str]:
    """Overrides for rollouts on servers whose weights are in a folder."""
    folder.mkdir(exist_ok=True)
    own = {
        "type": "http",
        "urls": f"[{','.join(urls)}]",
        "weights_dir": folder,
        "max_wait": 20,
        "timeout": 60,
    } | settings
    return [f"rollout_engine.{name}={value}" for name, value in own.items()]


def trained(model: Path, folder: Path, *overrides: str, **options: Any) -> Path:
    return Trainer(train_recipe(model, folder, *METHOD, *overrides), **options).train()


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    return trained(tiny_model, tmp_path_factory.mktemp("local") / "run")


@pytest.mark.slow
def test_a_run_on_a_server_equals_the_run_in_one_process(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    with serving(load_model(tiny_model), tmp_path / "w") as url:
        remote = trained(tiny_model, tmp_path / "run", *on([url], tmp_path / "w"))
    assert metrics(remote) == metrics(whole)
    assert weights(remote) == weights(whole)
    assert list((tmp_path / "w").iterdir()) == [], "the weights of all versions are removed"


@pytest.mark.slow
def test_a_server_with_one_changed_weight_makes_another_run(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    # A negative control of the test above.
    served = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
    replace = served.weights.replace

    def changed(folder: Path) -> str:
        found = replace(folder)
        with torch.no_grad():
            next(served.weights.policy.denoiser.parameters())[3, 0] += 3.0
        return found

    served.weights.replace = changed  # type: ignore[method-assign]
    with running(make_app(served)) as url:
        remote = trained(tiny_model, tmp_path / "run", *on([url], tmp_path / "w"))
    assert metrics(remote) != metrics(whole)
    assert weights(remote) != weights(whole)


@pytest.mark.slow
def test_a_run_that_began_in_one_process_goes_on_with_a_server(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(step: int, line: dict[str, Any]) -> None:
        if step == 5 and "loss" in line:
            raise StopError

    with serving(load_model(tiny_model), tmp_path / "w") as url:
        with pytest.raises(StopError):
            trained(tiny_model, tmp_path / "run", observe=stop)
        assert steps_saved(tmp_path / "run") == [2, 4]
        remote = trained(tiny_model, tmp_path / "run", *on([url], tmp_path / "w"), resume=True)
    assert metrics(remote) == metrics(whole)
    assert weights(remote) == weights(whole)


@pytest.mark.slow
def test_servers_share_the_completions_of_a_step(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    counts = []
    with ExitStack() as stack:
        urls = []
        for _ in range(3):
            served = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
            generate = served.generate

            def counted(content: Any, working: Any, generate: Any = generate) -> Any:
                counts.append(len(content["input_ids"]))
                return generate(content, working)

            served.generate = counted  # type: ignore[method-assign]
            urls.append(stack.enter_context(running(make_app(served))))
        remote = trained(
            tiny_model, tmp_path / "run", *on(urls, tmp_path / "w"), "max_steps=1", "evaluation.eval_steps=0"
        )
    # Four completions of a step, and four of the evaluation at each of two temperatures.
    assert sorted(counts) == [1, 1, 1, 1, 1, 1, 2, 2, 2]
    ours, theirs = metrics(whole)[1], metrics(remote)[0]
    assert ours["step"] == theirs["step"] == 1
    # Batches of other sizes may round differently.
    assert {key: value for key, value in ours.items() if key == "reward"} == {"reward": theirs["reward"]}
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.slow
def test_adapters_are_pushed_alone_and_give_the_same_run(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ("lora={r: 4, alpha: 8}", "max_steps=3")
    local = trained(tiny_model, tmp_path / "local", *lora)
    pushed: list[list[str]] = []
    served = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
    replace = served.weights.replace

    def noted(folder: Path) -> str:
        pushed.append(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")))
        return replace(folder)

    served.weights.replace = noted  # type: ignore[method-assign]
    with running(make_app(served)) as url:
        remote = trained(tiny_model, tmp_path / "remote", *lora, *on([url], tmp_path / "w"))
    assert metrics(remote) == metrics(local)
    assert weights(remote) == weights(local)
    assert pushed == [["adapter/adapter_model.safetensors"]] * 4, (
        "an evaluation and the next step have the same weights"
    )


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{r: 2, alpha: 4, experts: true}"])
def test_a_mixture_on_a_server_equals_the_run_in_one_process(lora: str, tmp_path: Path) -> None:
    convert(mini_checkpoint("sdar-moe", tmp_path / "original"), tmp_path / "native")
    settings = (
        f"lora={lora}",
        "max_steps=2",
        "optim.learning_rate=1e-2",
        "evaluation.eval_steps=0",
        "sampler.block_length=4",
    )
    local = trained(tmp_path / "native", tmp_path / "local", *settings)
    with serving(load_model(tmp_path / "native"), tmp_path / "w") as url:
        remote = trained(tmp_path / "native", tmp_path / "remote", *settings, *on([url], tmp_path / "w"))
    assert metrics(remote) == metrics(local)
    assert weights(remote) == weights(local)


@pytest.mark.slow
def test_a_server_of_sglang_gives_the_same_rollouts_by_replay(tiny_model: Path, tmp_path: Path) -> None:
    settings = ("max_steps=2", "evaluation.eval_steps=0", "sampler.num_steps=8")
    local = trained(tiny_model, tmp_path / "local", *settings)
    # A server of SGLang draws its own seeds; these are those of the run in one process.
    evaluation = row_seeds(4, named_generator(0, "evaluate")).tolist()
    steps = [row_seeds(4, named_generator(0, "rollout", step)).tolist() for step in range(2)]
    seeds = iter([*steps, evaluation, evaluation])
    asked: list[dict[str, Any]] = []
    model = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
    generate = model.generate

    def plain(content: Any, working: Any) -> Any:
        asked.append(content)
        assert "unmask" not in content
        answers = generate(content | {"unmask": {"sampler": {"num_steps": 8}, "seeds": next(seeds)}}, working)
        for answer in answers:
            # SGLang counts blocks from the start of the prompt; with one block that is no difference.
            del answer["meta_info"]["blocks_from"]
        return answers

    model.generate = plain  # type: ignore[method-assign]
    with running(make_app(model)) as url:
        remote = trained(tiny_model, tmp_path / "remote", *settings, *on([url], tmp_path / "w", server="sglang"))
    assert len(asked) == 4
    for ours, theirs in zip(metrics(local), metrics(remote), strict=True):
        assert ours["step"] == theirs["step"]
        for key in ours.keys() & {
            "reward",
            "loss",
            "diffusion/path_entropy",
            "diffusion/mismatch_max",
            "learning_rate",
        }:
            assert theirs[key] == pytest.approx(ours[key], abs=1e-4), key


@pytest.mark.slow
def test_rollouts_one_step_ahead_are_corrected_and_repeatable(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    lines = []
    with serving(load_model(tiny_model), tmp_path / "w") as url:
        for name in ("a", "b"):
            settings = on([url], tmp_path / "w", max_staleness=1)
            lines.append(metrics(trained(tiny_model, tmp_path / name, *settings, "optim.learning_rate=0.05")))
    assert lines[0] == lines[1]
    steps = [line for line in lines[0] if "loss" in line]
    assert [line["rollout/staleness"] for line in steps] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    # The first two rollouts have the weights of the first step; later ones differ from those of their step.
    assert steps[0]["behaviour/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert max(abs(line["behaviour/ratio_max"] - 1) for line in steps[1:]) > 0.01
    assert all(line["compute/token_passes"] > 0 for line in steps)
    assert steps[0]["reward"] == metrics(whole)[1]["reward"]
    assert "rollout/staleness" not in metrics(whole)[1]


@pytest.mark.slow
def test_the_next_rollout_is_sampled_while_this_process_updates(tiny_model: Path, tmp_path: Path) -> None:
    served = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
    generate, update = served.generate, Learner.update
    begun, in_update = threading.Event(), []

    def noted(content: Any, working: Any) -> Any:
        begun.set()
        return generate(content, working)

    def waiting(learner: Any, rollout: Any, step: int, *rest: Any) -> Any:
        # The rollout of the next step must begin before this update ends, whatever the machine does.
        in_update.append(step == 2 or begun.wait(30))
        begun.clear()
        return update(learner, rollout, step, *rest)

    served.generate = noted  # type: ignore[method-assign]
    with running(make_app(served)) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", waiting)
        settings = on([url], tmp_path / "w", max_staleness=1)
        trained(tiny_model, tmp_path / "run", *settings, "max_steps=3", "evaluation.eval_steps=0")
    assert in_update == [True, True, True]


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    with caplog.at_level(logging.WARNING, "unmask"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.slow
def test_a_run_waits_for_a_server_and_goes_on(
    tiny_model: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bound = listening_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    bound.close()
    url, failed = f"http://127.0.0.1:{port}", []

    def train() -> None:
        try:
            trained(tiny_model, tmp_path / "run", *on([url], tmp_path / "w", max_wait=60))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    with logged(caplog) as said:
        thread.start()
        for _ in range(600):
            if "does not answer" in said() or failed:
                break
            time.sleep(0.1)
        served = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
        with running(make_app(served), port):
            thread.join()
        assert failed == []
        assert f"the server {url} does not answer" in said()
        assert "answers again" in said()
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.slow
def test_a_run_without_a_server_ends_with_advice(tiny_model: Path, tmp_path: Path) -> None:
    with raises(EngineError, "http://127.0.0.1:1", "max_wait", "unmask serve", snapshot=False):
        trained(tiny_model, tmp_path / "run", *on(["http://127.0.0.1:1"], tmp_path / "w", max_wait=0.3))


@pytest.mark.slow
def test_a_server_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    policy = load_model(tiny_model)
    policy.denoiser.eos_id = 5
    with serving(policy, tmp_path / "w") as url, raises(EngineError, "eos_id = 5", snapshot=False):
        trained(tiny_model, tmp_path / "run", *on([url], tmp_path / "w"))
    with serving(load_model(tiny_model)) as url, raises(EngineError, "--weights-dir", snapshot=False):
        trained(tiny_model, tmp_path / "other", *on([url], tmp_path / "w"))


@pytest.mark.slow
def test_two_runs_on_one_server_are_noticed(tiny_model: Path, tmp_path: Path) -> None:
    served = ServedModel(load_model(tiny_model), "model", tmp_path / "w")
    update = served.update

    def replaced(path: str, version: str) -> str:
        found = update(path, version)
        served.version = "of another run"
        return found

    served.update = replaced  # type: ignore[method-assign]
    with running(make_app(served)) as url, raises(EngineError, "other weights replace", snapshot=False):
        trained(tiny_model, tmp_path / "run", *on([url], tmp_path / "w"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout_engine.type=http"], ("urls",)),
        (["rollout_engine.type=http", "rollout_engine.urls=[http://a:1]"], ("weights_dir", "unmask serve")),
        (["rollout_engine.urls=[http://a:1]"], ("urls", "rollout_engine.type")),
        (["rollout_engine.max_staleness=1"], ("max_staleness", "http")),
        (["rollout_engine.max_staleness=2"], ("max_staleness = 2",)),
        (["rollout_engine.urls=[ftp://a]"], ("ftp://a", "http://HOST:PORT")),
        (["rollout_engine.urls=[http://a:1,http://a:1]"], ("twice",)),
    ],
)
def test_settings_of_an_engine_that_cannot_be_are_refused(overrides: list[str], words: tuple[str, ...]) -> None:
    with raises(ConfigError, *words):
        load_recipe("sudoku-tiny", overrides)


HTTP = ["rollout_engine.type=http", "rollout_engine.urls=[http://a:1]", "rollout_engine.weights_dir=w"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler.order=mine.py:order"], ("mine.py:order", "server")),
        (["lora={quantize: 4bit}"], ("4bit", "rollout_engine.type")),
        (["rollout_engine.server=sglang", "rollout_engine.max_staleness=1"], ("sglang", "max_staleness")),
        (["rollout_engine.server=sglang", "sampler.guidance=1.0"], ("sglang", "guidance")),
        (
            ["rollout_engine.server=sglang", "method={type: egspo_ca, finish: rollout}"],
            ("method.finish = rollout", "sglang"),
        ),
        (["rollout_engine.server=sglang", "method.value_steps=2"], ("method.value_steps", "sglang")),
        (["rollout_engine.max_staleness=1", "method.type=espo"], ("espo", "behaviour.level")),
        (["rollout_engine.max_staleness=1", "refill_rounds=2"], ("refill_rounds = 2", "max_staleness")),
    ],
)
def test_settings_that_servers_cannot_sample_with_are_refused(
    overrides: list[str], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def order(proposal):\n    return proposal.logits.max(-1).values\n")
    with raises(ConfigError, *words):
        load_recipe("sudoku-tiny", [*HTTP, *overrides])


def test_a_missing_folder_of_weights_is_named(tiny_model: Path, tmp_path: Path) -> None:
    overrides = [*HTTP[:2], f"rollout_engine.weights_dir={tmp_path / 'none'}"]
    with raises(ConfigError, "weights_dir", "not a folder"):
        trained(tiny_model, tmp_path / "run", *overrides)
