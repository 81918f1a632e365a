"""Logits of released layouts in plain torch, which uses neither transformers nor the package.

It was written from the published descriptions of the models (their papers and model pages), reads config.json and the
tensors under the release's own names, and computes in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]


def plain_weights(folder: Path) -> Weights:
    """Return the tensors of a folder in float64."""
    return {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}


def plain_logits(folder: Path, ids: Tensor, block_length: int | None = None, weights: Weights | None = None) -> Tensor:
    """Return the logits [B, S, V] of a folder in its original layout, at the column where the head computes them.

    Args:
        folder: config.json and model.safetensors.
        ids: [B, S] tokens.
        block_length: length of the blocks, counted from the end; None if every position attends to every other.
        weights: tensors to use instead of those of the folder.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = plain_weights(folder) if weights is None else weights
    length = ids.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool)
    if block_length is not None:
        for query in range(length):
            for key in range(length):
                visible[query, key] = (length - 1 - key) // block_length >= (length - 1 - query) // block_length
    return PLAIN[config["architectures"][0]](config, weights, ids, visible)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gated(x: Tensor, weights: Weights, prefix: str) -> Tensor:
    gate, up, down = (weights[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (swish(x @ gate.T) * (x @ up.T)) @ down.T


def rotated(x: Tensor, theta: float, share: float) -> Tensor:
    """Rotate the first `share` of each head; entry j of the rotated part turns together with entry j + half."""
    width = int(x.shape[-1] * share)
    half = width // 2
    angle = torch.arange(x.shape[-2]).double()[:, None] * theta ** (-torch.arange(half).double() / half)
    one, two, rest = x[..., :half], x[..., half:width], x[..., width:]
    return torch.cat(
        [one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin(), rest],
        dim=-1,
    )


def attended(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention of [B, heads, S, width] queries, in which several heads share keys and values; returns [B, S, D]."""
    repeats = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // repeats].transpose(1, 2) / math.sqrt(q.shape[-1])
        out[:, head] = scores.masked_fill(~visible, -math.inf).softmax(-1) @ v[:, head // repeats]
    return out.transpose(1, 2).flatten(2)


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def llama_attention(config: dict[str, Any], weights: Weights, prefix: str, x: Tensor, visible: Tensor) -> Tensor:
    """Attention under Llama's names, with biases and norms of each head where the file has them."""
    projected = []
    for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
        y = x @ weights[f"{prefix}{name}_proj.weight"].T
        if (bias := weights.get(f"{prefix}{name}_proj.bias")) is not None:
            y = y + bias
        y = split(y, config[heads])
        if (norm := weights.get(f"{prefix}{name}_norm.weight")) is not None:
            y = rms(y, norm, config["rms_norm_eps"])
        projected.append(y if name == "v" else rotated(y, config["rope_theta"], 1.0))
    return attended(*projected, visible) @ weights[f"{prefix}o_proj.weight"].T


def softmax_mixture(config: dict[str, Any], weights: Weights, prefix: str, x: Tensor) -> Tensor:
    """Mixture whose router is a softmax over all experts; the chosen probabilities are normalised if the config says so."""
    out = torch.zeros_like(x)
    chances = (x @ weights[f"{prefix}gate.weight"].T).softmax(-1)
    for place in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])):
        at = tuple(place.tolist())
        chosen = chances[at].argsort(descending=True)[: config["num_experts_per_tok"]]
        total = chances[at][chosen].sum() if config["norm_topk_prob"] else 1.0
        for expert in chosen.tolist():
            out[at] += chances[at][expert] / total * gated(x[at], weights, f"{prefix}experts.{expert}.")
    return out


def sigmoid_mixture(config: dict[str, Any], weights: Weights, prefix: str, x: Tensor) -> Tensor:
    """Mixture of LLaDA2: the best groups of experts first, by the sum of their two best scores with bias, then the best
    experts in these groups; weights are scores without bias, normalised and scaled. A shared expert is added."""
    out = torch.zeros_like(x)
    groups, kept = config["n_group"], config["topk_group"]
    for place in torch.cartesian_prod(*map(torch.arange, x.shape[:-1])):
        at = tuple(place.tolist())
        score = 1 / (1 + (-(weights[f"{prefix}gate.weight"] @ x[at])).exp())
        biased = score + weights[f"{prefix}gate.expert_bias"]
        members = torch.arange(len(score)).view(groups, -1)
        best = sorted(range(groups), key=lambda g: -float(biased[members[g]].sort().values[-2:].sum()))[:kept]
        allowed = [int(e) for g in best for e in members[g]]
        chosen = sorted(allowed, key=lambda e: -float(biased[e]))[: config["num_experts_per_tok"]]
        total = sum(score[e] for e in chosen)
        for expert in chosen:
            weight = config["routed_scaling_factor"] * score[expert] / total
            out[at] += weight * gated(x[at], weights, f"{prefix}experts.{expert}.")
    return out + gated(x, weights, f"{prefix}shared_experts.")


def llama_like(
    mlp: Callable[[dict[str, Any], Weights, str, Tensor], Tensor],
) -> Callable[[dict[str, Any], Weights, Tensor, Tensor], Tensor]:
    """Return the model with Llama's names and the given MLP."""

    def logits(config: dict[str, Any], weights: Weights, ids: Tensor, visible: Tensor) -> Tensor:
        eps, x = config["rms_norm_eps"], weights["model.embed_tokens.weight"][ids]
        for i in range(config["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            normed = rms(x, weights[f"{layer}input_layernorm.weight"], eps)
            x = x + llama_attention(config, weights, f"{layer}self_attn.", normed, visible)
            normed = rms(x, weights[f"{layer}post_attention_layernorm.weight"], eps)
            x = x + mlp(config, weights, f"{layer}mlp.", normed)
        head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
        return rms(x, weights["model.norm.weight"], eps) @ head.T

    return logits


def llada2(config: dict[str, Any], weights: Weights, ids: Tensor, visible: Tensor) -> Tensor:
    eps, x = config["rms_norm_eps"], weights["model.word_embeddings.weight"][ids]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    turn = (config["rope_theta"], config["partial_rotary_factor"])
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        normed = rms(x, weights[f"{layer}input_layernorm.weight"], eps)
        joined = split(normed @ weights[f"{layer}attention.query_key_value.weight"].T, heads + 2 * keys)
        q, k, v = joined[:, :heads], joined[:, heads : heads + keys], joined[:, heads + keys :]
        q = rotated(rms(q, weights[f"{layer}attention.query_layernorm.weight"], eps), *turn)
        k = rotated(rms(k, weights[f"{layer}attention.key_layernorm.weight"], eps), *turn)
        x = x + attended(q, k, v, visible) @ weights[f"{layer}attention.dense.weight"].T
        normed = rms(x, weights[f"{layer}post_attention_layernorm.weight"], eps)
        is_dense = i < config["first_k_dense_replace"]
        mlp = f"{layer}mlp."
        x = x + (gated(normed, weights, mlp) if is_dense else sigmoid_mixture(config, weights, mlp, normed))
    return rms(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T


_dense = llama_like(lambda _, weights, prefix, x: gated(x, weights, prefix))
PLAIN = {
    "DreamModel": _dense,
    "Fast_dLLM_QwenForCausalLM": _dense,
    "ILLaDAForCausalLM": _dense,
    "LLaDA2MoeModelLM": llada2,
    "LLaDAMoEModelLM": llama_like(softmax_mixture),
    "SDARMoeForCausalLM": llama_like(softmax_mixture),
}
"""Models by the class that a release's config names."""
