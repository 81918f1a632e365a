"""Logits of a state: the one place where a denoiser is called, for sampling and for scoring alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unmask.core.records import DenoiserLike, PrefixCache, Readout


def predict(
    denoiser: DenoiserLike,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion: Tensor,
    positions: Tensor,
    mask_id: int,
    guidance: float = 0.0,
    *,
    prefixes: Sequence[PrefixCache] = (),
    cache_until: int = 0,
) -> Tensor:
    """Logits at wanted completion positions, with classifier-free guidance and without the MASK token.

    logits = u + (1 + w)(c - u), c given the prompt and u given a prompt of MASKs (as LLaDA applies it,
    arXiv:2502.09992); w = 0 is c alone, one forward instead of two. MASK gets -inf: a committed position is never masked again
    ("zero masking probabilities", arXiv:2406.07524).

    Args:
        denoiser: any `DenoiserLike`, or one wrapped for training.
        prompt_ids: [B, P] int64, left-padded.
        prompt_mask: [B, P] bool, False at padding.
        completion: [B, L] int64, MASK where hidden.
        positions: [B, n] int64 in 0..L-1.
        mask_id: id of MASK.
        guidance: w >= 0.
        prefixes: for a block-causal denoiser, what it holds of these rows, and with guidance of them with a masked prompt.
        cache_until: leading columns of prompt and completion that are to be held from now on.

    Returns:
        [B, n, V] logits at temperature 1.
    """
    ids, attention_mask, wanted = _asked(prompt_ids, prompt_mask, completion, positions)
    held: list[dict[str, Any]] = [{"prefix": prefix, "cache_until": cache_until} for prefix in prefixes] or [{}, {}]
    logits = denoiser(ids, attention_mask, wanted, **held[0])
    if guidance:
        blind = torch.cat([torch.full_like(prompt_ids, mask_id), completion], dim=1)
        without = denoiser(blind, attention_mask, wanted, **held[1])
        logits = without + (1.0 + guidance) * (logits - without)
    return _without_mask(logits, mask_id)


def predict_in_chunks(
    denoiser: Callable[..., Tensor],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion: Tensor,
    positions: Tensor,
    mask_id: int,
    readout: Readout,
) -> Tensor:
    """What `readout` says of the logits that `predict` would give, which are never all there at once.

    Args:
        denoiser: our own, which can read its head in parts; may be wrapped for training.
        prompt_ids: see `predict`, as the next four.
        prompt_mask: see `predict`.
        completion: see `predict`.
        positions: see `predict`.
        mask_id: see `predict`.
        readout: what is wanted.

    Returns:
        [B, n, c].
    """
    asked = _asked(prompt_ids, prompt_mask, completion, positions)
    without_mask = replace(
        readout, function=lambda logits, inputs: readout.function(_without_mask(logits, mask_id), inputs)
    )
    return denoiser(*asked, readout=without_mask)


def _asked(
    prompt_ids: Tensor, prompt_mask: Tensor, completion: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids, attention mask (None if nothing is padding) and positions of prompt and completion together."""
    ids = torch.cat([prompt_ids, completion], dim=1)
    padding_free = bool(prompt_mask.all())
    attention_mask = (
        None if padding_free else torch.cat([prompt_mask, torch.ones_like(completion, dtype=torch.bool)], dim=1)
    )
    return ids, attention_mask, positions + prompt_ids.shape[1]


def _without_mask(logits: Tensor, mask_id: int) -> Tensor:
    forbidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    forbidden[mask_id] = True
    return logits.masked_fill(forbidden, -torch.inf)
