"""The denoising film of a saved rollout for the report: the tokens that each step commits, the
values of the states, and the views (masked versions of a completion) that were trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.core.text import visible
from unmask.functional.selection import step_sum
from unmask.runs.saved_rollouts import SavedRollout

CODE_TASKS = frozenset({"humaneval", "mbpp", "kodcode", "program"})
"""Tasks whose completions are programs."""
MOST_FILLS = 12
"""Maximum number of different branches (other completions of a state) that are listed for a
state."""

SAME = 2**31 - 1
"""Mark in a one-step guess for a token that equals the final token. The mark is the largest int32,
which becomes 0xFFFF when it is cut to two bytes."""
NATS = 2e-4
"""Unit in which entropies are stored, in nats. It is chosen so that an entropy fits into two
bytes."""


class Vocabulary:
    """Tokens that occur in a run's saved rollouts. They are numbered from 0, in the order of their
    ids.

    Args:
        rollouts: saved rollouts of the run.
    """

    def __init__(self, rollouts: Iterable[SavedRollout]) -> None:
        texts: dict[int, str] = {}
        for saved in rollouts:
            path = saved.rollout.trajectory
            # Files of version 1 have no texts.
            texts |= saved.pieces or {i: f"#{i}" for i in path.tokens.unique().tolist()}
            if path.one_step_tokens is not None and not saved.pieces:
                texts |= {i: f"#{i}" for i in path.one_step_tokens.unique().tolist() if i not in texts}
        self.ids = sorted(texts)
        self.pieces = [visible(texts[i]) for i in self.ids]
        self._number = torch.zeros(max(self.ids, default=0) + 1, dtype=torch.int32)
        self._number[torch.tensor(self.ids, dtype=torch.long)] = torch.arange(len(self.ids), dtype=torch.int32)

    def numbers(self, tokens: Tensor) -> Tensor:
        """Return the numbers of tokens, int32; 0 for padding that is not a token of the run."""
        return self._number[tokens.long().clamp(max=len(self._number) - 1)]

    def narrow(self, numbers: Tensor) -> Tensor:
        """Return numbers of tokens as uint16 if the run has few enough tokens."""
        return numbers.clamp(max=0xFFFF).to(torch.uint16) if len(self.ids) < 0xFFFF else numbers


def film_of(
    saved: SavedRollout, step: int, config: Mapping[str, Any], vocabulary: Vocabulary
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the film of a saved rollout as JSON values and arrays, with numbers rounded to what a
    page can show.

    Args:
        saved: the saved rollout.
        step: training step of the rollout.
        config: recipe of the run, whose task decides the layout of completions.
        vocabulary: tokens of the run.
    """
    path, size = saved.rollout.trajectory, saved.rollout.group_size
    num_steps = int(path.horizon.max())
    guesses, guess_tokens = _guesses(saved, vocabulary)
    values, credit, forwards = _values(saved), _credit(saved, vocabulary), path.forwards.tolist()
    members = [
        {
            "reward": _round(float(saved.rollout.reward[row])),
            "values": values[row],
            "guesses": guesses[row],
            "forwards": forwards[row],
            **credit[row],
        }
        for row in range(len(path))
    ]
    film = {
        "step": step,
        "num_steps": num_steps,
        "temperature": path.sampler.temperature,
        "order": visible(path.sampler.order),
        "eos": vocabulary.ids.index(path.eos_id) if path.eos_id in vocabulary.ids else -1,
        "groups": [
            {
                "prompt": visible(prompt_text(saved.prompts[i])) if saved.prompts else None,
                "answer": visible(answer) if saved.answers and (answer := saved.answers[i]) is not None else None,
                "layout": layout_of(config, saved.prompts[i] if saved.prompts else None, path.tokens.shape[1]),
                "members": members[i * size : (i + 1) * size],
            }
            for i in range(len(path) // size)
        ],
    }
    joint = step_sum(path.entropy.double(), path.unmask_step, num_steps)
    return film, {
        "tokens": vocabulary.narrow(vocabulary.numbers(path.tokens)),
        "when": path.unmask_step.to(torch.int16),
        "entropy": (path.entropy / NATS).round().clamp(0, 0xFFFF).to(torch.uint16),
        "probability": (path.logprob.exp() * 0xFFFF).round().clamp(0, 0xFFFF).to(torch.uint16),
        "joint": joint.float(),
        "guesses": guess_tokens,
    }


def layout_of(config: Mapping[str, Any], prompt: object, length: int) -> dict[str, Any]:
    """Return the layout of a completion: `board` with its clues, `code` or `text`."""
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
    """Return a prompt as text; chat messages are joined."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in prompt if isinstance(m, Mapping))
    return str(prompt)


def entropy_scale(rollouts: Sequence[SavedRollout]) -> float:
    """Return the end of the colour scale in nats: the 98th percentile of the tokens' entropies,
    rounded up."""
    entropy = [k.rollout.trajectory.entropy[k.rollout.trajectory.entropy > 0].flatten() for k in rollouts]
    joined = torch.cat(entropy).double().sort().values if entropy else torch.zeros(0)
    if not len(joined):
        return 1.0
    high = float(joined[min(len(joined) - 1, int(0.98 * len(joined)))])
    return next((nice for nice in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0) if nice >= high), 12.0)


def _values(saved: SavedRollout) -> list[dict[int, float]]:
    """Return the value V_k = r(x̂_k) of each completion by step, where x̂_k is the one-step
    completion before step k. The rollout's value takes precedence over that of the saved guess."""
    rollout, guesses = saved.rollout, saved.guesses
    values: list[dict[int, float]] = [{} for _ in range(len(rollout.trajectory))]
    if guesses is not None and guesses.reward is not None:
        for row, rewards in enumerate(guesses.reward.tolist()):
            values[row] |= dict(zip(guesses.step.tolist(), map(_round, rewards), strict=True))
    if rollout.one_step_reward is not None:
        for row, rewards in enumerate(rollout.one_step_reward.tolist()):
            own = zip(rollout.trajectory.selected_steps[row].tolist(), rewards, strict=True)
            values[row] |= {step: _round(reward) for step, reward in own if step >= 0}
    return [_of_steps_that_wrote(saved, row, by_step) for row, by_step in enumerate(values)]


def _guesses(saved: SavedRollout, vocabulary: Vocabulary) -> tuple[list[dict[int, int]], Tensor]:
    """Return the one-step completions x̂_k of all completions as one tensor, and the row of each
    x̂_k in it.

    Returns:
        For each completion, the row of x̂_k in the tensor by step; and the tensor [n, L] of token
        numbers, with `SAME` for tokens that equal the final ones.
    """
    path = saved.rollout.trajectory
    final = vocabulary.numbers(path.tokens)
    guesses: list[dict[int, Tensor]] = [{} for _ in range(len(path))]
    if saved.guesses is not None:
        numbers = vocabulary.numbers(saved.guesses.tokens)
        numbers = numbers.masked_fill(numbers == final.unsqueeze(1), SAME)
        for row in range(len(path)):
            guesses[row] |= dict(zip(saved.guesses.step.tolist(), numbers[row], strict=True))
    if path.one_step_tokens is not None:
        numbers = vocabulary.numbers(path.one_step_tokens)
        numbers = numbers.masked_fill(numbers == final.unsqueeze(1), SAME)
        for row, steps in enumerate(path.selected_steps.tolist()):
            guesses[row] |= {step: numbers[row, slot] for slot, step in enumerate(steps) if step >= 0}
    index: list[dict[int, int]] = []
    rows: list[Tensor] = []
    for row, by_step in enumerate(guesses):
        shown = _of_steps_that_wrote(saved, row, by_step)
        index.append({step: len(rows) + i for i, step in enumerate(shown)})
        rows += shown.values()
    return index, vocabulary.narrow(torch.stack(rows) if rows else torch.zeros(0, path.tokens.shape[1]).int())


def _of_steps_that_wrote(saved: SavedRollout, row: int, by_step: dict[int, Any]) -> dict[int, Any]:
    """Return the entries without those of steps that committed no token of the completion."""
    wrote = set(saved.rollout.trajectory.unmask_step[row].tolist())
    return {step: value for step, value in sorted(by_step.items()) if step in wrote}


def _credit(saved: SavedRollout, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return the training signal of each completion.

    Returns:
        A dict for each completion: its `selected` steps; its `advantages` by step; the advantage of
            the `whole` completion; and its `fills`, the other branches, by step.
    """
    path, trained = saved.rollout.trajectory, saved.trained
    credit: list[dict[str, Any]] = [
        {"selected": [], "advantages": {}, "whole": None, "fills": {}} for _ in range(len(path))
    ]
    if trained is None:
        if path.selected_step is not None:
            for row, steps in enumerate(path.selected_step.tolist()):
                credit[row]["selected"] = sorted({step for step in steps if step >= 0})
        return credit
    sums: dict[tuple[int, int], list[float]] = {}
    for row, step, slot, advantage in zip(
        trained.row.tolist(), trained.step.tolist(), trained.slot.tolist(), trained.advantage.tolist(), strict=True
    ):
        if step >= 0:
            credit[row]["selected"].append(step)
        if isinstance(advantage, list) and slot >= 0:
            credit[row]["fills"][step] = _fills(saved, vocabulary, row, slot, advantage)
        else:
            # If a view has several actions, the sum of their advantages counts.
            total = sum(advantage) if isinstance(advantage, list) else advantage
            sums.setdefault((row, step), []).append(total)
    for (row, step), values in sums.items():
        mean = _round(sum(values) / len(values))
        if step >= 0:
            credit[row]["advantages"][step] = mean
        else:
            credit[row]["whole"] = mean
    for one in credit:
        one["selected"] = sorted(set(one["selected"]))
    return credit


def _fills(
    saved: SavedRollout, vocabulary: Vocabulary, row: int, slot: int, advantage: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the different branches of a state, the most frequent first, with their changes, reward
    and total advantage."""
    path, rewards = saved.rollout.trajectory, saved.rollout.branch_reward
    assert path.branch_tokens is not None
    assert rewards is not None
    tokens = [tuple(fill) for fill in path.branch_tokens[row, slot].tolist()]
    counts = Counter(tokens)
    first = {fill: tokens.index(fill) for fill in counts}
    return [
        {
            "times": times,
            "changes": _difference(vocabulary, torch.tensor(fill), path.tokens[row]),
            "reward": _round(float(rewards[row, slot, first[fill]])),
            "advantage": _round(sum(a for a, other in zip(advantage, tokens, strict=True) if other == fill)),
        }
        for fill, times in counts.most_common(MOST_FILLS)
    ]


def _difference(vocabulary: Vocabulary, tokens: Tensor, final: Tensor) -> list[int]:
    """Return alternating positions and token numbers, for the tokens that differ from the final
    ones."""
    where = (tokens.long() != final).nonzero().squeeze(-1)
    changes: list[int] = torch.stack([where, vocabulary.numbers(tokens)[where]], dim=-1).flatten().tolist()
    return changes


def _round(value: float) -> float:
    return round(value, 5)
