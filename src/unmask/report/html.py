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
from math import isfinite
from typing import Any

import torch
from torch import Tensor

_LEVEL = 4
"""Of compression: the best takes three times as long for a few hundredths less."""

_TYPES = {torch.uint16: "u16", torch.int16: "i16", torch.int32: "i32", torch.float32: "f32"}

SCRIPTS = ("dom", "charts", "panel", "tokens", "timeline", "stage", "film", "run", "comparison", "main")
"""Parts of the script, in the order in which they need each other."""


def page(title: str, data: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """The page.

    Args:
        title: of the page.
        data: what the page needs at once; any JSON.
        blocks: what it unpacks when it is looked at, by the id of its element: what `pack` made of it.
    """
    style = _file("report.css")
    # One function round all parts, so that they share names with each other and with nothing else.
    script = '(() => {\n"use strict";\n' + "\n".join(_file(f"{name}.js") for name in SCRIPTS) + "\n})();"
    # Nothing may be loaded, and of scripts and styles only these two may run, whatever a completion holds.
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    packed = "\n".join(f'<script type="text/plain" id="{name}">{value}</script>' for name, value in blocks.items())
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
    return _json(data).replace("<", "\\u003c")


def pack(data: Any, arrays: Mapping[str, Tensor] | None = None) -> str:
    """JSON and arrays beside it, compressed, as base64: small, and not unpacked before it is looked at.

    The length of the JSON in four bytes, little end first, the JSON with each array's type and shape under `arrays`, padded with
    spaces to a multiple of four, and the arrays one after the other, each begun at a multiple of four.
    """
    parts = {name: _bytes_of(values) for name, values in (arrays or {}).items()}
    described = [[name, _TYPES[values.dtype], list(values.shape)] for name, values in (arrays or {}).items()]
    head = _json({"data": data, "arrays": described}).encode()
    head += b" " * (-len(head) % 4)
    whole = b"".join([len(head).to_bytes(4, "little"), head, *parts.values()])
    # Without a time stamp equal data gives an equal page.
    return base64.b64encode(gzip.compress(whole, compresslevel=_LEVEL, mtime=0)).decode()


def _json(data: Any) -> str:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:
        # Of a run that diverged: JSON has no word for such numbers, and the page shows a dash where there is none.
        return json.dumps(_without_nan(data), separators=(",", ":"), allow_nan=False)


def _without_nan(data: Any) -> Any:
    """The same with None for each number that is not finite."""
    match data:
        case Mapping():
            return {key: _without_nan(value) for key, value in data.items()}
        case list() | tuple():
            return [_without_nan(value) for value in data]
        case float():
            return data if isfinite(data) else None
        case _:
            return data


def _bytes_of(values: Tensor) -> bytes:
    data = values.contiguous().numpy().tobytes()
    return data + b"\0" * (-len(data) % 4)


def escape(text: str) -> str:
    """Text as it stands in HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _file(name: str) -> str:
    return (resources.files("unmask.report") / "page" / name).read_text(encoding="utf-8")
