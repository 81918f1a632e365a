"""Monty: missing features are distinguished from errors of the program."""

from __future__ import annotations

import re
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox import Sandbox, SandboxConfig, SandboxJob, make_sandbox
from unmask.rewards.sandbox.auto import Auto
from unmask.rewards.sandbox.monty import MontySandbox
from unmask.rewards.sandbox.monty_judge import MAX_BYTES, _workers, judge, unfit
from unmask.rewards.workers import WorkerOutcome, Workers


def status(sandbox: Sandbox, code: str, test: str = "f(1)") -> str:
    return sandbox.run_one(SandboxJob(code, (test,), ("f",))).status


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
@pytest.mark.slow
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
def test_a_wrong_program_is_an_error(monty: Sandbox, code: str) -> None:
    assert status(monty, code) == "error"


def test_a_function_that_works_in_place_is_unsupported(monty: Sandbox) -> None:
    assert status(monty, "def f(x):\n    x.sort()", "a = [2, 1]\nf(a)\nassert a == [1, 2]") == "unsupported"
    assert status(monty, "def f(x):\n    return sorted(x)", "assert f([2, 1]) == [1, 2]") == "passed"


def test_a_test_that_calls_the_program_from_within_a_builtin_is_unsupported(monty: Sandbox) -> None:
    job = SandboxJob("def f(x):\n    return 2 * x\n", ("assert list(map(f, [1, 2])) == [2, 4]",), ("f",))
    assert monty.run_one(job).status == "unsupported"


@pytest.mark.slow
def test_calls_that_are_quick_each_are_not_too_slow_together() -> None:
    sandbox = make_sandbox(SandboxConfig(timeout=2.0, total_timeout=1.0))
    start = time.monotonic()
    slow = "def f(x):\n    i = 0\n    while i < 200_000:\n        i += 1\n    return x\n"
    result = sandbox.run_one(
        SandboxJob(slow, ("for i in range(10**4):\n    assert f(i) == i", "assert f(2) == 2"), ("f",))
    )
    assert [verdict.status for verdict in result.verdicts] == ["timed_out", "timed_out"]
    assert time.monotonic() - start < 4.0


def test_another_version_of_monty_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydantic_monty

    def older(max_processes: int) -> None:
        """Accept no time limit for a request, unlike the supported versions."""

    _workers.cache_clear()
    monkeypatch.setattr(pydantic_monty, "Monty", older)
    complaint = judge("f = 1", ("f",), ("f",), "", (1.0, 1.0, 64, 1.0))
    assert isinstance(complaint, str)
    assert re.search(r"pydantic-monty 1\.\S+ has a different interface", complaint)


def test_monty_that_is_missing_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _workers.cache_clear()
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    assert 'pip install "unmask[code]"' in str(judge("", ("1",), (), "", (1.0, 1.0, 64, 1.0)))


def test_a_complaint_of_the_worker_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = MontySandbox(SandboxConfig())
    monkeypatch.setattr(Workers, "map", lambda *_: [WorkerOutcome("monty is missing")])
    with pytest.raises(ConfigError, match="monty is missing"):
        sandbox.run_one(SandboxJob("", ("1",), ()))


def test_a_test_that_passes_a_function_is_unsupported(monty: Sandbox) -> None:
    assert status(monty, "def f(x):\n    return 1", "f(lambda y: y)") == "unsupported"
    assert status(monty, "def f(x):\n    return 1", "f('<function>')") == "passed"


@pytest.mark.slow
def test_more_callers_than_workers_take_turns() -> None:
    sandbox = make_sandbox(SandboxConfig(workers=1, timeout=5.0))
    with ThreadPoolExecutor(8) as callers:
        jobs = [SandboxJob("def f(x):\n    return x", (f"assert f({i}) == {i}",), ("f",)) for i in range(32)]
        assert all(result.passed for result in callers.map(sandbox.run_one, jobs))


def test_plain_data_is_distinguished_from_other_values() -> None:
    assert not unfit([1, {"a": (2.0, None, {3}, frozenset())}, b"", True, 1j, "<b>x</b>", "range (1)"])
    for foreign in (object(), [object()], {"a": [object()]}, {object(): 1}, (1, {2: print})):
        assert "plain data" in unfit(foreign)


def test_a_small_value_with_a_great_many_paths_is_looked_at_once() -> None:
    value: list[object] = []
    for _ in range(200):
        value = [value, value]
    assert not unfit(value)


def test_a_text_counts_each_time_that_it_is_referred_to() -> None:
    text = "x" * 2**20
    assert not unfit([text] * (MAX_BYTES // 2**20))
    assert "bytes" in unfit([text] * (MAX_BYTES // 2**20 + 1))


@pytest.mark.parametrize(
    "value",
    ["['x' * 10**8] * 1000", "['x' * 10**7] * 60", "{'x' * 10**6: ['y' * 10**7] * 100}"],
)
@pytest.mark.slow
def test_a_value_that_is_too_large_loses_only_its_job(monty: Sandbox, value: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert status(monty, f"def f(x):\n    return {value}", "assert f(3) == 1") == "error"
    # In kilobytes (Linux): the value was never in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert status(monty, "def f(x):\n    return x", "assert f(3) == 3") == "passed"


@pytest.mark.slow
def test_a_value_that_takes_forever_to_build_holds_no_lock_here_and_loses_only_its_job() -> None:
    """Equal hashes make a set quadratic in C, where no signal handler or other thread can run."""
    hasty = make_sandbox(SandboxConfig(timeout=0.5, total_timeout=5.0, workers=2))
    slow = SandboxJob("def f(x):\n    return {i * (2**61 - 1) for i in range(120000)}", ("assert f(3) == 1",), ("f",))
    right = [SandboxJob("def f(x):\n    return x", (f"assert f({i}) == {i}",), ("f",)) for i in range(3)]
    ticks = threading.Event()
    heartbeat = threading.Thread(target=lambda: [ticks.wait(0.02) for _ in range(50)])
    heartbeat.start()
    first, *others = hasty.run([slow, *right])
    assert not heartbeat.is_alive()
    assert first.status in ("error", "timed_out")
    assert all(result.passed for result in others)
    assert hasty.run_one(right[0]).passed


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_only_its_job(monty: Sandbox) -> None:
    job = SandboxJob("def f(x):\n    return x", ("assert f(1) == 1",), ("f",))
    assert monty.run_one(job).passed
    assert isinstance(monty, MontySandbox)
    for worker in monty._pool()._all:
        if worker.process is not None:
            worker.process.kill()
            worker.process.wait()
    assert [result.passed for result in monty.run([job] * 4)] == [True] * 4


@pytest.mark.slow
def test_auto_runs_in_cpython_what_monty_does_not_support(auto: Sandbox) -> None:
    assert status(auto, "import string\ndef f(x):\n    return string.digits[x]", "assert f(1) == '1'") == "passed"
    assert status(auto, "import string\ndef f(x):\n    return string.digits[x]", "assert f(1) == '2'") == "failed"
    assert status(auto, "import numpy\ndef f(x):\n    return 1") == "unsupported"
    assert status(auto, "def f(x):\n    return x", "assert f(1) == 1") == "passed"


@pytest.mark.slow
def test_auto_without_bubblewrap_warns_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: SandboxConfig) -> None:
        raise ConfigError("bubblewrap is not here")

    monkeypatch.setattr("unmask.rewards.sandbox.auto.Bubblewrap", missing)
    with pytest.warns(UserWarning, match="bubblewrap is not here"):
        auto = make_sandbox(SandboxConfig(backend="auto", timeout=1.5))
    assert status(auto, "def f(x):\n    return x", "assert f(1) == 1") == "passed"
    assert status(auto, "import string\ndef f(x):\n    return 1") == "unsupported"


IDIOMS = {
    "import everything": ("from typing import *\nfrom math import *", "sqrt(16)", "4.0"),
    "a method of a type as key": ("", "sorted(['b', 'A'], key=str.lower)", "['A', 'b']"),
    "a method of a type with map": ("", "list(map(str.upper, ['a']))", "['A']"),
    "a method of a type called": ("", "dict.get({'a': 1}, 'a')", "1"),
    "a method of a value as key": ("", "max({'a': 1, 'b': 2}, key={'a': 1, 'b': 2}.get)", "'b'"),
    "str.maketrans": ("", "'abc'.translate(str.maketrans('ab', 'cd'))", "'cdc'"),
    "a function as replacement": ("import re", "re.sub('a', lambda m: m.group().upper(), 'ba')", "'bA'"),
    "__lt__": ("class A:\n    def __lt__(self, o):\n        return True", "len(sorted([A(), A()]))", "2"),
    "__len__": ("class A:\n    def __len__(self):\n        return 7", "len(A())", "7"),
    "__getattr__": ("class A:\n    def __getattr__(self, n):\n        return n", "A().b", "'b'"),
    "an ordered dataclass": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass A:\n    x: int",
        "A(1) < A(2)",
        "True",
    ),
    "an inverse": ("", "pow(3, -1, 7)", "5"),
    "bytes of numbers": ("", "bytes([97])", "b'a'"),
    "int.from_bytes": ("", "int.from_bytes(b'\\x01\\x02', 'big')", "258"),
    "float.fromhex": ("", "float.fromhex('0x1p3')", "8.0"),
    "next of a generator": ("", "next((y for y in [1, 2] if y > 1), None)", "2"),
    "__next__": ("", "iter([1, 2]).__next__()", "1"),
    "several sets": ("", "sorted({1}.union([2], [3]))", "[1, 2, 3]"),
    "a function's own attribute": ("", "[setattr(f, 'n', 5), f.n][1]", "5"),
    "a function's name": ("", "f.__name__", "'f'"),
    "an encoding": ("", "'é'.encode('latin-1')", "b'\\xe9'"),
    "cmp_to_key": ("import functools", "sorted([2, 1], key=functools.cmp_to_key(lambda a, b: a - b))", "[1, 2]"),
    "object()": ("", "object() is not None", "True"),
    "a generator": ("def g():\n    yield 1", "list(g())", "[1]"),
    "a subclass": ("class E(ValueError):\n    pass", "issubclass(E, ValueError)", "True"),
}
"""Setup before f, return value of f, and its value, for correct programs that use features monty
lacks."""
SILENT = {
    "digits": ("", "round(2.675, 2)", "2.67"),
    "hasattr": ("", "hasattr([], 'append')", "True"),
    "the order of a set": ("", "list({10, 2, 33})", "[33, 10, 2]"),
    "a lazy value read twice": ("def g():\n    m = map(int, '12')\n    return [sum(m), sum(m)]", "g()", "[3, 0]"),
    "__bool__": ("class A:\n    def __bool__(self):\n        return False", "1 if A() else 2", "2"),
    "an empty match": ("import re", "re.sub('x*', '-', 'abxd')", "'-a-b--d-'"),
}
"""The same, for features for which monty gives another value without an error."""


@pytest.mark.parametrize("name", IDIOMS)
def test_a_right_program_that_monty_cannot_run_is_unsupported(monty: Sandbox, name: str) -> None:
    before, value, expected = IDIOMS[name]
    assert status(monty, f"{before}\ndef f(x):\n    return {value}", f"assert f(3) == {expected}") in (
        "unsupported",
        "passed",
    )


@pytest.mark.slow
def test_auto_hands_right_programs_to_cpython(auto: Sandbox) -> None:
    jobs = [
        SandboxJob(f"{before}\ndef f(x):\n    return {value}", (f"assert f(3) == {expected}",), ("f",))
        for before, value, expected in (IDIOMS | SILENT).values()
    ]
    results = auto.run(jobs)
    assert {name: result for name, result in zip(IDIOMS | SILENT, results, strict=True) if not result.passed} == {}


@pytest.mark.parametrize(
    "code",
    [
        "def f(x)\n    return 1",
        "def f(x):\n    return y",
        "def f(x):\n    return x + 1",
        "from typing import List\nf = g",
    ],
)
def test_a_program_that_is_surely_wrong_is_not_run_twice(
    auto: Sandbox, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(auto, Auto)
    second: list[SandboxJob] = []
    monkeypatch.setattr(auto.second, "verdicts", lambda job, _: second.append(job) or [])
    assert auto.run_one(SandboxJob(code, ("assert f(1) == 1",), ("f",))).status in ("failed", "error")
    assert second == []


def test_second_runs_take_no_time_that_the_batch_does_not_have(auto: Sandbox) -> None:
    job = SandboxJob("def f(x):\n    return hash(str.lower(x))", ("f('a')",), ("f",))
    [result] = auto.run_until([job], time.monotonic() - 1)
    assert not result.was_run
    assert not result.is_judged
