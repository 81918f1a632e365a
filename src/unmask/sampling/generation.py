"""Text and tokens: prompts are encoded and batched, completions are decoded, and seeds are drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.core.errors import DataError, reason
from unmask.core.prompts import fault_of_prompt
from unmask.core.timeouts import interrupted_after
from unmask.models import Denoiser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_SECONDS = 10.0
"""Longest time in which one prompt is encoded: a chat template is a program of others, and may loop."""

Prompt = str | list[dict[str, str]]
"""Plain text, or chat messages for the tokenizer's template. Where the last message is the assistant's, it is continued."""

ENCODED_AT_ONCE = 1024
"""Prompts that are encoded in one call when they are checked."""


def prompt_faults(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completion_length: int
) -> list[str | None]:
    """For each prompt the reason why it cannot be used, as a clause, or None if it can be used; nothing is denoised.

    Equal prompts are encoded once, and texts many at a time.
    """
    room = getattr(denoiser.backbone.config, "max_position_embeddings", None)
    found: dict[str, str | None] = {}
    distinct = list({str(prompt): prompt for prompt in prompts}.items())
    for start in range(0, len(distinct), ENCODED_AT_ONCE):
        part = distinct[start : start + ENCODED_AT_ONCE]
        for (key, _), length in zip(part, _lengths(tokenizer, [prompt for _, prompt in part]), strict=True):
            if isinstance(length, str):
                found[key] = length
            elif room is not None and length + completion_length > room:
                found[key] = _too_long(length, completion_length, room).removesuffix(".")
    return [found.get(str(prompt)) for prompt in prompts]


def _lengths(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> list[int | str]:
    """Tokens of each prompt, or the reason why it cannot be encoded."""
    if all(isinstance(prompt, str) for prompt in prompts):
        try:
            return [len(ids) for ids in tokenizer(prompts, add_special_tokens=False, verbose=False).input_ids]
        except Exception:  # of which of them, the loop below finds out
            pass
    lengths: list[int | str] = []
    for prompt in prompts:
        try:
            lengths.append(len(_encode(tokenizer, prompt)))
        except DataError as error:
            lengths.append(str(error).removesuffix("."))
    return lengths


def batches_by_length(
    prompt_lengths: Sequence[int], completion_length: int, batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Indices of rows that go together, shortest prompts first.

    Batches hold `batch_size` rows, or, with `max_tokens`, as many as have no more tokens when padded to the longest of them, and
    never less than one.

    Example:
        >>> batches_by_length([5, 2, 3, 2], 4, batch_size=3)
        [[1, 3, 2], [0]]
        >>> batches_by_length([5, 2, 3, 2], 4, batch_size=3, max_tokens=14)
        [[1, 3], [2], [0]]
    """
    batches: list[list[int]] = []
    # Ascending, so the row that is added is the widest of its batch.
    for i in sorted(range(len(prompt_lengths)), key=lambda i: prompt_lengths[i]):
        room = batch_size if max_tokens is None else max(1, max_tokens // (prompt_lengths[i] + completion_length))
        if not batches or len(batches[-1]) >= room:
            batches.append([])
        batches[-1].append(i)
    return batches


def check_fits_context(denoiser: Denoiser, prompt_length: int, completion_length: int) -> None:
    """Raise DataError if a prompt and a completion of these many tokens do not fit into the model's positions."""
    room = getattr(denoiser.backbone.config, "max_position_embeddings", None)
    if room is not None and prompt_length + completion_length > room:
        raise DataError(_too_long(prompt_length, completion_length, room))


def _too_long(prompt_length: int, completion_length: int, room: int) -> str:
    return (
        f"a prompt of {prompt_length} tokens and max_completion_length = {completion_length} do not fit into the "
        f"model's {room} positions. Shorten one of them."
    )


def row_seeds(num_rows: int, generator: torch.Generator) -> Tensor:
    """[num_rows] int64 seeds from one generator, drawn for all rows at once so that batching cannot change them."""
    return torch.randint(2**62, (num_rows,), generator=generator)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Tensor) -> list[str]:
    """The text of completions [B, L]: up to the first EOS or end of the assistant's turn, special tokens left out."""
    ends = {tokenizer.eos_token_id, turn_end(tokenizer)}
    cut = [list(takewhile(lambda token: token not in ends, row)) for row in tokens.tolist()]
    texts: list[str] = tokenizer.batch_decode(cut, skip_special_tokens=True)
    return texts


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template ends an assistant's turn; None where there is no such token.

    Models that fill the rest of a completion with EOS end the answer itself with this token: LLaDA with <|eot_id|>, Dream with
    <|im_end|>.
    """
    if not tokenizer.chat_template:
        return None
    answer = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        with interrupted_after(MOST_SECONDS, "its chat template does not end"):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        ids = tokenizer(text.rpartition(answer)[2], add_special_tokens=False).input_ids
    except Exception:  # a template of a model's own may refuse any conversation, and then it says nothing of its turns
        return None
    token = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    return int(ids[0]) if token is not None and token.special else None


def encode_all(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    # Completions of one prompt stand side by side; encode each prompt once.
    cache: dict[str, list[int]] = {}
    return [cache[key] if (key := str(p)) in cache else cache.setdefault(key, _encode(tokenizer, p)) for p in prompts]


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Any:
    """Messages by the tokenizer's template, and the start of the assistant's turn, which may have begun in the last message."""
    while messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        # Templates that trim would cut the start of the turn as well.
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "assistant":
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))
    begun = messages[-1]["content"]
    # Templates trim what they are given, and the space before the next word is the user's.
    whole = text if text.endswith(begun) else text.rstrip() + begun[len(begun.rstrip()) :]
    return tokenizer(whole, add_special_tokens=False).input_ids


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    fault = None if isinstance(prompt, str) else fault_of_prompt(prompt)
    if fault:
        raise DataError(f"{fault}: {str(prompt)[:80]!r}.")
    try:
        with interrupted_after(MOST_SECONDS, "its chat template does not end"):
            ids: Any = (
                tokenizer(prompt, add_special_tokens=False).input_ids
                if isinstance(prompt, str)
                else _chat_ids(tokenizer, prompt)
            )
    except Exception as error:  # tokenizers raise bare Exceptions of their own
        if not isinstance(prompt, str) and not tokenizer.chat_template:
            raise DataError(
                "the prompt is a list of chat messages, and the model's tokenizer has no chat template. "
                "Use the task's option format=plain (or bare), or a model with one."
            ) from error
        raise DataError(
            f"the tokenizer cannot encode the prompt {str(prompt)[:80]!r} ({reason(error)}). "
            "The model may be made for another task."
        ) from error
    return list(ids)


def encode_batch(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts as one left-padded batch: ids [B, P] int64 and mask [B, P] bool, False at padding."""
    return left_pad(encode_all(tokenizer, prompts), pad_id)


def left_pad(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as one batch: ids [B, P] int64, padded on the left, and mask [B, P] bool, False at padding."""
    width = max(len(row) for row in rows)
    # Types are given, for where all prompts are empty.
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], dtype=torch.long)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], dtype=torch.bool)
    return ids, mask
