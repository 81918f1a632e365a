"""Tests of the head in chunks: equal numbers and gradients, with the memory of one chunk."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from torch import Tensor

from tests.helpers.adapters import build
from tests.helpers.denoisers import add_lively_head
from tests.helpers.native_configs import CONFIGS
from unmask.core.config import SamplerConfig
from unmask.core.denoising import Readout
from unmask.core.records import Needs, Rollout, ViewLogprobs, Views
from unmask.methods.egspo import EGSPO
from unmask.models import Denoiser, TinyConfig, char_tokenizer, tiny_denoiser
from unmask.sampling import LogprobSettings, denoise, view_logprobs
from unmask.tasks import Sudoku
from unmask.trainer.model_limits import LOGITS_AT_ONCE, positions_at_once
from unmask.trainer.peak import peak_bytes


def rollout(denoiser: Denoiser, **options: object) -> Rollout:
    prompt = torch.randint(3, 9, (6, 5), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(5) >= torch.arange(6).unsqueeze(-1) % 3
    settings = {"max_completion_length": 8, "num_steps": 4, "temperature": 0.9} | options
    path = denoise(
        denoiser, prompt.masked_fill(~mask, 0), mask, SamplerConfig(**settings), torch.arange(6), needs=Needs()
    )
    return Rollout(path, 2, torch.zeros(6))


def views_of(rolled: Rollout, readings: int = 0) -> Views:
    views = EGSPO(step_choice="all", beta=0.0).plan(rolled, torch.Generator())
    if not readings:
        return views
    tokens = torch.randint(3, 9, (len(views), readings, 8), generator=torch.Generator().manual_seed(4))
    return replace(views, tokens=tokens)


def scored(denoiser: Denoiser, rolled: Rollout, views: Views, at_once: int | None, **options: bool) -> ViewLogprobs:
    path = rolled.trajectory
    return view_logprobs(
        denoiser, path, views, LogprobSettings.of(path, "sampling"), positions_at_once=at_once, **options
    )


def gradient(denoiser: Denoiser, scores: ViewLogprobs) -> Tensor:
    denoiser.zero_grad()
    loss = (scores.logprob * torch.linspace(-1, 1, scores.logprob.numel()).view(scores.logprob.shape)).sum()
    if scores.choice is not None:
        loss = loss + (scores.choice**2).sum()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("options", "readings"),
    [({}, 0), ({"top_k": 4, "top_p": 0.8}, 0), ({}, 3), ({"order": "plackett_luce"}, 0), ({"order": "learned"}, 0)],
    ids=["plain", "top_k and top_p", "three readings", "choice", "learned choice"],
)
@pytest.mark.slow
def test_chunks_give_the_numbers_and_gradients_of_the_whole(lively: Denoiser, options: dict, readings: int) -> None:
    add_lively_head(lively)
    rolled = rollout(lively, **options)
    views, choice = views_of(rolled, readings), "order" in options
    whole = scored(lively, rolled, views, None, choice=choice)
    wanted = gradient(lively, whole)
    assert wanted.norm() > 0.1
    for at_once in (1, 5, 10_000):
        parts = scored(lively, rolled, views, at_once, choice=choice)
        torch.testing.assert_close(parts.logprob, whole.logprob, rtol=0, atol=1e-5)
        assert (parts.choice is None) == (whole.choice is None) == (not choice)
        if choice:
            torch.testing.assert_close(parts.choice, whole.choice, rtol=0, atol=1e-5)
        assert (gradient(lively, parts) - wanted).norm() / wanted.norm() < 1e-6


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_class_of_model_reads_the_log_probabilities_of_its_logits(name: str) -> None:
    denoiser = build(name).eval()
    ids = torch.randint(3, 9, (3, 6), generator=torch.Generator().manual_seed(5))
    ids[:, 2:] = denoiser.mask_id
    positions = torch.tensor([[2, 4], [3, 5], [5, 2]])
    is_read = torch.tensor([[True, True], [True, False], [False, True]])
    tokens = torch.tensor([[3, 4], [5, 6], [7, 8], [3, 8]])
    logits = denoiser(ids, None, positions)[is_read].index_fill(1, torch.tensor([denoiser.mask_id]), -torch.inf)
    wanted = (logits / 0.8).log_softmax(-1).gather(-1, tokens)
    upstream = torch.linspace(-1, 1, 8).view(4, 2)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    expected = torch.autograd.grad(wanted, trained, upstream, allow_unused=True)

    def never(logits: Tensor, inputs: Tensor) -> Tensor:
        raise AssertionError("a linear head computes log-probabilities without this function")

    readout = Readout(never, is_read, tokens, 3, temperature=0.8, forbidden=denoiser.mask_id)
    found = denoiser(ids, None, positions, readout=readout)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    for one, other in zip(torch.autograd.grad(found, trained, upstream, allow_unused=True), expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5


def test_a_head_with_an_adapter_is_read_from_its_logits(lively: Denoiser) -> None:
    rolled = rollout(lively)
    views, calls = views_of(rolled), []
    plain = scored(lively, rolled, views, 5)
    lora = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    peft.inject_adapter_in_model(lora, lively.backbone)
    adapted = lively.backbone.get_output_embeddings()
    adapted.register_forward_hook(lambda *_: calls.append(1))
    whole, parts = (scored(lively, rolled, views, at_once) for at_once in (None, 5))
    torch.testing.assert_close(parts.logprob, whole.logprob, rtol=0, atol=1e-5)
    assert (parts.logprob - plain.logprob).abs().max() > 0.01
    assert len(calls) > 2


def test_whole_distributions_and_guided_logits_are_as_before(lively: Denoiser) -> None:
    for options, asked in (({}, {"distribution": True}), ({"guidance": 0.5}, {})):
        rolled = rollout(lively, **options)
        views = views_of(rolled)
        whole, parts = (scored(lively, rolled, views, at_once, **asked) for at_once in (None, 1))
        assert torch.equal(whole.logprob, parts.logprob)
        assert (parts.distribution is not None) == bool(asked)


@pytest.mark.parametrize("with_graph", [True, False])
@pytest.mark.slow
def test_memory_is_that_of_one_chunk_for_any_number_of_positions(with_graph: bool) -> None:
    # A wide vocabulary over a narrow trunk, so that logits take most of the memory.
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 8000)))
    denoiser = tiny_denoiser(TinyConfig(num_layers=1, width=8, num_heads=2), char_tokenizer(alphabet), seed=0).eval()
    rolled = rollout(denoiser)
    views = views_of(rolled)

    def work(at_once: int | None, copies: int) -> int:
        many = views.take(torch.arange(len(views)).repeat(copies))

        def run() -> None:
            with torch.set_grad_enabled(with_graph):
                scores = scored(denoiser, rolled, many, at_once)
            if with_graph:
                scores.logprob.sum().backward()

        run()
        return peak_bytes(run, denoiser)

    logits = len(views) * 2 * denoiser.vocab_size * 4
    growth = work(None, 4) - work(None, 1)
    assert growth > 3 * 2 * logits  # at least twice the logits of each copy
    assert work(16, 4) - work(16, 1) < growth / 20


def test_only_a_denoiser_of_the_package_evaluates_its_head_in_chunks(lively: Denoiser, table_denoiser: type) -> None:
    assert positions_at_once(lively) == LOGITS_AT_ONCE["cpu"] // lively.vocab_size
    assert positions_at_once(table_denoiser(3, 3, 99, seed=0)) is None
    assert char_tokenizer(Sudoku().alphabet).vocab_size == lively.vocab_size
