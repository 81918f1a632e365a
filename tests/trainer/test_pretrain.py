"""Pretraining: the loss equals an ELBO computed by hand and falls, and later runs can start from
the model."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from tests.helpers.runs import metrics, pretrain_recipe, steps_saved, weights
from unmask.core.errors import ConfigError, DataError, ModelError, RunError
from unmask.functional.elbo import mask_at_times, stratified_times
from unmask.functional.noise import named_generator
from unmask.models import Denoiser, char_tokenizer, convert, load_model
from unmask.sampling.encoding import decode
from unmask.trainer.corpus import Corpus
from unmask.trainer.distributed.stopping import RunStoppedError
from unmask.trainer.pretrain import add_gradient, pretrain

TOKENIZER = char_tokenizer("01234=")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(pretrain_recipe(tmp_path_factory.mktemp("whole") / "run"))


# --- the corpus ---


@pytest.mark.slow
def test_the_loss_is_the_negative_elbo_per_token(lively: Denoiser, tmp_path: Path) -> None:
    corpus = Corpus(pretrain_recipe(tmp_path), lively, TOKENIZER)
    cpu = torch.device("cpu")
    computed = corpus.loss(lively, corpus.draw(named_generator(0, "pretrain", 3), slice(None), cpu))
    halves = [
        corpus.loss(lively, corpus.draw(named_generator(0, "pretrain", 3), half, cpu))
        for half in (slice(0, 2), slice(2, 4))
    ]
    assert float(computed.detach()) == pytest.approx(float(sum(halves).detach()) / 2, rel=1e-6), (
        "two ranks compute what one rank computes"
    )

    # The same random draws; then everything by hand from the transformers model itself.
    generator = named_generator(0, "pretrain", 3)
    rows = torch.randint(20, (4,), generator=generator)
    times = stratified_times(4, 0.03, generator)
    masked = mask_at_times(times, torch.ones(4, 16, dtype=torch.bool), generator)
    total = 0.0
    for row, time, hidden in zip(rows, times, masked, strict=True):
        prompt, target = corpus.prompt_ids[row], corpus.completions[row]
        ids = torch.cat([prompt, target.masked_fill(hidden, lively.mask_id)]).unsqueeze(0)
        logits = lively.backbone(input_ids=ids).logits[0, len(prompt) :]
        logits[:, lively.mask_id] = -math.inf
        logprob = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        total += (logprob[hidden].sum() / time).item()
    assert float(computed.detach()) == pytest.approx(-total / 4 / 16, rel=1e-5)


def test_the_loss_of_a_block_causal_model_is_that_of_one_masked_block_after_clean_ones(tmp_path: Path) -> None:
    convert(mini_checkpoint("sdar", tmp_path / "original"), tmp_path / "native")
    denoiser, tokenizer = load_model(tmp_path / "native")
    corpus = Corpus(pretrain_recipe(tmp_path), denoiser, tokenizer)
    computed = corpus.loss(denoiser, corpus.draw(named_generator(0, "pretrain", 3), slice(None), torch.device("cpu")))
    generator = named_generator(0, "pretrain", 3)
    rows = torch.randint(20, (4,), generator=generator)
    times = stratified_times(4, 0.03, generator)
    masked = mask_at_times(times, torch.ones(4, 16, dtype=torch.bool), generator)
    blocks = torch.randint(4, (4,), generator=generator)
    assert len(set(blocks.tolist())) > 1
    total = 0.0
    for row, time, hidden, block in zip(rows, times, masked, blocks, strict=True):
        prompt, target, here = corpus.prompt_ids[row], corpus.completions[row], slice(4 * block, 4 * block + 4)
        noised = target.clone()
        noised[here] = target[here].masked_fill(hidden[here], denoiser.mask_id)
        # The sequence ends with the block: the model must not have seen what follows it.
        ids = torch.cat([prompt, noised[: 4 * block + 4]]).unsqueeze(0)
        at = torch.arange(len(prompt) + 4 * block, len(prompt) + 4 * block + 4).unsqueeze(0)
        logits = denoiser(ids, None, at)[0]
        logits[:, denoiser.mask_id] = -math.inf
        logprob = logits.log_softmax(-1).gather(-1, target[here].unsqueeze(-1)).squeeze(-1)
        total += 4 * (logprob[hidden[here]].sum() / time).item()
    assert float(computed.detach()) == pytest.approx(-total / 4 / 16, rel=1e-5)


def test_a_batch_is_as_wide_as_its_longest_prompt(lively: Denoiser, tmp_path: Path) -> None:
    recipe, cpu = pretrain_recipe(tmp_path), torch.device("cpu")
    whole = recipe.task.rows("train", 20, recipe.seed)
    # Row 0 alone has the whole prompt, of 17 tokens.
    rows = [{**row, "prompt": row["prompt"][: 17 if i == 0 else 3 + i % 5]} for i, row in enumerate(whole)]
    corpus = Corpus(recipe, lively, TOKENIZER, rows)
    assert corpus.prompt_ids.shape == (20, 17)
    batch = corpus.draw(named_generator(0, "pretrain", 3), slice(None), cpu)
    drawn = torch.randint(20, (4,), generator=named_generator(0, "pretrain", 3)).tolist()
    assert 0 not in drawn
    assert batch.prompt_ids.shape == (4, max(3 + i % 5 for i in drawn))
    # A rank has the width of all ranks, so that all make equally many parts.
    share = corpus.draw(named_generator(0, "pretrain", 3), slice(0, 1), cpu)
    assert share.prompt_ids.shape == (1, batch.prompt_ids.shape[1])
    [part] = share.split(None)
    assert part.prompt_ids.shape == (1, 3 + drawn[0] % 5)

    uncut = replace(batch, prompt_ids=corpus.prompt_ids[drawn], prompt_mask=corpus.prompt_mask[drawn])
    expected = corpus.loss(lively, uncut)
    assert float(corpus.loss(lively, batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    parts = batch.split(2 * 24)
    assert len(parts) > 1
    total = sum(float(corpus.loss(lively, part).detach()) * len(part) for part in parts) / len(batch)
    assert total == pytest.approx(float(expected.detach()), rel=1e-6)
    assert sum(part.prompt_ids.numel() for part in parts) < batch.prompt_ids.numel()


@pytest.mark.parametrize("tokens", [1, 66, 10_000])
def test_the_parts_of_a_batch_add_up_to_its_gradient(lively: Denoiser, tmp_path: Path, tokens: int) -> None:
    corpus = Corpus(pretrain_recipe(tmp_path, "batch_size=6"), lively, TOKENIZER)
    batch = corpus.draw(named_generator(0, "pretrain", 3), slice(None), torch.device("cpu"))
    computed = []
    for limit, at_once in ((None, 10**9), (tokens, 5)):
        corpus.positions_at_once = at_once
        lively.zero_grad()
        loss = add_gradient(Accelerator(), lively, corpus, batch, limit)
        computed.append((loss, torch.cat([p.grad.flatten() for p in lively.parameters() if p.grad is not None])))
    (whole, gradient), (parts, again) = computed
    assert parts == pytest.approx(whole, rel=1e-6)
    assert gradient.norm() > 1e-2
    assert (gradient - again).norm() / gradient.norm() < 1e-5
    # Rows of 17 tokens of prompt and 16 of completion.
    assert [len(part) for part in batch.split(tokens)] == {1: [1] * 6, 66: [2, 2, 2], 10_000: [6]}[tokens]


def test_completions_that_blocks_do_not_divide_are_refused(tmp_path: Path) -> None:
    convert(mini_checkpoint("sdar", tmp_path / "original"), tmp_path / "native")
    denoiser, tokenizer = load_model(tmp_path / "native")
    with raises(ConfigError, "max_completion_length = 18", "multiple of 4"):
        Corpus(pretrain_recipe(tmp_path, "max_completion_length=18"), denoiser, tokenizer)


def test_a_demonstration_answers_its_prompt(lively: Denoiser, tmp_path: Path) -> None:
    recipe = pretrain_recipe(tmp_path, "noise_share=0")
    corpus = Corpus(recipe, lively, TOKENIZER)
    rows = recipe.task.rows("train", 20, recipe.seed)
    assert decode(TOKENIZER, corpus.completions) == [row["answer"] for row in rows]
    assert TOKENIZER.batch_decode(corpus.prompt_ids) == [row["prompt"] for row in rows]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 1.0, 1.0), (0.5, 0.35, 0.7), (1.0, 0.0, 0.1)])
@pytest.mark.slow
def test_the_share_of_noisy_demonstrations_is_that_of_the_recipe(
    lively: Denoiser, tmp_path: Path, share: float, low: float, high: float
) -> None:
    recipe = pretrain_recipe(tmp_path, f"noise_share={share}", "num_rows=200")
    texts = decode(TOKENIZER, Corpus(recipe, lively, TOKENIZER).completions)
    rows = recipe.task.rows("train", 200, recipe.seed)
    right = sum(recipe.task.solved(text, row) for text, row in zip(texts, rows, strict=True)) / 200
    assert low <= right <= high


def test_a_short_demonstration_is_filled_up_with_eos(lively: Denoiser, tmp_path: Path) -> None:
    corpus = Corpus(pretrain_recipe(tmp_path, "max_completion_length=20", "noise_share=0"), lively, TOKENIZER)
    assert (corpus.completions[:, 16:] == lively.eos_id).all()
    assert (corpus.completions[:, :16] != lively.eos_id).all()


def test_a_demonstration_that_does_not_fit_is_shown(lively: Denoiser, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="^a demonstration of 16 tokens does not fit into max_completion_length = 12: '"
    ):
        Corpus(pretrain_recipe(tmp_path, "max_completion_length=12"), lively, TOKENIZER)


# --- runs ---


@pytest.mark.slow
def test_a_run_is_reproducible_and_depends_on_its_seed(whole: Path, tmp_path: Path) -> None:
    again = pretrain(pretrain_recipe(tmp_path / "again"))
    other = pretrain(pretrain_recipe(tmp_path / "other", "seed=1"))
    assert (metrics(again), weights(again)) == (metrics(whole), weights(whole))
    assert metrics(other) != metrics(whole)
    assert weights(other) != weights(whole)


@pytest.mark.slow
def test_the_loss_starts_at_that_of_a_uniform_guess_and_falls(tmp_path: Path) -> None:
    folder = pretrain(
        pretrain_recipe(tmp_path / "run", "max_steps=60", "batch_size=16", "noise_share=0", "save_steps=60")
    )
    losses = [line["loss"] for line in metrics(folder)]
    assert [line["step"] for line in metrics(folder)] == list(range(1, 61))
    # At first the model guesses any of 8 tokens; MASK is none of them. Later it knows that a cell
    # holds one of 4 digits.
    assert losses[0] == pytest.approx(math.log(8), abs=0.3)
    assert sum(losses[-10:]) / 10 == pytest.approx(math.log(4), abs=0.15)


def test_the_model_is_saved_with_its_tokenizer(whole: Path) -> None:
    denoiser, tokenizer = load_model(whole / "final")
    assert denoiser.vocab_size == len(tokenizer) == 9
    assert tokenizer("01234=").input_ids == TOKENIZER("01234=").input_ids


def test_training_can_start_from_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    folder = pretrain(pretrain_recipe(tmp_path / "run", f"model={whole / 'final'}", "max_steps=1"))
    start, _ = load_model(whole / "final")
    after, _ = load_model(folder / "final")
    moved = [(a - b).abs().max().item() for a, b in zip(after.parameters(), start.parameters(), strict=True)]
    # The run does one of two warm-up steps from the final model of the other run.
    assert 0 < max(moved) <= 0.5 * 0.03 * 1.01
    assert steps_saved(folder) == []


def test_a_run_records_the_release_that_its_weights_began_from(whole: Path, tmp_path: Path) -> None:
    origin = {"source": "owner/release", "revision": "0123abc"}
    shutil.copytree(whole / "final", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"converted_from": origin}))
    folder = pretrain(pretrain_recipe(tmp_path / "run", f"model={tmp_path / 'model'}", "max_steps=1"))
    assert json.loads((folder / "run.json").read_text())["origin"] == origin
    assert json.loads((folder / "final" / "config.json").read_text())["converted_from"] == origin
    assert "| first weights | owner/release at commit `0123abc` |" in (folder / "final" / "README.md").read_text()
    assert "origin" not in json.loads((whole / "run.json").read_text())


def test_a_finished_run_stays_as_it_is(whole: Path) -> None:
    model = whole / "final" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert pretrain(pretrain_recipe(whole), resume=True) == whole
    assert model.stat().st_mtime_ns == before
    with pytest.raises(RunError, match="was started with other settings.*\n  seed: 0 -> 1\n"):
        pretrain(pretrain_recipe(whole, "seed=1"), resume=True)


@pytest.mark.slow
def test_a_signal_finishes_the_step_saves_and_says_how_to_continue(whole: Path, tmp_path: Path) -> None:
    def stop(step: int, _: dict[str, Any]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = pretrain_recipe(tmp_path / "run")
    with pytest.raises(
        RunStoppedError,
        match=r"^stopped after step 3 of 6; everything is in .* again with --resume\.$",
    ):
        pretrain(recipe, observe=stop)
    assert steps_saved(tmp_path / "run") == [2, 3]
    folder = pretrain(recipe, resume=True)
    assert (metrics(folder), weights(folder)) == (metrics(whole), weights(whole))


def test_a_loss_that_is_not_finite_names_the_step_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Corpus.loss
    calls: list[int] = []

    def fail_at_four(self: Corpus, *arguments: Any) -> Any:
        calls.append(1)
        return loss(self, *arguments) * (math.inf if len(calls) == 4 else 1.0)

    monkeypatch.setattr(Corpus, "loss", fail_at_four)
    with raises(RunError, "step 4: the loss is inf", "checkpoint of step 2", "learning_rate"):
        pretrain(pretrain_recipe(tmp_path / "run"))
    assert steps_saved(tmp_path / "run") == [2]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "final").exists()


def test_after_a_start_that_fails_the_folder_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is not a model"):
        pretrain(pretrain_recipe(tmp_path / "run", f"model={tmp_path / 'empty'}"))
    pretrain(pretrain_recipe(tmp_path / "run", "max_steps=1"))


def test_a_tracker_gets_the_loss_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = pretrain(pretrain_recipe(tmp_path / "run", "report_to=[tensorboard]", "max_steps=2"))
    events = EventAccumulator(str(folder / "unmask"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in metrics(folder)]
    )
