"""One sandbox of each kind. The tests of bubblewrap are skipped with a reason if it cannot work."""

from __future__ import annotations

import warnings

import pytest

from unmask.core.errors import ConfigError
from unmask.rewards.sandbox import Sandbox, SandboxConfig, make_sandbox


def sandbox_of(backend: str, timeout: float) -> Sandbox:
    """Return a sandbox, or skip the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make_sandbox(SandboxConfig(backend=backend, timeout=timeout, total_timeout=10 * timeout))  # type: ignore[arg-type]
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["monty", "bubblewrap", "none"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Sandbox with enough time, even on a busy machine."""
    return sandbox_of(request.param, 5.0)


@pytest.fixture(params=["monty", "bubblewrap", "none"])
def hasty(request: pytest.FixtureRequest) -> Sandbox:
    """Sandbox with little time, for programs that do not end."""
    return sandbox_of(request.param, 0.6)


@pytest.fixture
def monty() -> Sandbox:
    return sandbox_of("monty", 5.0)


@pytest.fixture
def bubblewrap() -> Sandbox:
    return sandbox_of("bubblewrap", 5.0)


@pytest.fixture
def auto() -> Sandbox:
    """Monty with bubblewrap behind it; skipped if bubblewrap cannot work."""
    sandbox_of("bubblewrap", 5.0)
    return sandbox_of("auto", 5.0)


@pytest.fixture(params=["bubblewrap", "none"])
def cpython(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_of(request.param, 5.0)
