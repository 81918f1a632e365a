"""Logits of a state: the one place where a denoiser is called, for sampling and for scoring alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.records import DenoiserLike, PrefixCache


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
    keep: int = 0,
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
        keep: leading columns of prompt and completion that are to be held from now on.

    Returns:
        [B, n, V] logits at temperature 1.
    """
    ids = torch.cat([prompt_ids, completion], dim=1)
    padding_free = bool(prompt_mask.all())
    attention_mask = (
        None if padding_free else torch.cat([prompt_mask, torch.ones_like(completion, dtype=torch.bool)], dim=1)
    )
    wanted = positions + prompt_ids.shape[1]
    held: list[dict[str, Any]] = [{"prefix": prefix, "keep": keep} for prefix in prefixes] or [{}, {}]
    logits = denoiser(ids, attention_mask, wanted, **held[0])
    if guidance:
        blind = torch.cat([torch.full_like(prompt_ids, mask_id), completion], dim=1)
        without = denoiser(blind, attention_mask, wanted, **held[1])
        logits = without + (1.0 + guidance) * (logits - without)
    forbidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    forbidden[mask_id] = True
    return logits.masked_fill(forbidden, -torch.inf)
