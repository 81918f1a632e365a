"""Description of a model family: original layout, native form, and facts about releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unmask.models.native import NATIVE_CLASSES

Fact = str
"""Fact about a release, as its hub page or paper states it; "unknown" if it could not be found."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Published checkpoint."""

    hub_id: str
    parameters: Fact
    licence: Fact
    block_length: int | None = None
    """Block length of block-causal attention, if the checkpoint's config does not state it."""


@dataclass(frozen=True, slots=True)
class Family:
    """Original layout of a family and its native form.

    `fields` maps config values in both directions. `fixed` holds values that the native class
    cannot vary; a checkpoint with other values is refused. `keys` maps tensor names in both
    directions, with {i} for the layer.
    """

    title: str
    native_class: str
    """Key of the native class in `NATIVE_CLASSES`."""
    native_type: str
    """`model_type` of the native class."""
    checkpoints: tuple[Checkpoint, ...]
    checked: Literal["logits of its own code", "as llada", "as dream", "mini checkpoint"]
    """How the tests of this project check the family: `logits of its own code` compares logits with
    those of the released code, `as NAME` relies on that comparison for a family with the same
    layout, and `mini checkpoint` compares a tiny checkpoint with itself after conversion, training
    and conversion back. No released weights were available."""
    paper: Fact
    architecture: str = ""
    """Class that the release's config names; empty for a family that is already native."""
    model_type: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Native config key for each original config key."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of original config keys that are built into the native class."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Other config values, which have no effect on the function of the model and are written in the
    conversion back."""
    keys: tuple[tuple[str, str], ...] = ()
    """Pairs of original and native tensor names; empty if the names are equal."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Special tokens that the family's tokenizer contains but may not declare: mask_token,
    eos_token, pad_token."""
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """Token ids of mask, eos and pad in the released vocabulary, for display only. A model uses the
    ids in its own checkpoint."""
    tokenizer_class: str | None = None
    """Native tokenizer class for the family, needed only if the tokenizer's config names a class
    that exists only as remote code."""
    chat_template: Fact = "its tokenizer's own"
    template: str | None = None
    """Chat template, for a tokenizer that may have none."""
    logit_shift: bool = False
    """True if the head at position i - 1 predicts position i."""
    block_length: int | None = None
    """Block length of block-causal attention, unless the checkpoint's config states another; None
    if every position attends to every other."""
    notes: tuple[str, ...] = ()

    def block_length_of(self, source: str) -> int | None:
        """Return the block length of a published checkpoint whose config does not state it, by hub
        id or folder name."""
        name = source.rstrip("/").rpartition("/")[2]
        return next((c.block_length for c in self.checkpoints if c.hub_id.rpartition("/")[2] == name), None)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear layers in the blocks of the native class."""
        return NATIVE_CLASSES[self.native_class].linear
