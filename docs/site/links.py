"""Links of the repository on the site: a page may link to any file of the repository, on the forge and here alike.

Pages link relatively, as a forge wants it: `[x](../src/unmask/score.py)`. What lies outside docs/ is shown on the site under
repository/: Markdown as a page, text as a page of code, a folder as a list of its files, anything else as the file itself.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""Of the repository."""

OUTSIDE = "repository"
"""Folder of the site for what is outside docs/."""

_CODE = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".txt": "text"}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(?=[)\s#])")
_FENCED = re.compile(r"^(```+|~~~+).*?^\1\s*$", flags=re.MULTILINE | re.DOTALL)


def relative_links(markdown: str) -> Iterator[str]:
    """Targets of the relative links and pictures, without their anchors, as they stand there."""
    yield from (match[1] for match in _LINK.finditer(_FENCED.sub("", markdown)))


def resolved(target: str, source: str) -> str:
    """The repository path of a link's target, given the repository path of the page that it stands in."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def place_of(path: str) -> str:
    """Where on the site a file or folder of the repository is, both as paths from their roots."""
    if path.startswith("docs/"):
        inside = path.removeprefix("docs/")
        return f"{inside}/index.md" if (ROOT / path).is_dir() else inside
    if (ROOT / path).is_dir():
        return f"{OUTSIDE}/{path}/index.md"
    return f"{OUTSIDE}/{path}{'.md' if Path(path).suffix in _CODE else ''}"


def rewritten(markdown: str, source: str) -> str:
    """A page with its relative links as the site has them; code is left alone."""

    def link(match: re.Match[str]) -> str:
        target = resolved(match[1], source)
        # What is not there is left to the strict build, which reports it.
        if target.startswith("../") or not (ROOT / target).exists() and not target.startswith("docs/"):
            return match[1]
        return posixpath.relpath(place_of(target), posixpath.dirname(place_of(source)))

    return _outside_code(markdown, lambda text: _LINK.sub(link, text))


def linked_files(sources: dict[str, str]) -> dict[str, str | bytes]:
    """All that the pages `sources` (repository path: Markdown) link to outside docs/, and what that links to in turn.

    Returns:
        Place on the site: content.
    """
    found: dict[str, str | bytes] = {}
    waiting = list(sources.items())
    while waiting:
        source, markdown = waiting.pop()
        for target in relative_links(markdown):
            path = resolved(target, source)
            place = place_of(path)
            if path.startswith(("docs/", "../")) or place in found or not (ROOT / path).exists():
                continue
            found[place] = content = _shown(path)
            if isinstance(content, str):
                waiting.append((f"{path}/index.md" if (ROOT / path).is_dir() else path, content))
    return found


def _shown(path: str) -> str | bytes:
    """A file or folder of the repository as a page, or as it is."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(p.name for p in file.iterdir() if not p.name.startswith((".", "__pycache__")) and p.is_file())
        return f"# {path}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    if file.suffix in _CODE:
        text = file.read_text(encoding="utf-8")
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
        return f"# {path}\n\n{fence}{_CODE[file.suffix]}\n{text}\n{fence}\n"
    return file.read_bytes()


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change everything but fenced code."""
    parts, end = [], 0
    for match in _FENCED.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])
