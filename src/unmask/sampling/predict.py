"""Logits of a state. All logits for sampling and for log-probabilities come from this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unmask.core.denoising import DenoiserLike, KeyValueCache, NoisyCopies, Readout


class Prediction(NamedTuple):
    """What a model says about n positions of B states."""

    logits: Tensor
    """[B, n, V] logits at temperature 1; MASK is -inf."""
    score: Tensor | None = None
    """[B, n] scores of the position head; None if they are not requested."""

    def rows(self, index: Tensor) -> Prediction:
        """Return the rows at `index`."""
        return Prediction(self.logits[index], None if self.score is None else self.score[index])

    @staticmethod
    def cat(parts: Sequence[Prediction]) -> Prediction:
        """Concatenate the rows of several predictions."""
        scores = [part.score for part in parts if part.score is not None]
        return Prediction(torch.cat([part.logits for part in parts]), torch.cat(scores) if scores else None)


def predict(
    denoiser: DenoiserLike,
    prompt_ids: Tensor,
    prompt_mask: Tensor | None,
    completion: Tensor,
    positions: Tensor,
    mask_id: int,
    guidance: float = 0.0,
    *,
    caches: Sequence[KeyValueCache] = (),
    window: slice = slice(None),
    copies: NoisyCopies | None = None,
    scores: bool = False,
) -> Prediction:
    """Compute the logits at chosen completion positions, with classifier-free guidance and without
    MASK.

    logits = u + (1 + w)(c - u), where c is computed with the prompt and u with a prompt of MASKs,
    as in LLaDA (arXiv:2502.09992). For w = 0 this is c, and one forward pass is enough. MASK gets
    -inf: a committed position is never masked again ("zero masking probabilities",
    arXiv:2406.07524). The scores of a position head are guided in the same way.

    Args:
        denoiser: any `DenoiserLike`; may be wrapped for training.
        prompt_ids: [B, P] int64 prompt tokens, padded on the left.
        prompt_mask: [B, P] bool, False at padding; None if there is no padding.
        completion: [B, L] int64 tokens, MASK at masked positions.
        positions: [B, n] int64 positions in 0..L-1.
        mask_id: token id of MASK.
        guidance: weight w >= 0 of classifier-free guidance.
        caches: keys and values of these rows, to read and to update; with guidance, a second cache
            for the masked prompt. Without caches, every column runs.
        window: columns of prompt and completion that run; `caches` hold those of the other columns.
        copies: description of all columns if `completion` holds noisy copies of blocks, for a
            block-causal denoiser; the positions are then columns of `completion`.
        scores: True to return the scores of the position head, too.
    """
    ids, attention_mask, columns = model_input(prompt_ids, prompt_mask, completion, positions)
    begin = window.start or 0
    options: dict[str, Any] = {} if copies is None else {"copies": copies}
    cached: list[dict[str, Any]] = [{"cache": cache, "begin": begin} for cache in caches] or [options, options]

    def evaluate(ids: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        if scores:
            options = options | {"scores": True}
        output: Any = denoiser(ids[:, window], attention_mask, columns, **options)
        return output if scores else (output,)

    outputs = evaluate(ids, cached[0])
    if guidance:
        unprompted = torch.cat([torch.full_like(prompt_ids, mask_id), completion], dim=1)
        unconditional = evaluate(unprompted, cached[1])
        pairs = zip(outputs, unconditional, strict=True)
        outputs = tuple(u + (1.0 + guidance) * (c - u) for c, u in pairs)
    return Prediction(_without_mask(outputs[0], mask_id), *outputs[1:])


def predict_in_chunks(
    denoiser: Callable[..., Tensor],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion: Tensor,
    positions: Tensor,
    mask_id: int,
    readout: Readout,
    copies: NoisyCopies | None = None,
    scores: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Evaluate a function of the logits that `predict` would return, in chunks of positions.

    Args:
        denoiser: denoiser that takes a `Readout`; may be wrapped for training.
        prompt_ids: see `predict`, as for the next four arguments.
        prompt_mask: see `predict`.
        completion: see `predict`.
        positions: see `predict`.
        mask_id: see `predict`.
        readout: function of the logits, and the number of positions in a chunk.
        copies: see `predict`.
        scores: see `predict`.

    Returns:
        [n, c] values of the function at the positions that are read, and the scores there, [n].
    """
    inputs = model_input(prompt_ids, prompt_mask, completion, positions)
    without_mask = replace(
        readout,
        function=lambda logits, inputs: readout.function(_without_mask(logits, mask_id), inputs),
        forbidden=mask_id,
    )
    options: dict[str, Any] = {} if copies is None else {"copies": copies}
    if scores:
        options["scores"] = True
    output: Any = denoiser(*inputs, readout=without_mask, **options)
    return output if scores else (output, None)


def model_input(
    prompt_ids: Tensor, prompt_mask: Tensor | None, completion: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return token ids, attention mask (None if there is no padding) and positions of prompt and
    completion together."""
    ids = torch.cat([prompt_ids, completion], dim=1)
    attention_mask = None
    if prompt_mask is not None and not prompt_mask.all():
        attention_mask = torch.cat([prompt_mask, torch.ones_like(completion, dtype=torch.bool)], dim=1)
    return ids, attention_mask, positions + prompt_ids.shape[1]


def _without_mask(logits: Tensor, mask_id: int) -> Tensor:
    """Set the logit of MASK to -inf in place: a copy of the logits of a large vocabulary would
    double the peak memory of a denoising step."""
    logits[..., mask_id] = -torch.inf
    return logits
