"""Monty: what it lacks is told apart from what is wrong."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from unmask.errors import ConfigError
from unmask.sandbox import Job, Sandbox, SandboxConfig, make_sandbox
from unmask.sandbox.monty import MontySandbox, is_plain


def status(sandbox: Sandbox, code: str, test: str = "f(1)") -> str:
    return sandbox.run_one(Job(code, (test,), ("f",))).status


@pytest.mark.parametrize(
    "code",
    [
        "import string\ndef f(x):\n    return 1",
        "import numpy\ndef f(x):\n    return 1",
        "def f(x):\n    import heapq\n    return 1",
        "def f(x):\n    yield x",
        "class A(Exception):\n    pass\ndef f(x):\n    return 1",
        "import os\ndef f(x):\n    return os.getpid()",
        "def f(x):\n    return memoryview(b'a')[0]",
        "def f(x):\n    return open('/tmp/x')",
        "class A:\n    pass\ndef f(x):\n    return A()",
        "class A:\n    pass\ndef f(x):\n    return [{1: A()}]",
        "def f(x):\n    return range(x)",
        "def f(x):\n    return f",
        "def f(x):\n    return {1: 2}.keys()",
        "def f(x):\n    raise KeyError(1)",
    ],
)
def test_what_monty_lacks_is_unsupported(monty: Sandbox, code: str) -> None:
    assert status(monty, code) == "unsupported"


@pytest.mark.parametrize(
    "code",
    [
        "def f(x:\n    return 1",
        "def f(x):\n    return [].push(1)",
        "def f(x):\n    return no_such_name",
        "def f(x):\n    return g(x, key=1)\ndef g(x):\n    return x",
        "def f(x):\n    raise NotImplementedError",
        "def f(x):\n    return x + 'a'",
        "def f(x):\n    return f(x)",
    ],
)
def test_what_is_wrong_is_an_error(monty: Sandbox, code: str) -> None:
    assert status(monty, code) == "error"


def test_a_function_that_works_in_place_is_unsupported(monty: Sandbox) -> None:
    assert status(monty, "def f(x):\n    x.sort()", "a = [2, 1]\nf(a)\nassert a == [1, 2]") == "unsupported"
    assert status(monty, "def f(x):\n    return sorted(x)", "assert f([2, 1]) == [1, 2]") == "passed"


def test_a_test_that_calls_the_program_from_within_a_builtin_is_unsupported(monty: Sandbox) -> None:
    job = Job("def f(x):\n    return 2 * x\n", ("assert list(map(f, [1, 2])) == [2, 4]",), ("f",))
    assert monty.run_one(job).status == "unsupported"


def test_calls_that_are_quick_each_are_not_too_slow_together() -> None:
    sandbox = make_sandbox(SandboxConfig(timeout=2.0, total_timeout=1.0))
    start = time.monotonic()
    slow = "def f(x):\n    i = 0\n    while i < 200_000:\n        i += 1\n    return x\n"
    result = sandbox.run_one(Job(slow, ("for i in range(10**4):\n    assert f(i) == i", "assert f(2) == 2"), ("f",)))
    assert [verdict.status for verdict in result.verdicts] == ["timed_out", "timed_out"]
    assert time.monotonic() - start < 4.0


def test_another_version_of_monty_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydantic_monty

    def older(max_processes: int) -> None:
        """Has no time limit for a request."""

    monkeypatch.setattr(pydantic_monty, "Monty", older)
    with pytest.raises(ConfigError, match=r"pydantic-monty 1\.\S+ has another interface"):
        MontySandbox(SandboxConfig()).run_one(Job("f = 1", ("f",), ("f",)))


def test_a_test_that_passes_a_function_is_unsupported(monty: Sandbox) -> None:
    assert status(monty, "def f(x):\n    return 1", "f(lambda y: y)") == "unsupported"
    assert status(monty, "def f(x):\n    return 1", "f('<function>')") == "passed"


def test_more_callers_than_workers_take_turns() -> None:
    sandbox = make_sandbox(SandboxConfig(workers=1, timeout=5.0))
    with ThreadPoolExecutor(8) as callers:
        jobs = [Job("def f(x):\n    return x", (f"assert f({i}) == {i}",), ("f",)) for i in range(32)]
        assert all(result.passed for result in callers.map(sandbox.run_one, jobs))


def test_plain_data_is_told_from_everything_else() -> None:
    assert is_plain([1, {"a": (2.0, None, {3}, frozenset())}, b"", True, 1j, "<b>x</b>", "range (1)"])
    for foreign in (object(), [object()], {"a": [object()]}, {object(): 1}, (1, {2: print})):
        assert not is_plain(foreign)


def test_a_small_value_with_a_great_many_paths_is_looked_at_once() -> None:
    value: list[object] = []
    for _ in range(200):
        value = [value, value]
    assert is_plain(value)


def test_auto_runs_in_cpython_what_monty_does_not_support() -> None:
    try:
        make_sandbox(SandboxConfig(backend="bubblewrap"))
    except ConfigError as error:
        pytest.skip(str(error))
    auto = make_sandbox(SandboxConfig(backend="auto"))
    assert status(auto, "import string\ndef f(x):\n    return string.digits[x]", "assert f(1) == '1'") == "passed"
    assert status(auto, "import string\ndef f(x):\n    return string.digits[x]", "assert f(1) == '2'") == "failed"
    assert status(auto, "import numpy\ndef f(x):\n    return 1") == "unsupported"
    assert status(auto, "def f(x):\n    return x", "assert f(1) == 1") == "passed"


def test_auto_without_bubblewrap_warns_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: SandboxConfig) -> None:
        raise ConfigError("bubblewrap is not here")

    monkeypatch.setattr("unmask.sandbox.auto.Bubblewrap", missing)
    with pytest.warns(UserWarning, match="bubblewrap is not here"):
        auto = make_sandbox(SandboxConfig(backend="auto", timeout=1.5))
    assert status(auto, "def f(x):\n    return x", "assert f(1) == 1") == "passed"
    assert status(auto, "import string\ndef f(x):\n    return 1") == "unsupported"
