"""What a resumed run must have in common with the run that it continues: its settings, except those
that do not change results, and its examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FREE_TO_CHANGE = frozenset(
    {
        "output_dir",
        "report_to",
        "push_to_hub",
        "save_steps",
        "save_total_limit",
        "log_rollouts_steps",
        "log_rollouts_groups",
        "log_rollouts_guesses",
        "stuck_timeout",
        "reward_timeout",
        "reward_item_timeout",
        "reward_workers",
        "rollout_batch_size",
        "views_per_forward",
        "max_tokens_per_forward",
        "reference_offload",
        "rollout_weights",
        "rollout_engine.type",
        "rollout_engine.urls",
        "rollout_engine.weights_dir",
        "rollout_engine.timeout",
        "rollout_engine.retries",
        "rollout_engine.max_wait",
        "gradient_checkpointing",
        "compile",
        "task.unusable_rows",
        "evaluation.batch_size",
    }
)
"""Settings that a resumed run may change. They do not change results, except that other batch sizes
may round differently."""


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the settings, by dotted key, that differ and that a resumed run may not change.

    Example:
        >>> changed_settings({"seed": 0, "save_steps": 5}, {"seed": 1, "save_steps": 9})
        {'seed'}
    """
    return {key for key in {*before, *now} if before.get(key) != now.get(key)} - FREE_TO_CHANGE


def rows_that_count(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the parts of two data records that must agree.

    The parts are empty if the runs use the same examples in the same order. Otherwise they are
    complete, so that a message can name the differences. A record of an earlier version does not
    name the examples used; everything in it must agree.
    """
    if "used" in before and before["used"] == now.get("used"):
        return {}, {}
    names = {*before} - {"left_out"}
    return {name: before[name] for name in names}, {name: facts for name, facts in now.items() if name in names}
