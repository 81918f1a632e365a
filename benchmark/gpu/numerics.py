"""Checks of numbers: rates of the card, agreement of batch shapes, the head's precision, and the
fused log-probability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmark.gpu.bench import Bench
from benchmark.gpu.harness import Outcome, check, timed
from unmask.functional.linear_logprob import linear_logprobs
from unmask.trainer.model_limits import logits_at_once
from unmask.trainer.peak import peak_bytes


@check(20)
def rates(bench: Bench) -> Outcome:
    """Rates that bound everything else: matrix products and copies."""
    size = 8192 if bench.is_gpu else 256
    square = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    adapter = torch.randn(size // 2, bench.scale.rank, device=bench.device, dtype=torch.bfloat16)
    states = square[:, : size // 2].contiguous()
    wide_states, wide_adapter = states.float(), adapter.float()
    large = torch.empty(2**28 if bench.is_gpu else 2**18, device=bench.device)
    operations = 2 * size * (size // 2) * bench.scale.rank
    return Outcome(
        None,
        {
            "TFLOP/s, bf16": 2e-12 * size**3 / timed(lambda: square @ square),
            "TFLOP/s, bf16 adapter": 1e-12 * operations / timed(lambda: states @ adapter),
            "TFLOP/s, float32 adapter": 1e-12 * operations / timed(lambda: wide_states @ wide_adapter),
            "TB/s, copy": 2e-12 * large.nbytes / timed(large.clone),
        },
    )


@check(35)
@torch.no_grad()
def agreement_of_batches(bench: Bench) -> Outcome:
    """Log-probabilities of one row alone, in batches, next to a padded row, and with a float32
    head: what differs is rounding, and this is its size on the card."""
    denoiser, rows = bench.model, max(bench.scale.rows)
    ids, _ = bench.prompts(rows)
    length = bench.scale.sampler["max_completion_length"]
    whole = torch.cat([ids, torch.full((rows, length), denoiser.mask_id, device=bench.device)], 1)
    at = torch.arange(ids.shape[1], ids.shape[1] + 16, device=bench.device).expand(rows, -1)

    def logprobs(count: int, attention: Tensor | None = None) -> Tensor:
        return denoiser(whole[:count], attention, at[:count]).float().log_softmax(-1)[0]

    alone = logprobs(1)
    token = alone.argmax(-1, keepdim=True)

    def largest(other: Tensor) -> float:
        return float((other.gather(-1, token) - alone.gather(-1, token)).abs().max())

    mask = torch.ones(min(8, rows), whole.shape[1], dtype=torch.bool, device=bench.device)
    mask[1, :5] = False
    head = denoiser.backbone.get_output_embeddings()
    hidden = denoiser.backbone.base_model(input_ids=whole[:1], use_cache=False).last_hidden_state[0, at[0]]
    precise = torch.nn.functional.linear(hidden.float(), head.weight.float()).log_softmax(-1)
    rounded = torch.nn.functional.linear(hidden, head.weight).float().log_softmax(-1)
    of_head = float((head(hidden).log_softmax(-1) - precise).abs().max())
    return Outcome(
        of_head < 1e-2,
        {
            "largest difference in nats by rows": {n: largest(logprobs(n)) for n in (2, 7, rows)},
            "equal tokens by rows": {n: bool((logprobs(n).argmax(-1) == token[:, 0]).all()) for n in (7, rows)},
            "next to a padded row": largest(logprobs(len(mask), mask)),
            "the head against float32": of_head,
            "a head rounded to bf16 against float32": float((rounded - precise).abs().max()),
        },
    )


@check(20)
def fused_logprob(bench: Bench) -> Outcome:
    """Log-probabilities that keep only the log-normalisers, against a log-softmax of all logits:
    values, gradient, time and peak memory of a forward and backward pass."""
    count = 512 if bench.is_gpu else 32
    shape = {"device": bench.device, "dtype": torch.bfloat16}
    states: Tensor = torch.randn(count, bench.scale.hidden, **shape).requires_grad_()  # type: ignore[call-overload]
    weight = (5 / bench.scale.hidden**0.5) * torch.randn(bench.scale.vocabulary, bench.scale.hidden, **shape)  # type: ignore[call-overload]
    tokens = torch.randint(bench.scale.eos_id, (count, 1), device=bench.device)

    # As many positions as an update computes at once.
    chunk = logits_at_once(bench.device.type) // bench.scale.vocabulary

    def fused() -> Tensor:
        return linear_logprobs(states, weight, tokens, temperature=0.9, forbidden=bench.scale.mask_id, chunk_size=chunk)

    def plain() -> Tensor:
        logits = torch.nn.functional.linear(states, weight).float()
        logits[:, bench.scale.mask_id] = -torch.inf
        return (logits / 0.9).log_softmax(-1).gather(1, tokens)

    def back(function: Any) -> Tensor:
        states.grad = None
        function().sum().backward()
        assert states.grad is not None
        return states.grad.clone()

    precise = (states.detach().float() @ weight.float().T).index_fill(
        1, torch.tensor([bench.scale.mask_id], device=bench.device), -torch.inf
    )
    wanted = (precise / 0.9).log_softmax(-1).gather(1, tokens)
    difference = float((fused().detach() - wanted).abs().max())
    gradients = back(fused).float(), back(plain).float()
    gradient = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    seconds = {name: timed(lambda f=f: back(f)) for name, f in (("fused", fused), ("plain", plain))}  # type: ignore[misc]
    peaks = {
        name: peak_bytes(lambda f=f: back(f), device=bench.device)  # type: ignore[misc]
        for name, f in (("fused", fused), ("plain", plain))
    }
    return Outcome(
        # At toy size all logits fit into one chunk, and are kept.
        difference < 1e-2 and gradient < 0.05 and (peaks["fused"] < peaks["plain"] or not bench.has_bounds),
        {
            "difference in nats": difference,
            "difference of the gradient": gradient,
            "plain / fused, time": seconds["plain"] / seconds["fused"],
            "plain / fused, peak memory": peaks["plain"] / peaks["fused"],
        },
    )
