"""Checks of prompts. A prompt is a text, or a list of chat messages for the chat template of a
model."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


def fault_of_prompt(prompt: object) -> str | None:
    """Return the reason that no model can use a prompt, as a clause for a message; None if the
    prompt is valid.

    Example:
        >>> fault_of_prompt("1+1="), fault_of_prompt(" ")
        (None, 'the prompt is empty')
        >>> fault_of_prompt([{"role": "user"}])
        'message 1 of the prompt has no text under "content"'
    """
    if prompt is None:
        return "the prompt is missing"
    if isinstance(prompt, str):
        if not prompt.strip():
            return "the prompt is empty"
        if "\0" in prompt:
            return "the prompt holds a NUL character"
        if _WRITTEN_MESSAGES.match(prompt):
            return "the prompt is a list of chat messages written as text; use .jsonl or .parquet, which can hold lists"
        return None
    if not isinstance(prompt, list):
        return f"the prompt is neither text nor a list of chat messages, but {_kind(prompt)}"
    if not prompt:
        return "the prompt is an empty list of chat messages"
    faults = (_fault_of_message(message, f"message {n} of the prompt") for n, message in enumerate(prompt, start=1))
    return next((fault for fault in faults if fault is not None), None)


def _fault_of_message(message: object, name: str) -> str | None:
    if not isinstance(message, Mapping):
        return f'{name} is {_kind(message)}, not an object with "role" and "content"'
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role.strip():
        return f'{name} has no "role", such as "user"'
    if isinstance(content, list):
        return f"{name} has a list of parts as its content; join their texts into one string"
    if not isinstance(content, str):
        return f'{name} has no text under "content"'
    if "\0" in content:
        return f"{name} holds a NUL character"
    if role == "user" and not content.strip():
        return f"{name} is empty"
    return None


def _kind(value: object) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
