"""The fast hostile programs.

`python -m benchmark.hostile` runs all of them and measures their time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmark.hostile import Outside, attacks_on, attempt, outside
from benchmark.hostile_programs import ATTACKS, ESCAPES, FORGERIES, HOST, PROTOCOLS, REPLIES, SECRET, TEXTS, Attack
from unmask.rewards.sandbox import Sandbox, SandboxJob

pytestmark = pytest.mark.slow

SLOW = {
    "small-stack thread bomb",
    "ignore signals",
    "stop itself",
    "exception with an endless text",
    "a million lines",
    "hard fraction",
    "a finalizer that hangs",
    "an exception with two thousand bases",
}
QUICK = [
    attack
    for attack in (*ESCAPES, *FORGERIES, *TEXTS, *REPLIES, *PROTOCOLS, *HOST)
    # One of the attacks through numpy is included here.
    if attack.name not in SLOW and ("numpy" not in attack.setup or "no items" in attack.name)
]
BY_NAME = {attack.name: attack for attack in ATTACKS}


@pytest.fixture(scope="module")
def there() -> Iterator[Outside]:
    with outside() as found:
        yield found


def test_there_are_enough_of_them_with_names_of_their_own() -> None:
    assert len(BY_NAME) == len(ATTACKS) >= 40
    assert len(QUICK) >= 40


@pytest.mark.parametrize("attack", QUICK, ids=lambda attack: attack.name)
def test_it_gets_nothing_and_does_nothing(hasty: Sandbox, there: Outside, attack: Attack) -> None:
    if attack not in attacks_on(hasty.config.backend):
        pytest.skip("harmful: not run without a sandbox")
    trial = attempt(hasty, attack, there)
    assert trial.held, trial
    assert len(trial.statuses) == len(attack.tests)


@pytest.mark.parametrize(
    "name",
    [
        "fork bomb",
        "thread bomb",
        "memory at once",
        "huge list",
        "recursion",
        "full disk",
        "endless empty files",
        "endless folders in folders",
        "a value that is too large: one text, a thousand times",
    ],
)
def test_what_uses_everything_up_gets_nothing(hasty: Sandbox, there: Outside, name: str) -> None:
    if BY_NAME[name] not in attacks_on(hasty.config.backend):
        pytest.skip("harmful: not run without a sandbox")
    assert attempt(hasty, BY_NAME[name], there).held


def test_a_sandbox_goes_on_after_each(sandbox: Sandbox) -> None:
    right = SandboxJob("def f(x):\n    return {3: 12345, 4: 54321}[x]", BY_NAME["fork bomb"].tests, ("f",))
    assert sandbox.run_one(right).passed


def test_a_secret_that_is_got_hold_of_would_be_paid(sandbox: Sandbox) -> None:
    """The escape tests can pass: a program that knows the secret passes them."""
    stolen = BY_NAME["read the environment"].tests
    assert sandbox.run_one(SandboxJob(f"def f(x):\n    return [{SECRET!r}]", stolen, ("f",))).passed


def test_a_mark_that_is_left_outside_is_seen() -> None:
    with outside() as place:
        assert not place.has_changed()
        (place.folder / "mark").write_text("x")
        assert place.has_changed()
    with outside() as place:
        place.bystander.kill()
        place.bystander.wait()
        assert place.has_changed()
    with outside() as place:
        place.datagrams.sendto(b"x", ("127.0.0.1", place.port))
        assert place.has_changed()
