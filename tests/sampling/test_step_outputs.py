"""Logits are read in parts: the numbers are those of reading them at once, whatever the parts."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from unmask.core.config import SamplerConfig
from unmask.core.records import Branches
from unmask.sampling import ORDERS
from unmask.sampling.step_outputs import StepReader, reading_parts

ROWS, COLUMNS, VOCABULARY = 5, 7, 41


def readings(monkeypatch, room, **options):
    monkeypatch.setattr("unmask.sampling.step_outputs.PART_ON_CPU", room)
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(ROWS, COLUMNS, VOCABULARY, generator=generator)
    logits[..., 1] = -torch.inf
    positions = torch.stack([torch.randperm(16, generator=generator)[:COLUMNS] for _ in range(ROWS)])
    sampler = SamplerConfig(max_completion_length=16, **options)
    reader = StepReader(sampler, 1.0, keeps_greedy=True, branches=Branches(3, "all"))
    seed = torch.arange(ROWS)
    read = reader.read(logits, seed, 4, positions)
    values = {f.name: getattr(read, f.name) for f in fields(read)}
    values["beyond"], values["beyond_draws"] = reader.read_beyond(logits, seed, 4, positions)
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{}, {"top_k": 5, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("room", [1, 3 * VOCABULARY, 2 * COLUMNS * VOCABULARY])
def test_reading_in_parts_gives_the_same_bits_as_reading_at_once(monkeypatch, order, options, room) -> None:
    at_once = readings(monkeypatch, 2**30, order=order, **options)
    in_parts = readings(monkeypatch, room, order=order, **options)
    assert at_once.keys() == in_parts.keys()
    for name, value in at_once.items():
        assert torch.equal(in_parts[name], value), name


@pytest.mark.parametrize(
    ("room", "sizes"), [(10**6, {(5, 7)}), (2 * 7 * 41, {(1, 7), (2, 7)}), (3 * 41, {(1, 2), (1, 3)}), (1, {(1, 1)})]
)
def test_parts_cover_every_logit_once_and_none_is_larger_than_the_room(monkeypatch, room, sizes) -> None:
    monkeypatch.setattr("unmask.sampling.step_outputs.PART_ON_CPU", room)
    count = torch.zeros(ROWS, COLUMNS)
    found = set()
    for part in (p for row in reading_parts(count.unsqueeze(-1).expand(-1, -1, VOCABULARY)) for p in row):
        found.add(tuple(count[part].shape))
        count[part] += 1
    assert (count == 1).all()
    assert found == sizes
