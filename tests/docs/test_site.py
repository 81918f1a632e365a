"""The documentation site: built strictly, whole, and without a word to the network."""

from __future__ import annotations

import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason='the site needs pip install "unmask[docs]"')

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tests.helpers.paths import ROOT
from unmask.methods import METHODS
from unmask.models.families import FAMILIES
from unmask.tasks import TASKS

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page of HTML links to, what it loads, and the anchors in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] or "" for key in ("id", "name") if key in found}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag == "link" and found.get("rel") != "canonical":
            self.loads.append(found.get("href") or "")
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(found["src"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of the site by their files. A warning of the build is a failure."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return {file: Page(file) for file in folder.rglob("*.html")}


def page(site: dict[Path, Page], place: str) -> Page:
    root = next(file.parent for file in site if file.name == "404.html")
    return site[root / place]


def test_every_link_and_anchor_on_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    broken = []
    for file, page in site.items():
        # Its links are from the root of a server.
        if file.name == "404.html":
            continue
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("data:"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            known = site[target].anchors if target in site else set()
            if not target.exists() or (
                anchor and not anchor.startswith("__") and target in site and anchor not in known
            ):
                broken.append(f"{file.name}: {link}")
    assert broken == []


def test_every_outside_link_is_a_whole_address(site: dict[Path, Page]) -> None:
    outside = {link for page in site.values() for link in page.links if urlsplit(link).scheme}
    assert all(re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", link) for link in outside), outside
    assert any("arxiv.org/abs/2603.12554" in link for link in outside)


def test_no_page_loads_anything_from_elsewhere(site: dict[Path, Page]) -> None:
    assert {load for page in site.values() for load in page.loads if urlsplit(load).scheme not in ("", "data")} == set()
    root = next(file.parent for file in site if file.name == "404.html")
    for file in root.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import ['\"]?https?:", file.read_text(encoding="utf-8")), file


def test_every_method_task_and_family_has_a_page(site: dict[Path, Page]) -> None:
    for name in TASKS:
        for key in TASKS[name].model_fields.keys() - {"type", "sandbox"}:
            assert f"<code>{key}</code>" in page(site, f"tasks/{name}.html").text
    for name in FAMILIES:
        assert page(site, f"models/{name}.html")
    methods = page(site, "methods/index.html")
    for name in METHODS:
        assert f"<code>{name}</code></a>" in methods.text


def test_every_page_of_docs_is_in_the_navigation(site: dict[Path, Page]) -> None:
    start = page(site, "index.html").links
    for file in (ROOT / "docs").rglob("*.md"):
        place = file.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert place in start, place


def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    """The strict build can fail."""
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs" / "site", docs / "site")
    (docs / "index.md").write_text("# Start\n\n[gone](gone.md) and [nowhere](index.md#nowhere)\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    plain = re.sub(r"^nav:.*", "", text, flags=re.MULTILINE | re.DOTALL).replace("  - docs/site/hooks.py", "  []")
    plain = re.sub(r"^  - mkdocstrings:.*?(?=^\w)", "", plain, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"^watch:.*$", "", plain, flags=re.MULTILINE))
    config = load_config(str(tmp_path / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        with pytest.raises(Abort, match="2 warnings in strict mode"):
            build(config)
    finally:
        logger.removeHandler(handler)
    assert any("gone.md" in warning for warning in warnings)
    assert any("nowhere" in warning for warning in warnings)
