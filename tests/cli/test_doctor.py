"""The doctor finds nothing here, and finds what is broken."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from unmask.cli import app, doctor
from unmask.functional.noise import counter_uniform


def statuses() -> dict[str, str]:
    return {check.name: check.status for check in doctor.checks()}


def test_everything_that_must_work_does_and_the_exit_code_says_so() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    found = {check["name"]: check for check in json.loads(shown.stdout)}
    assert shown.exit_code == 0
    assert {
        "versions",
        "system",
        "disk",
        "ratio",
        "round trip",
        "bidirectional",
        "generator",
        "gradient",
    } <= found.keys()
    assert f"torch {torch.__version__}" in found["versions"]["detail"]
    assert "hub" not in found, "the hub is asked on request only"


def test_the_known_draw_is_the_hash_s_own() -> None:
    modulus, mixed = 2**64, 0
    for key in (7, 0, 3):
        mixed = (mixed + key + 0x9E3779B97F4A7C15) % modulus
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % modulus
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % modulus
        mixed ^= mixed >> 31
    assert (mixed >> 11) * 2.0**-53 == doctor.KNOWN_DRAW


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("generator", ("unmask.functional.noise.counter_uniform", lambda *keys: counter_uniform(*keys) / 2)),
        ("ratio", ("unmask.sampling.logprobs.token_logprobs", lambda logits, *_, **__: logits.log_softmax(-1) - 1.0)),
        ("round trip", ("unmask.models.save_model", lambda *_: None)),
    ],
)
def test_what_is_broken_fails_by_name_and_with_exit_code_1(monkeypatch, name, breaks) -> None:
    monkeypatch.setattr(*breaks)
    assert statuses()[name] == "failed"
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert f"{name} failed: paste all of this into a bug report." in shown.output
