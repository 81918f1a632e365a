"""A sandbox of each kind; bubblewrap's tests say why they are skipped where it cannot work."""

from __future__ import annotations

import warnings

import pytest

from unmask.errors import ConfigError
from unmask.sandbox import Sandbox, SandboxConfig, make_sandbox

TIMES = {"timeout": 0.6, "total_timeout": 5.0}


def sandbox_of(backend: str) -> Sandbox:
    """A sandbox with short times, or a skipped test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make_sandbox(SandboxConfig(backend=backend, **TIMES))  # type: ignore[arg-type]
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["monty", "bubblewrap", "none"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_of(request.param)


@pytest.fixture
def monty() -> Sandbox:
    return sandbox_of("monty")


@pytest.fixture(params=["bubblewrap", "none"])
def cpython(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_of(request.param)
