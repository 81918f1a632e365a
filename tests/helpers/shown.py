"""Commands, files and Python blocks that the documents show, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.helpers.paths import ROOT

PROGRAMS = ("unmask ", "make ", "python ", "pip ", "accelerate ", "git ", ".venv/bin/")
SHELLS = ("", "bash", "sh", "shell")

_FENCED = re.compile(r"^(```+)([\w-]*)\n(.*?)^\1\s*$", flags=re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)((?:    [^\n]*\n)+)")
_INLINE = re.compile(rf"(?<!`)`((?:{'|'.join(map(re.escape, PROGRAMS))})[^`]*)`", flags=re.DOTALL)


@dataclass(frozen=True)
class Page:
    """Document with its name and text."""

    name: str
    text: str

    def blocks(self) -> list[tuple[str, str]]:
        """Return the language and the content of each fenced block."""
        return [(language, body) for _, language, body in _FENCED.findall(self.text)]

    def commands(self) -> list[list[str]]:
        """Return the commands as lists of words: first those in blocks, then those in lines of text."""
        lines = [line for language, body in self.blocks() if language in SHELLS for line in body.splitlines()]
        prose = _FENCED.sub("\n", self.text)
        lines += [line for block in _INDENTED.findall(prose) for line in block.splitlines()]
        lines += [" ".join(line.split()) for line in _INLINE.findall(_INDENTED.sub("\n", prose))]
        parts = [part for line in lines for part in line.split(" && ")]
        # A reader who has not activated the environment writes its path.
        parts = [part.strip().replace(".venv/bin/unmask ", "unmask ") for part in parts]
        words = [shlex.split(part, comments=True) for part in parts if part.startswith(PROGRAMS)]
        # A single word such as `make` is a name, not a command.
        return [list(command) for command in dict.fromkeys(map(tuple, words)) if len(command) > 1]

    def files(self) -> dict[str, str]:
        """Return the blocks that begin with a comment with a file name, by that name."""
        found = {}
        for _, body in self.blocks():
            first, _, rest = body.partition("\n")
            if match := re.fullmatch(r"# ([\w-]+\.(?:py|yaml|csv))", first):
                found[match[1]] = rest
        return found

    def python(self) -> list[str]:
        """Return the Python blocks that do not belong to a file."""
        return [body for language, body in self.blocks() if language == "python" and not body.startswith("# my_")]


def pages() -> list[Page]:
    """Return every document of the repository that a reader may follow."""
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(str(place.relative_to(ROOT)), place.read_text(encoding="utf-8")) for place in places]
