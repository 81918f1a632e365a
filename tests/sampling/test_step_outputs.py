"""Step outputs are computed in chunks, with the same numbers as for all logits at once."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from unmask.core.branches import Branches
from unmask.core.config import SamplerConfig
from unmask.sampling import ORDERS
from unmask.sampling.step_outputs import Proposer, logit_chunks

ROWS, COLUMNS, VOCABULARY = 5, 7, 41


def outputs_of(monkeypatch, chunk, **options):
    monkeypatch.setattr("unmask.sampling.step_outputs.CPU_CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(ROWS, COLUMNS, VOCABULARY, generator=generator)
    logits[..., 1] = -torch.inf
    positions = torch.stack([torch.randperm(16, generator=generator)[:COLUMNS] for _ in range(ROWS)])
    sampler = SamplerConfig(max_completion_length=16, **options)
    proposer = Proposer(sampler, 1.0, with_likeliest=True, branches=Branches(3, "all"))
    seed, step = torch.arange(ROWS), torch.full((ROWS, 1), 4)
    score = torch.randn(ROWS, COLUMNS, generator=generator) if sampler.order == "learned" else None
    outputs = proposer.propose(logits, seed, step, positions, score)
    values = {f.name: getattr(outputs, f.name) for f in fields(outputs)}
    values["entropy"] = proposer.entropy(logits.flatten(0, 1))
    values["later"], values["later_draws"] = proposer.complete(logits, seed, step, positions)
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{}, {"top_k": 5, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("chunk", [1, 3 * VOCABULARY, 2 * COLUMNS * VOCABULARY])
@pytest.mark.slow
def test_chunks_give_the_same_bits_as_all_logits_at_once(monkeypatch, order, options, chunk) -> None:
    at_once = outputs_of(monkeypatch, 2**30, order=order, **options)
    in_chunks = outputs_of(monkeypatch, chunk, order=order, **options)
    assert at_once.keys() == in_chunks.keys()
    for name, value in at_once.items():
        assert torch.equal(in_chunks[name], value), name


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(10**6, {(5, 7)}), (2 * 7 * 41, {(1, 7), (2, 7)}), (3 * 41, {(1, 2), (1, 3)}), (1, {(1, 1)})]
)
def test_chunks_cover_every_logit_once_and_none_is_too_large(monkeypatch, chunk, sizes) -> None:
    monkeypatch.setattr("unmask.sampling.step_outputs.CPU_CHUNK", chunk)
    count = torch.zeros(ROWS, COLUMNS)
    shapes = set()
    for part in (p for row in logit_chunks(count.unsqueeze(-1).expand(-1, -1, VOCABULARY)) for p in row):
        shapes.add(tuple(count[part].shape))
        count[part] += 1
    assert (count == 1).all()
    assert shapes == sizes
