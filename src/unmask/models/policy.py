"""A model together with its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from unmask.models.denoiser import Denoiser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Policy(NamedTuple):
    """Denoiser together with the tokenizer that turns text into tokens and back.

    Example:
        >>> from unmask.models import TinyConfig, char_tokenizer, tiny_denoiser
        >>> tokenizer = char_tokenizer("0123456789")
        >>> denoiser, _ = Policy(tiny_denoiser(TinyConfig(), tokenizer, seed=0), tokenizer)
    """

    denoiser: Denoiser
    """Model."""
    tokenizer: PreTrainedTokenizerBase
    """Tokenizer of the model."""
