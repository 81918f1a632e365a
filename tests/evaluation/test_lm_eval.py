"""A denoiser behind lm-evaluation-harness: the ELBO against enumeration, generation against ours,
and tasks defined here."""

from __future__ import annotations

import functools
import json
import math
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from tests.helpers.runs import unmask
from unmask.core.errors import ConfigError, DataError
from unmask.evaluation.lm_eval import DenoiserLM
from unmask.models import Denoiser, char_tokenizer, convert, save_model
from unmask.tasks import Sudoku


@pytest.fixture
def folder(lively: Denoiser, tmp_path: Path) -> Path:
    tokenizer = char_tokenizer(Sudoku().alphabet)
    # It writes digits only: coordinate 0 of the last state is 1, and these tokens have a large
    # negative weight there.
    head = lively.backbone.get_output_embeddings().weight
    with torch.no_grad():
        lively.backbone.transformer.ln_f.weight[0] = 0.0
        lively.backbone.transformer.ln_f.bias[0] = 1.0
        head[:, 0] = 0.0
        head[[tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("=")], 0] = -200.0
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    save_model(lively, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def lm(folder: Path) -> DenoiserLM:
    return DenoiserLM(str(folder), length=4, num_draws=64)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=given) for given in arguments]


def enumerated_elbo(lm: DenoiserLM, context: str, continuation: str) -> float:
    """By definition: over all counts l and all sets of l positions, (n/l) times the
    log-probabilities there."""
    given, target = lm._encode(context), lm._encode(continuation)
    n, total = len(target), 0.0
    for count in range(1, n + 1):
        values = []
        for positions in combinations(range(n), count):
            ids = torch.tensor([given + [lm.denoiser.mask_id if i in positions else t for i, t in enumerate(target)]])
            at = torch.tensor([[len(given) + i for i in positions]])
            logits = lm.denoiser(ids, None, at)[0].detach().double()
            logits[:, lm.denoiser.mask_id] = -math.inf
            logprob = logits.log_softmax(-1)
            values.append(sum(float(logprob[k, target[i]]) for k, i in enumerate(positions)))
        total += n / count * sum(values) / len(values) / n
    return total


@pytest.mark.slow
@pytest.mark.parametrize("continuation", ["3", "12", "4021"])
def test_the_loglikelihood_is_the_elbo(folder: Path, continuation: str) -> None:
    exact = enumerated_elbo(DenoiserLM(str(folder)), "12=", continuation)
    estimates = [
        DenoiserLM(str(folder), num_draws=32, seed=seed).elbo(*DenoiserLM(str(folder))._tokens("12=", continuation))
        for seed in range(12 if len(continuation) > 1 else 1)
    ]
    mean, spread = sum(estimates) / len(estimates), torch.tensor(estimates).std() if len(estimates) > 1 else 0.0
    assert mean == pytest.approx(exact, abs=max(1e-4, 3.5 * float(spread) / len(estimates) ** 0.5))
    if len(continuation) == 4:
        # The negative control: another text with the same digits has another bound, far outside
        # that tolerance.
        assert abs(enumerated_elbo(DenoiserLM(str(folder)), "12=", "1204") - exact) > 10 * float(spread)


def test_a_likelihood_of_a_block_causal_model_is_refused_and_a_completion_is_not(tmp_path: Path) -> None:
    convert(mini_checkpoint("sdar", tmp_path / "original"), tmp_path / "native")
    lm = DenoiserLM(str(tmp_path / "native"), length=8, block_length=4)
    with raises(ConfigError, "block-causal", "generate"):
        lm.elbo([3, 4], [5, 6])
    (text,) = lm.generate_until(requests(("1+1=", {"until": []})))
    assert text


def test_other_requests_do_not_change_a_result(lm: DenoiserLM) -> None:
    asked = [("12=", "34"), ("1", "2"), ("1234123412=", "341"), ("12=", "43"), ("", "12")]
    alone = [lm.loglikelihood(requests(pair))[0] for pair in asked]
    together = lm.loglikelihood(requests(*asked[::-1]))[::-1]
    assert [greedy for _, greedy in alone] == [greedy for _, greedy in together]
    assert [value for value, _ in alone] == pytest.approx([value for value, _ in together], abs=1e-5)
    assert len({round(value, 3) for value, _ in alone}) == 5
    assert all(value < 0 for value, _ in alone)


def test_another_seed_and_more_masks_change_an_estimate_a_little(folder: Path) -> None:
    values = [
        DenoiserLM(str(folder), seed=seed, num_draws=draws).loglikelihood(requests(("12=", "3412")))[0][0]
        for seed, draws in ((0, 64), (0, 64), (1, 64), (0, 65))
    ]
    assert values[0] == values[1] != values[2]
    assert values[0] != values[3]
    assert values == pytest.approx([values[0]] * 4, rel=0.3)


def test_greedy_says_whether_greedy_denoising_gives_the_continuation(lm: DenoiserLM) -> None:
    one_a_step = DenoiserLM(lm.pretrained, length=3, steps=3)
    contexts = ["12=", "3412="]
    texts = one_a_step.generate_until(requests(*((context, {}) for context in contexts)))
    assert all(len(text) == 3 for text in texts)
    right = requests(*zip(contexts, texts, strict=True))
    assert [greedy for _, greedy in lm.loglikelihood(right)] == [True, True]
    wrong = requests(*((c, ("1" if t[0] != "1" else "2") + t[1:]) for c, t in zip(contexts, texts, strict=True)))
    assert [greedy for _, greedy in lm.loglikelihood(wrong)] == [False, False]


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(lm: DenoiserLM) -> None:
    assert lm._tokens("12", "34") == (lm._encode("12"), lm._encode("34"))
    with raises(DataError, "12 34", "tokenizer"):
        lm.loglikelihood(requests(("12 ", "34")))


def test_a_long_context_is_cut_from_the_left_and_a_long_continuation_refused(lm: DenoiserLM) -> None:
    room = lm.denoiser.backbone.config.max_position_embeddings
    long = "1234" * room
    (cut,) = lm.loglikelihood(requests((long, "12")))
    (fits,) = lm.loglikelihood(requests((long[-(room - 2) :], "12")))
    assert cut[0] == pytest.approx(fits[0], rel=0.5)
    with raises(DataError, "model"):
        lm.loglikelihood(requests(("1", long)))
    whole, short = lm.loglikelihood_rolling(requests((long,), ("1234",)))
    assert whole < 10 * short < 0
    assert short == pytest.approx(lm.elbo([], lm._encode("1234")))


def test_a_completion_is_cut_at_the_first_stop_text(lm: DenoiserLM) -> None:
    (text,) = lm.generate_until(requests(("12=", {})))
    assert len(text) == 4
    stops = {"until": ["x", text[2:], text[1]]}
    assert lm.generate_until(requests(("12=", stops))) == [text[: text.find(text[1])]]
    assert lm.generate_until(requests(("12=", {"until": []}))) == [text]
    assert len(lm.generate_until(requests(("12=", {"max_gen_toks": 8})))[0]) == 8
    assert lm.generate_until(requests(("12=", {"until": text[3]}), ("12=", {})))[1] == text


def test_sampled_repeats_differ_and_greedy_ones_do_not(lm: DenoiserLM) -> None:
    settings = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8}
    sampled = lm.generate_until(requests(*[("12=", settings)] * 4))
    assert len(set(sampled)) > 1
    assert lm.generate_until(requests(*[("12=", settings)] * 4)) == sampled
    assert len(set(lm.generate_until(requests(*[("12=", {})] * 4)))) == 1


def test_unknown_arguments_are_refused(folder: Path) -> None:
    with raises(ConfigError, "model_args", "lenght"):
        DenoiserLM(str(folder), lenght=4)
    with raises(ConfigError, "num_draws = 0"):
        DenoiserLM(str(folder), num_draws=0)
    assert DenoiserLM(str(folder), batch_size="auto", max_batch_size=None).batch_size == 32


# --- tasks of the harness ---

GENERATION = """
task: digits
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/digits.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}="
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["="], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/digits.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}="
doc_to_choice: ["12", "34"]
target_delimiter: ""
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(lm: DenoiserLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two tasks over six rows, three of which hold what the model writes."""
    import datasets
    from lm_eval.tasks import TaskManager

    # The command would read the thousands of tasks that come with the harness.
    alone = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", alone)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "tasks"
    place.mkdir()
    questions = ["12", "21", "34", "43", "1234", "4321"]
    answers = lm.generate_until(requests(*((f"{q}=", {"until": ["="], "max_gen_toks": 4}) for q in questions)))
    assert all(answers)
    rows = [{"q": q, "a": a if i % 2 else "no"} for i, (q, a) in enumerate(zip(questions, answers, strict=True))]
    (place / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "digits.yaml").write_text(GENERATION.format(folder=place))
    (place / "choice.yaml").write_text(CHOICE.format(folder=place))
    return place


@pytest.mark.slow
def test_local_tasks_give_the_numbers_that_their_rows_have(lm: DenoiserLM, tasks: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks))
    found = simple_evaluate(lm, tasks=["digits", "choice"], task_manager=manager, bootstrap_iters=0)
    assert found["results"]["digits"]["exact_match,none"] == 0.5
    questions = ["12", "21", "34", "43", "1234", "4321"]
    better = [lm.loglikelihood(requests((f"{q}=", "12"), (f"{q}=", "34"))) for q in questions]
    wanted = sum(first[0] > second[0] for first, second in better) / 6
    assert found["results"]["choice"]["acc,none"] == pytest.approx(wanted)


@pytest.mark.slow
def test_the_command_takes_the_device_that_is_there(
    lm: DenoiserLM, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--tasks", "digits", "--include_path", tasks, "--output_path", tmp_path / "out"]
    assert unmask("harness", "--model_args", f"pretrained={lm.pretrained},length=4", *options) == 0
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["device"] == "cpu"
    given = [*options, "--device", "cuda:1"]
    assert unmask("harness", "--model_args", f"pretrained={lm.pretrained},length=4", *given) == 2
    assert "ConfigError: this machine has no device cuda:1. Use --device cpu." in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_a_task_and_writes_what_it_found(
    lm: DenoiserLM, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tasks", "digits", "--include_path", tasks, "--output_path", tmp_path / "out", "--device", "cpu"]
    assert unmask("harness", "--model_args", f"pretrained={lm.pretrained},length=4", *options) == 0
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["results"]["digits"]["exact_match,none"] == 0.5
    assert "exact_match" in capsys.readouterr().out


def test_the_chat_template_is_the_tokenizers(lm: DenoiserLM) -> None:
    assert lm.apply_chat_template([{"role": "user", "content": "12"}]) == "12="
    assert lm.chat_template() == "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    assert "/" not in lm.tokenizer_name
