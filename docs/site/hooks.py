"""What mkdocs calls while it builds the site: pages made from the code, links out of docs/, and a navigation that finds pages."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

import catalogue
import links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code and the files that pages link to; then fill in the navigation."""
    made = {place: text for place, text in catalogue.pages().items() if files.get_file_from_path(place) is None}
    written = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    always = {"mkdocs.yml": "[](CHANGELOG.md) [](CONTRIBUTING.md)"}
    linked = links.linked_files(written | {f"docs/{place}": text for place, text in made.items()} | always)
    for place, content in (made | linked).items():
        inclusion = InclusionLevel.NOT_IN_NAV if place in linked else InclusionLevel.UNDEFINED
        files.append(File.generated(config, place, content=content, inclusion=inclusion))
    if config.nav is not None:
        named = set(_named(config.nav))
        rest = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in named)
        config.nav = _filled(config.nav, rest)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the tables that are made from the code, and turn links out of docs/ into links of the site."""
    return links.rewritten(catalogue.filled(markdown), _source_of(page.file.src_uri))


def _source_of(place: str) -> str:
    """The repository path of a page."""
    if not place.startswith(f"{links.OUTSIDE}/"):
        return f"docs/{place}"
    path = place.removeprefix(f"{links.OUTSIDE}/")
    # A page of code has .md behind its own ending.
    return path if (links.ROOT / path).exists() else path.removesuffix(".md")


def _named(nav: Any) -> Iterator[str]:
    """Every page that the navigation names."""
    match nav:
        case str():
            yield nav
        case list():
            for entry in nav:
                yield from _named(entry)
        case dict():
            for entry in nav.values():
                yield from _named(entry)


def _filled(nav: Any, rest: list[str]) -> Any:
    """The navigation with each pattern replaced by the pages that it matches, in its own folder alone."""
    match nav:
        case dict():
            return {title: _filled(entry, rest) for title, entry in nav.items()}
        case list():
            entries: list[Any] = []
            for entry in nav:
                if isinstance(entry, str) and "*" in entry:
                    depth = entry.count("/")
                    entries += [page for page in rest if page.count("/") == depth and fnmatch.fnmatch(page, entry)]
                else:
                    entries.append(_filled(entry, rest))
            return entries
        case _:
            return nav
