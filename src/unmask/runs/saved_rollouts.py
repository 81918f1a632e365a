"""Rollouts that a run saves for inspection. They contain a few groups with their texts, the trained
views (masked versions of completions) and the one-step guesses (one-step completions that are saved
to be shown).

A file is in the safetensors format. It holds the tensors by name, and everything else as JSON in
its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.core.config import SamplerConfig
from unmask.core.errors import RunError
from unmask.core.records import Rollout, Trajectory
from unmask.runs.atomic import replaced_whole

SCHEMA_VERSION = 5
"""Version of the file format. It rises when a field changes its meaning or when older code cannot
read it."""
READABLE_VERSIONS = (1, 2, 3, 4, 5)
"""Versions that can be read. Version 1 has only the rollout and the completions. Version 2 does not
record where a turn ends. Up to version 3 the sampler settings are separate entries. Up to version 4
some tensors have other names."""
_NAMES_BEFORE_5 = {
    "greedy_step": "selected_step",
    "greedy_tokens": "one_step_tokens",
    "fill_tokens": "branch_tokens",
    "fill_reward": "branch_reward",
}

_GUESSES, _TRAINED = "note/guess_", "note/trained_"
"""Prefixes of the names of tensors that are not part of the rollout."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """Greedy one-step completions x̂_k of states on the paths, predicted by the policy that sampled
    the paths."""

    step: Tensor
    """[J] int32, ascending: denoising steps k."""
    tokens: Tensor
    """[B, J, L] int32: the state before step k with every masked position filled with its most
    likely token."""
    reward: Tensor | None = None
    """[B, J] float32: reward of each one-step completion; None if a reward function failed on these
    completions."""


@dataclass(frozen=True, slots=True)
class TrainedViews:
    """N views of the saved completions that the update used."""

    row: Tensor
    """[N] int32: index of the completion."""
    step: Tensor
    """[N] int32: denoising step whose state the view shows; -1 if the view does not show a state of
    the path."""
    slot: Tensor
    """[N] int32: slot in the rollout of the branches that the view reads; -1 if it reads the
    completion itself."""
    advantage: Tensor
    """[N] float32: advantage of the view; [N, M] if each of M actions of a state has an
    advantage."""


@dataclass(frozen=True, slots=True)
class SavedRollout:
    """Saved groups of one training step, with B completions in total."""

    rollout: Rollout
    """Trajectories and rewards of the groups."""
    completions: list[str]
    """Text of each of the B completions."""
    prompts: list[Any]
    """Prompt of each group: a text, or chat messages. Empty in files of version 1."""
    answers: list[str | None]
    """Known answer to each prompt, if the task has one. Empty in files of version 1."""
    pieces: Mapping[int, str]
    """Text of each token in the rollout, by its id. Empty in files of version 1."""
    guesses: Guesses | None = None
    """One-step completions along the paths, if they were saved."""
    trained: TrainedViews | None = None
    """Views that the update used, if they were saved."""

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        from safetensors.torch import save

        trajectory = self.rollout.trajectory
        tensors = trajectory.tensors() | self.rollout.rewards()
        settings = {f.name: getattr(trajectory, f.name) for f in fields(trajectory) if f.name not in tensors}
        settings |= {"sampler": trajectory.sampler.model_dump(mode="json"), "schema_version": SCHEMA_VERSION}
        facts = {
            "group_size": self.rollout.group_size,
            "trajectory": settings,
            "completions": self.completions,
            "prompts": self.prompts,
            "answers": self.answers,
            "pieces": {str(token): text for token, text in self.pieces.items()},
        }
        tensors |= _named(_GUESSES, self.guesses) | _named(_TRAINED, self.trained)
        content = save({k: v.cpu().contiguous() for k, v in tensors.items()}, {"unmask": json.dumps(facts)})
        path.parent.mkdir(exist_ok=True)
        with replaced_whole(path) as aside:
            aside.write_bytes(content)

    @staticmethod
    def load(path: Path) -> SavedRollout:
        """Read a file that `save` wrote, in this version or an earlier one.

        Raises:
            RunError: if the file has an unknown schema version, or is damaged.
        """
        try:
            return _loaded(path)
        except RunError:
            raise
        except Exception as error:  # a damaged file makes safetensors or json raise many kinds of errors
            raise RunError(
                f"{path} cannot be read ({type(error).__name__}: {error}). Restore it from a copy, or remove it."
            ) from error


def saved_path(run: Path, step: int) -> Path:
    """Return the path in a run folder of the saved rollout of a training step, counted from 1."""
    return run / "rollouts" / f"step-{step:08d}.safetensors"


def saved_steps(run: Path) -> list[int]:
    """Return the training steps whose rollouts a run saved, in ascending order."""
    names = (path.stem.removeprefix("step-") for path in (run / "rollouts").glob("step-*.safetensors"))
    return sorted(int(name) for name in names if name.isdecimal())


def _loaded(path: Path) -> SavedRollout:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["unmask"])
        settings = facts["trajectory"]
        version = settings.pop("schema_version")
        if version not in READABLE_VERSIONS:
            raise RunError(
                f"{path} has schema version {version}, but this unmask reads versions up to {SCHEMA_VERSION}. "
                "Install a newer unmask."
            )
        tensors = {_NAMES_BEFORE_5.get(name, name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    settings["sampler"] = _sampler_of(settings, tensors["tokens"].shape[1])
    guesses, trained = _taken(tensors, _GUESSES), _taken(tensors, _TRAINED)
    rewards = {f.name: tensors.pop(f.name) for f in fields(Rollout) if f.name in tensors}
    return SavedRollout(
        Rollout(Trajectory(**tensors, **settings), facts["group_size"], **rewards),
        facts.get("completions", []),
        facts.get("prompts", []),
        facts.get("answers", []),
        {int(token): text for token, text in facts.get("pieces", {}).items()},
        Guesses(**guesses) if guesses else None,
        TrainedViews(**trained) if trained else None,
    )


def _named(prefix: str, record: Guesses | TrainedViews | None) -> dict[str, Tensor]:
    """Return the tensors of a record by their names in the file."""
    values = {f.name: getattr(record, f.name) for f in fields(record)} if record else {}
    return {prefix + name: value for name, value in values.items() if value is not None}


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors with a prefix from `tensors`, and return them by their names in the
    record."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _sampler_of(settings: dict[str, Any], length: int) -> SamplerConfig:
    """Return the sampler settings of a saved rollout, and remove those that older versions wrote as
    separate entries."""
    if "sampler" in settings:
        return SamplerConfig.model_validate(settings["sampler"])
    names = SamplerConfig.model_fields.keys() & settings.keys()
    return SamplerConfig.model_validate(
        {"max_completion_length": length} | {name: settings.pop(name) for name in names}
    )
