"""Description of a model family: original layout, native form, and facts about releases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unmask.core.errors import ModelError
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
class Regrouped:
    """Tensors of the original layout that hold the same rows, in the same order, as other tensors of
    the native layout.

    {i} in a name stands for the layer. A name with {e} stands for one tensor of each expert; the
    tensors on the other side then have the experts as their first dimension.
    """

    original: tuple[str, ...]
    """Names in the original layout. If several of them replace one native tensor, they have equally
    many rows."""
    native: tuple[str, ...]
    """Names in the native layout."""


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
    checked: Literal["logits of its own code", "as llada", "as dream", "logits of independent code", "mini checkpoint"]
    """How the tests of this project check the family: `logits of its own code` compares logits with
    those of the released code, `as NAME` relies on that comparison for a family with the same
    layout, `logits of independent code` compares logits with code that was written from the
    published description of the release, and `mini checkpoint` compares a tiny checkpoint with itself
    after conversion, training and conversion back. No released weights were available."""
    paper: Fact
    architecture: str = ""
    """Class that the release's config names; empty for a family that is already native."""
    other_architectures: tuple[str, ...] = ()
    """Other names of the class in configs of the same layout."""
    model_type: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Native config key for each original config key."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that the release's own code gives to original config keys that a config leaves out,
    where the native class would choose other values."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Values of native config keys that every checkpoint of the family has."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of original config keys that are built into the native class. A tuple lists values with
    the same meaning, of which the conversion back writes the first. A list in a config stands for
    its entries, if these are all equal."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Original config keys of which every value but 0, false and null is refused, each with the
    reason as a clause."""
    refused_names: Mapping[str, str] = field(default_factory=dict)
    """Parts of names of releases that have the same class but another function, each with the reason
    as a clause."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Other config values, which have no effect on the function of the model and are written in the
    conversion back."""
    keys: tuple[tuple[str, str], ...] = ()
    """Pairs of original and native tensor names; empty if the names are equal."""
    regrouped: tuple[Regrouped, ...] = ()
    """Tensors that the native layout divides, joins or stacks."""
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
    block_causal: bool = False
    """True if a position attends to its own and earlier blocks; False if every position attends to
    every other. Releases of one family differ in the length of their blocks."""
    notes: tuple[str, ...] = ()

    @property
    def architectures(self) -> tuple[str, ...]:
        """Names of the class in configs of the original layout."""
        return (self.architecture, *self.other_architectures) if self.architecture else ()

    def released_as(self, source: str) -> Checkpoint | None:
        """Return the published checkpoint of a hub id, or of a folder that has its name."""
        name = _name(source)
        return next((c for c in self.checkpoints if _name(c.hub_id) == name), None)

    def block_length_of(self, source: str, stated: int | None) -> int | None:
        """Return the block length of a checkpoint; None if its attention has no blocks.

        It is the length that the config states, the one in the name, as in SDAR-1.7B-Chat-b16, or
        that of the published checkpoint with this name.

        Args:
            source: hub id or folder.
            stated: block length in the checkpoint's config.

        Raises:
            ModelError: nothing states the length, or the config and the name contradict each other.
        """
        release, name = self.released_as(source), _name(source)
        if not (self.block_causal or stated or (release and release.block_length) or "bd3lm" in name):
            return None
        match = re.search(r"[-_]b(\d+)(?![^-_])", name)
        named = int(match[1]) if match else None
        if stated and named and stated != named:
            raise ModelError(
                f"the config.json of {source} says blocks of {stated}, but the name {name} says blocks of {named}. "
                "Give the one that the model was trained with: --block-length."
            )
        if length := stated or named or (release.block_length if release else None):
            return length
        raise ModelError(
            f"{source} is a block diffusion model, but neither its config.json nor its name says how long its blocks are. "
            "Give the length that the model was trained with: --block-length."
        )

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear layers in the blocks of the native class."""
        return NATIVE_CLASSES[self.native_class].linear


def _name(source: str) -> str:
    """Return the last part of a hub id or a path."""
    return source.rstrip("/").rpartition("/")[2]
