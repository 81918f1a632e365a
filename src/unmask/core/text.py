"""Text from outside, made safe to show: in a terminal, a log line or the report.

Prompts, completions, column names, tensor names and the messages of other libraries can hold control characters that move
the cursor, recolour the screen or reorder what stands around them. `visible` spells such characters out.
"""

from __future__ import annotations

import re

LONGEST = 20_000
"""Characters of a text that are shown."""

# Control characters except tab and line feed; bidirectional marks and overrides; invisible fillers and tags; lone surrogates,
# which no encoding can hold.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\u115f\u1160\u17b4\u17b5\u180e\u3164\uffa0\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with every character spelt out that cannot be seen or that would move others.

    Example:
        >>> visible("a\\x00b\\u202ec\\td")
        'a␀b⟨U+202E⟩c\\td'
    """
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"
    return _UNSEEN.sub(_spelt, text.replace("\r\n", "\n"))


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
