"""The options that all methods with a probability ratio share, as they are by default."""

from __future__ import annotations

REGION = {
    "trust_region": "clip",
    "dual_clip": 0.0,
    "divergence": "binary_tv",
    "max_divergence": None,
    "anchor": "rollout",
    "ratio_cap": 20.0,
    "entropy_weight": 0.0,
}
"""Options of `RatioMethod`, without the bounds of the clip, which each method sets."""
