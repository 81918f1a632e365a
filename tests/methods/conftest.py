"""Fixture of the enumerable toy model, for tests of theory."""

from __future__ import annotations

import pytest

from tests.helpers.toy import Toy


@pytest.fixture
def toy(table_denoiser):
    """`toy(...)`: V = 3 tokens, L = 3 positions, T = 3 steps, EOS not among the tokens; unless told
    otherwise."""

    def make(num_tokens=3, length=3, **options):
        eos_id = num_tokens - 1 if options.get("eos") else 99
        return Toy(table_denoiser(num_tokens, length, eos_id, seed=0), **options)

    return make
