"""One self-contained page from data: style and script inlined, data as JSON and as packed blocks, nothing fetched."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

SCRIPTS = ("dom", "charts", "tokens", "timeline", "film", "run", "comparison", "main")
"""Parts of the script, in the order in which they need each other."""


def page(title: str, data: Mapping[str, Any], blocks: Mapping[str, Any]) -> str:
    """The page.

    Args:
        title: of the page.
        data: what the page needs at once; any JSON.
        blocks: what it unpacks when it is looked at, by the id of its element; any JSON each.
    """
    style = _file("report.css")
    # One function round all parts, so that they share names with each other and with nothing else.
    script = '(() => {\n"use strict";\n' + "\n".join(_file(f"{name}.js") for name in SCRIPTS) + "\n})();"
    # Nothing may be loaded, and of scripts and styles only these two may run, whatever a completion holds.
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    packed = "\n".join(
        f'<script type="text/plain" id="{name}">{pack(value)}</script>' for name, value in blocks.items()
    )
    parts = {
        "POLICY": policy,
        "TITLE": escape(title),
        "STYLE": style,
        "DATA": embed(data),
        "BLOCKS": packed,
        "SCRIPT": script,
    }
    # In one go: what is put in may hold such marks itself.
    return re.sub("%%([A-Z]+)%%", lambda mark: parts[mark[1]], _file("report.html"))


def embed(data: Any) -> str:
    """JSON that may stand in a script element: ASCII only, and no `<` that could end the element or begin a comment in it.

    Example:
        >>> embed({"text": "</script>\\u2028"})
        '{"text":"\\\\u003c/script>\\\\u2028"}'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def pack(data: Any) -> str:
    """JSON, compressed, as base64: a kept rollout takes a tenth of its text, and is not parsed before it is looked at."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # Without a time stamp equal data gives an equal page.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def escape(text: str) -> str:
    """Text as it stands in HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _file(name: str) -> str:
    return (resources.files("unmask.report") / "page" / name).read_text(encoding="utf-8")
