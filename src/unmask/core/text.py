"""Make text from outside safe to show: in a terminal, a log line or the report.

Prompts, completions, column names, tensor names and the messages of other libraries can hold
control characters that move the cursor, recolour the screen or reorder the text around them.
`visible` spells such characters out.
"""

from __future__ import annotations

import re

MAX_CHARACTERS = 20_000
"""Maximum number of characters of a text that are shown."""

# Control characters except tab and line feed; bidirectional marks and overrides; invisible fillers
# and tags; lone surrogates, which no encoding can represent.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\u115f\u1160\u17b4\u17b5\u180e\u3164\uffa0\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Spell out every character that is invisible or that would move other characters.

    Example:
        >>> visible("a\\x00b\\u202ec\\td")
        'a␀b⟨U+202E⟩c\\td'
    """
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} … ({len(text) - MAX_CHARACTERS:,} more characters)"
    return _INVISIBLE.sub(_spelled, text.replace("\r\n", "\n"))


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
