"""One self-contained HTML page, with inline style and script, and with its data as JSON and
compressed blocks. The page makes no network requests."""

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
"""Level of compression; the highest takes three times as long and saves a few percent."""

_TYPES = {torch.uint16: "u16", torch.int16: "i16", torch.int32: "i32", torch.float32: "f32"}
"""Names of the data types in packed blocks."""

SCRIPTS = ("dom", "charts", "panel", "tokens", "timeline", "stage", "film", "run", "comparison", "main")
"""Parts of the script, in order; each part uses only the parts before it."""


def page(title: str, data: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """Return the page as HTML.

    Args:
        title: title of the page.
        data: JSON values that the page needs at once.
        blocks: results of `pack` by element id, which the page unpacks when it shows them.
    """
    style = _file("report.css")
    # One function around all parts, so that they share names only with each other.
    script = '(() => {\n"use strict";\n' + "\n".join(_file(f"{name}.js") for name in SCRIPTS) + "\n})();"
    # Nothing can be loaded and no other script or style can run, whatever text a completion
    # contains.
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
    # One pass replaces all marks, because the inserted texts may contain such marks.
    return re.sub("%%([A-Z]+)%%", lambda mark: parts[mark[1]], _file("report.html"))


def embed(data: Any) -> str:
    """Return JSON that is safe in a script element: ASCII without `<`, which could end the element
    or start a comment.

    Example:
        >>> embed({"text": "</script>\\u2028"})
        '{"text":"\\\\u003c/script>\\\\u2028"}'
    """
    return _json(data).replace("<", "\\u003c")


def pack(data: Any, arrays: Mapping[str, Tensor] | None = None) -> str:
    """Return JSON values and arrays as compressed base64, which the page unpacks when it is shown.

    The content is the length of the JSON in four bytes, little-endian; then the JSON with each
    array's type and shape under `arrays`, padded with spaces to a multiple of four bytes; then the
    arrays, each starting at a multiple of four bytes.
    """
    parts = {name: _bytes_of(values) for name, values in (arrays or {}).items()}
    described = [[name, _TYPES[values.dtype], list(values.shape)] for name, values in (arrays or {}).items()]
    head = _json({"data": data, "arrays": described}).encode()
    head += b" " * (-len(head) % 4)
    whole = b"".join([len(head).to_bytes(4, "little"), head, *parts.values()])
    # Without a time stamp, equal data gives an equal page.
    return base64.b64encode(gzip.compress(whole, compresslevel=_LEVEL, mtime=0)).decode()


def _json(data: Any) -> str:
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:
        # A run that diverged has numbers that JSON lacks; the page shows a dash for None.
        return json.dumps(_without_nan(data), separators=(",", ":"), allow_nan=False)


def _without_nan(data: Any) -> Any:
    """Return the data with None for each number that is not finite."""
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
    """Return text with the special characters of HTML escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _file(name: str) -> str:
    return (resources.files("unmask.report") / "page" / name).read_text(encoding="utf-8")
