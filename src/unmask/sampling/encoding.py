"""Text and tokens: encoding and batching of prompts, decoding of completions, and seeds."""

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

ENCODING_SECONDS = 10.0
"""Maximum number of seconds for encoding one prompt. A chat template is code from outside, and may
never end."""

Prompt = str | list[dict[str, str]]
"""Plain text, or chat messages for the tokenizer's template. If the last message is the
assistant's, the completion continues it."""

ENCODING_BATCH = 1024
"""Number of prompts that are encoded in one call when they are checked."""


def prompt_faults(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completion_length: int
) -> list[str | None]:
    """Return the reason why each prompt cannot be used, as a clause; None for a prompt that can be
    used.

    The check denoises nothing. Equal prompts are encoded once, and plain texts are encoded in
    batches.
    """
    max_positions = getattr(denoiser.backbone.config, "max_position_embeddings", None)
    faults: dict[str, str | None] = {}
    distinct = list({str(prompt): prompt for prompt in prompts}.items())
    for start in range(0, len(distinct), ENCODING_BATCH):
        part = distinct[start : start + ENCODING_BATCH]
        for (key, _), length in zip(part, _lengths(tokenizer, [prompt for _, prompt in part]), strict=True):
            if isinstance(length, str):
                faults[key] = length
            elif max_positions is not None and length + completion_length > max_positions:
                faults[key] = _too_long(length, completion_length, max_positions).removesuffix(".")
    return [faults.get(str(prompt)) for prompt in prompts]


def _lengths(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> list[int | str]:
    """Return the number of tokens of each prompt, or the reason why it cannot be encoded."""
    if (texts := _encoded_texts(tokenizer, prompts)) is not None:
        return [len(ids) for ids in texts]
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
    """Group rows of similar prompt length into batches, shortest prompts first, and return their
    indices.

    A batch holds `batch_size` rows. If `max_tokens` is given, a batch instead holds as many rows as
    fit into that number of tokens after padding, and at least one row.

    Example:
        >>> batches_by_length([5, 2, 3, 2], 4, batch_size=3)
        [[1, 3, 2], [0]]
        >>> batches_by_length([5, 2, 3, 2], 4, batch_size=3, max_tokens=14)
        [[1, 3], [2], [0]]
    """
    batches: list[list[int]] = []
    # Prompts are in ascending order, so the added row is the widest of its batch.
    for i in sorted(range(len(prompt_lengths)), key=lambda i: prompt_lengths[i]):
        capacity = batch_size if max_tokens is None else max(1, max_tokens // (prompt_lengths[i] + completion_length))
        if not batches or len(batches[-1]) >= capacity:
            batches.append([])
        batches[-1].append(i)
    return batches


def check_fits_context(denoiser: Denoiser, prompt_length: int, completion_length: int) -> None:
    """Check that a prompt and a completion of these lengths fit into the model's context.

    Raises:
        DataError: they have more tokens than the model has positions.
    """
    max_positions = getattr(denoiser.backbone.config, "max_position_embeddings", None)
    if max_positions is not None and prompt_length + completion_length > max_positions:
        raise DataError(_too_long(prompt_length, completion_length, max_positions))


def _too_long(prompt_length: int, completion_length: int, max_positions: int) -> str:
    return (
        f"a prompt of {prompt_length} tokens and max_completion_length = {completion_length} do not fit into the "
        f"model's {max_positions} positions. Shorten one of them."
    )


def row_seeds(num_rows: int, generator: torch.Generator) -> Tensor:
    """Draw [num_rows] int64 seeds from one generator. All rows get their seeds in one call, so that
    batching cannot change them."""
    return torch.randint(2**62, (num_rows,), generator=generator)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Tensor) -> list[str]:
    """Return the text of completions [B, L], up to the first EOS or end of turn and without special
    tokens."""
    ends = {tokenizer.eos_token_id, turn_end(tokenizer)}
    cut = [list(takewhile(lambda token: token not in ends, row)) for row in tokens.tolist()]
    texts: list[str] = tokenizer.batch_decode(cut, skip_special_tokens=True)
    return texts


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token with which the chat template ends an assistant's turn; None if there
    is none.

    Models that fill the rest of a completion with EOS end the answer with this token: <|eot_id|> in
    LLaDA, <|im_end|> in Dream.
    """
    if not tokenizer.chat_template:
        return None
    answer = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        with interrupted_after(ENCODING_SECONDS, "its chat template does not finish"):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        ids = tokenizer(text.rpartition(answer)[2], add_special_tokens=False).input_ids
    except Exception:  # a template may refuse any conversation
        return None
    token = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    return int(ids[0]) if token is not None and token.special else None


def encode_all(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of each prompt; equal prompts are encoded once."""
    distinct = {str(prompt): prompt for prompt in prompts}
    encoded = _encoded_texts(tokenizer, list(distinct.values()))
    if encoded is None:
        encoded = [_encode(tokenizer, prompt) for prompt in distinct.values()]
    by_prompt = dict(zip(distinct, encoded, strict=True))
    return [by_prompt[str(prompt)] for prompt in prompts]


def _encoded_texts(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> list[list[int]] | None:
    """Encode plain texts in one call. Return None if there is another prompt among them, or if one
    cannot be encoded; single calls then find out which one."""
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        return None
    try:
        ids: list[list[int]] = tokenizer(prompts, add_special_tokens=False, verbose=False).input_ids
    except Exception:  # tokenizers raise exceptions of any class
        return None
    return ids


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Any:
    """Apply the chat template, and start the assistant's turn unless the last message has started
    it."""
    while messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        # A template that trims an empty message would also remove the start of the turn.
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "assistant":
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))
    start = messages[-1]["content"]
    # Templates trim messages, but the space before the next word belongs to the message.
    whole = text if text.endswith(start) else text.rstrip() + start[len(start.rstrip()) :]
    return tokenizer(whole, add_special_tokens=False).input_ids


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    fault = None if isinstance(prompt, str) else fault_of_prompt(prompt)
    if fault:
        raise DataError(f"{fault}: {str(prompt)[:80]!r}.")
    try:
        with interrupted_after(ENCODING_SECONDS, "its chat template does not finish"):
            ids: Any = (
                tokenizer(prompt, add_special_tokens=False).input_ids
                if isinstance(prompt, str)
                else _chat_ids(tokenizer, prompt)
            )
    except Exception as error:  # tokenizers raise exceptions of any class
        if not isinstance(prompt, str) and not tokenizer.chat_template:
            raise DataError(
                "the prompt is a list of chat messages, but the model's tokenizer has no chat template. "
                "Set the task's option format=plain (or bare), or use a model with a chat template."
            ) from error
        raise DataError(
            f"the tokenizer cannot encode the prompt {str(prompt)[:80]!r} ({reason(error)}). "
            "The model may have been made for another task."
        ) from error
    return list(ids)


def encode_batch(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], pad_id: int) -> tuple[Tensor, Tensor]:
    """Encode prompts as one batch: [B, P] int64 ids, padded on the left, and [B, P] bool mask,
    False at padding."""
    return left_pad(encode_all(tokenizer, prompts), pad_id)


def left_pad(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token ids to one batch: [B, P] int64 ids, padded on the left, and [B, P] bool mask, False
    at padding."""
    width = max(len(row) for row in rows)
    # The types are explicit for the case that all prompts are empty.
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], dtype=torch.long)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], dtype=torch.bool)
    return ids, mask
