"""Fixtures of the tests of reports: a browser for the pages, where there is one, and the figures that were drawn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

READY = 20_000
"""Milliseconds that a page may take to be drawn on a loaded machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # A sandbox of its own cannot be had as root, as which containers run.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page with `opened(path, **context)`, and check afterwards that it logged and requested
    nothing."""
    contexts, heard, asked = [], [], []

    def open_page(path: Path, **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        context.set_default_timeout(READY / 2)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=READY, state="attached")
        # The file itself, and nothing after it.
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        asked.clear()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []
    assert asked == []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Figures that were saved, kept open until the test ends."""
    figures: list[Figure] = []
    close = plt.close
    monkeypatch.setattr(plt, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)
