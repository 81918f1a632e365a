"""unmask doctor passes on this machine, and names what is broken."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from unmask.cli import app, doctor
from unmask.functional.noise import counter_uniform


def statuses() -> dict[str, str]:
    return {check.name: check.status for check in doctor.checks()}


@pytest.mark.slow
def test_every_required_part_works_and_the_exit_code_is_0() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    results = {check["name"]: check for check in json.loads(shown.stdout)}
    assert shown.exit_code == 0
    assert {"versions", "system", "disk", "generator", "replay", "round trip", "server"} <= results.keys()
    assert f"torch {torch.__version__}" in results["versions"]["detail"]
    assert "hub" not in results, "only --hub uses the network"


def test_the_known_draw_follows_from_the_definition_of_the_hash() -> None:
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
        ("replay", ("unmask.sampling.logprobs.token_logprobs", lambda logits, *_, **__: logits.log_softmax(-1) - 1.0)),
        ("round trip", ("unmask.models.save_model", lambda *_: None)),
        ("server", ("unmask.sampling.remote.served.ServedModel._limits", lambda *_: 1 / 0)),
    ],
)
@pytest.mark.slow
def test_a_broken_part_is_named_and_the_exit_code_is_1(monkeypatch, name, breaks) -> None:
    monkeypatch.setattr(*breaks)
    assert statuses()[name] == "failed"
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert f"{name} failed: paste all of this into a bug report." in shown.output
