"""A kept rollout as the report's film: what was written when, what each state promised, and what was trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.functional.selection import step_sum
from unmask.kept import Kept
from unmask.report.text import visible

CODE_TASKS = frozenset({"humaneval", "mbpp", "kodcode", "program"})
"""Tasks whose completions are programs."""
MOST_FILLS = 12
"""Different other actions of a state that are listed."""

Film = dict[str, Any]


def film_of(kept: Kept, step: int, config: Mapping[str, Any]) -> Film:
    """Everything that the film of one kept rollout shows; numbers rounded to what a page can show.

    Args:
        kept: the rollout with its notes.
        step: of the run.
        config: of the run, whose task says how a completion looks.
    """
    path, size = kept.rollout.trajectory, kept.rollout.group_size
    joint = step_sum(path.entropy.double(), path.unmask_step, path.num_steps)
    values, guesses = _values(kept), _guesses(kept)
    credit = _credit(kept)
    members = [
        {
            "reward": _round(float(kept.rollout.reward[row])),
            "text": visible(kept.completions[row]) if kept.completions else "",
            "tokens": path.tokens[row].tolist(),
            "when": path.unmask_step[row].tolist(),
            "entropy": _rounds(path.entropy[row]),
            "logprob": _rounds(path.logprob[row]),
            "joint": _rounds(joint[row]),
            "values": values[row],
            "guesses": guesses[row],
            **credit[row],
        }
        for row in range(len(path))
    ]
    return {
        "step": step,
        "num_steps": path.num_steps,
        "temperature": path.temperature,
        "order": visible(path.order),
        "eos": path.eos_id,
        "pieces": {token: visible(text) for token, text in kept.pieces.items()},
        "groups": [
            {
                "prompt": visible(prompt_text(kept.prompts[i])) if kept.prompts else None,
                "answer": visible(answer) if kept.answers and (answer := kept.answers[i]) is not None else None,
                "layout": layout_of(config, kept.prompts[i] if kept.prompts else None, path.tokens.shape[1]),
                "members": members[i * size : (i + 1) * size],
            }
            for i in range(len(path) // size)
        ],
    }


def layout_of(config: Mapping[str, Any], prompt: object, length: int) -> dict[str, Any]:
    """How a completion is laid out: `board` with its clues, `code` or `text`."""
    task = config.get("task")
    kind = task.get("type") if isinstance(task, Mapping) else None
    if kind == "sudoku" and length == 16 and (prompt is None or re.fullmatch(r"[0-4]{16}=", str(prompt))):
        return {
            "kind": "board",
            "columns": 4,
            "box": 2,
            "clues": [c if c != "0" else "" for c in str(prompt or "")[:16]],
        }
    return {"kind": "code" if kind in CODE_TASKS else "text"}


def prompt_text(prompt: object) -> str:
    """A prompt as text: as it is, or message by message."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in prompt if isinstance(m, Mapping))
    return str(prompt)


def entropy_scale(rollouts: Sequence[Kept]) -> float:
    """Nats at which the colour ends: what 98 of 100 written tokens stay below, rounded up to a number that reads well."""
    entropy = [k.rollout.trajectory.entropy[k.rollout.trajectory.entropy > 0].flatten() for k in rollouts]
    joined = torch.cat(entropy).double().sort().values if entropy else torch.zeros(0)
    if not len(joined):
        return 1.0
    high = float(joined[min(len(joined) - 1, int(0.98 * len(joined)))])
    return next((nice for nice in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0) if nice >= high), 12.0)


def _values(kept: Kept) -> list[dict[int, float]]:
    """For each completion V_k = r(x̂_k) by step: the rollout's own where it has one, else that of the guess."""
    rollout, guesses = kept.rollout, kept.guesses
    found: list[dict[int, float]] = [{} for _ in range(len(rollout.trajectory))]
    if guesses is not None and guesses.reward is not None:
        for row, rewards in enumerate(guesses.reward.tolist()):
            found[row] |= dict(zip(guesses.step.tolist(), map(_round, rewards), strict=True))
    if rollout.one_step_reward is not None:
        for row, rewards in enumerate(rollout.one_step_reward.tolist()):
            own = zip(rollout.trajectory.kept_steps[row].tolist(), rewards, strict=True)
            found[row] |= {step: _round(reward) for step, reward in own if step >= 0}
    return [_of_steps_that_wrote(kept, row, by_step) for row, by_step in enumerate(found)]


def _guesses(kept: Kept) -> list[dict[int, list[int]]]:
    """For each completion x̂_k by step, as position and token in turn where it differs from the finished completion."""
    path = kept.rollout.trajectory
    found: list[dict[int, Tensor]] = [{} for _ in range(len(path))]
    if kept.guesses is not None:
        for row in range(len(path)):
            found[row] |= dict(zip(kept.guesses.step.tolist(), kept.guesses.tokens[row], strict=True))
    if path.greedy_tokens is not None:
        for row, steps in enumerate(path.kept_steps.tolist()):
            found[row] |= {step: path.greedy_tokens[row, slot] for slot, step in enumerate(steps) if step >= 0}
    return [
        _of_steps_that_wrote(kept, row, {k: _difference(tokens, path.tokens[row]) for k, tokens in by_step.items()})
        for row, by_step in enumerate(found)
    ]


def _of_steps_that_wrote(kept: Kept, row: int, by_step: dict[int, Any]) -> dict[int, Any]:
    """Only those of steps that committed something: a row that has ended asks the policy nothing."""
    wrote = set(kept.rollout.trajectory.unmask_step[row].tolist())
    return {step: value for step, value in sorted(by_step.items()) if step in wrote}


def _credit(kept: Kept) -> list[dict[str, Any]]:
    """For each completion: `selected` steps, `advantages` by step, the `whole` completion's one, other `fills` by step."""
    path, trained = kept.rollout.trajectory, kept.trained
    credit: list[dict[str, Any]] = [
        {"selected": [], "advantages": {}, "whole": None, "fills": {}} for _ in range(len(path))
    ]
    if trained is None:
        if path.greedy_step is not None:
            for row, steps in enumerate(path.greedy_step.tolist()):
                credit[row]["selected"] = sorted({step for step in steps if step >= 0})
        return credit
    sums: dict[tuple[int, int], list[float]] = {}
    for row, step, slot, advantage in zip(
        trained.row.tolist(), trained.step.tolist(), trained.slot.tolist(), trained.advantage.tolist(), strict=True
    ):
        if step >= 0:
            credit[row]["selected"].append(step)
        if not isinstance(advantage, list):
            sums.setdefault((row, step), []).append(advantage)
        elif step >= 0 and (listed := _fills(kept, row, slot, advantage)):
            credit[row]["fills"][step] = listed
    for (row, step), values in sums.items():
        mean = _round(sum(values) / len(values))
        if step >= 0:
            credit[row]["advantages"][step] = mean
        else:
            credit[row]["whole"] = mean
    for one in credit:
        one["selected"] = sorted(set(one["selected"]))
    return credit


def _fills(kept: Kept, row: int, slot: int, advantage: Sequence[float]) -> list[dict[str, Any]]:
    """The different actions drawn at a state, the most frequent first: where they differ, reward, advantage of all together."""
    path, rewards = kept.rollout.trajectory, kept.rollout.fill_reward
    if path.fill_tokens is None or rewards is None or path.fill_tokens.shape[2] != len(advantage):
        return []
    tokens = [tuple(fill) for fill in path.fill_tokens[row, slot].tolist()]
    counts = Counter(tokens)
    first = {fill: tokens.index(fill) for fill in counts}
    return [
        {
            "times": times,
            "changes": _difference(torch.tensor(fill), path.tokens[row]),
            "reward": _round(float(rewards[row, slot, first[fill]])),
            "advantage": _round(sum(a for a, other in zip(advantage, tokens, strict=True) if other == fill)),
        }
        for fill, times in counts.most_common(MOST_FILLS)
    ]


def _difference(tokens: Tensor, final: Tensor) -> list[int]:
    """Position and token in turn, where tokens differ from the final ones."""
    where = (tokens.long() != final).nonzero().squeeze(-1)
    return torch.stack([where, tokens.long()[where]], dim=-1).flatten().tolist()


def _rounds(values: Tensor) -> list[float]:
    return (values.double() * 1e5).round().div(1e5).tolist()


def _round(value: float) -> float:
    return round(value, 5)
