"""Tiny masked diffusion models with a tokenizer of characters or words, in the formats of transformers.

They are bidirectional GPT-2 models with learned absolute positions: at this size and budget, models
with rotary positions do not learn the built-in tasks (docs/lab-log.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator

from unmask.core.settings import Config
from unmask.models.denoiser import Denoiser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, MASK, EOS = "<pad>", "<mask>", "<eos>"


class TinyConfig(Config):
    """Shape of a tiny denoiser."""

    num_layers: int = Field(2, ge=1)
    """Number of transformer blocks."""
    width: int = Field(64, ge=4)
    """Hidden size, a multiple of num_heads."""
    num_heads: int = Field(4, ge=1)
    """Number of attention heads."""
    max_length: int = Field(64, ge=2)
    """Maximum length of prompt plus completion, in tokens."""

    @model_validator(mode="after")
    def _check_heads(self) -> TinyConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width = {self.width} is not a multiple of num_heads = {self.num_heads}. Change one of them."
            )
        return self


def char_tokenizer(alphabet: str) -> PreTrainedTokenizerBase:
    """Make a tokenizer with one token for each character of `alphabet`, and PAD, MASK and EOS
    (ids 0, 1, 2).

    Example:
        >>> tokenizer = char_tokenizer("0123=")
        >>> tokenizer("12=0").input_ids
        [4, 5, 7, 3]
        >>> tokenizer.decode([4, 5, 7, 3])
        '12=0'
    """
    return word_tokenizer(alphabet)


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerBase:
    """Make a tokenizer with one token for each of the given pieces of text, and PAD, MASK and EOS
    (ids 0, 1, 2). A text is split from left to right at the longest piece, and decoded by joining
    the pieces, so a space belongs to one of them.

    Args:
        words: pieces of text. Every text to encode must consist of them.

    Example:
        >>> tokenizer = word_tokenizer(["Anna", " has", " 1", " 12", "."])
        >>> tokenizer("Anna has 12.").input_ids
        [7, 5, 4, 6]
        >>> tokenizer.decode(tokenizer("Anna has 12.").input_ids)
        'Anna has 12.'
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    pieces = sorted(set(words))
    vocabulary = {token: i for i, token in enumerate([PAD, MASK, EOS, *pieces])}
    longer = [re.escape(piece) for piece in sorted(pieces, key=len, reverse=True) if len(piece) > 1]
    inner = Tokenizer(WordLevel(vocabulary))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*longer, r"[\s\S]"])), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, mask_token=MASK, eos_token=EOS, padding_side="left"
    )


def tiny_denoiser(shape: TinyConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Denoiser:
    """Make a newly initialised tiny denoiser; the same seed gives the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=shape.max_length,
        n_embd=shape.width,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        # The exact function takes a fifth of the time of its tanh approximation on a CPU, and GPT-2's
        # own "gelu_new" computes the approximation in eight passes over memory.
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # GPT2Config does not declare this attribute, but the mask functions of transformers read it,
    # and it is saved with the config.
    config.is_causal = False
    # transformers initialises from the global generator, which is forked so that its state does not
    # change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = GPT2LMHeadModel(config)
    return Denoiser(backbone, tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
