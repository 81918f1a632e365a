"""Rollouts that a run saves for people to look at: a few groups, their texts, what was trained of them, and one-step guesses.

A file is in the safetensors format: the tensors by name, and everything else as JSON in its metadata.
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
"""Version of the file format. It rises when a field changes its meaning or when older code cannot read it."""
READABLE_VERSIONS = (1, 2, 3, 4, 5)
"""Versions that can be read. Version 1 has the rollout and the completions only, version 2 does not know the end of a turn, up
to version 3 the sampler settings stand one by one, and up to version 4 some tensors have other names."""
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
    """Greedy one-step completions x̂_k of states along the paths, under the policy that sampled the paths."""

    step: Tensor
    """[J] int32, ascending: the steps k."""
    tokens: Tensor
    """[B, J, L] int32: the state before step k with every masked position filled by its most likely token."""
    reward: Tensor | None = None
    """[B, J] float32; None if the reward functions failed on them."""


@dataclass(frozen=True, slots=True)
class TrainedViews:
    """The N views of the saved completions that the update was made on."""

    row: Tensor
    """[N] int32: the completion."""
    step: Tensor
    """[N] int32: the step whose state the view shows; -1 if the view does not show a state of the path."""
    slot: Tensor
    """[N] int32: whose branches the view reads, by their slot in the rollout; -1 if it reads the completion itself."""
    advantage: Tensor
    """[N] float32, or [N, M] where M actions of a state have one each."""


@dataclass(frozen=True, slots=True)
class SavedRollout:
    """The groups of one training step that a run saved."""

    rollout: Rollout
    completions: list[str]
    """B texts."""
    prompts: list[Any]
    """One for each group: text, or chat messages. Empty in files of version 1."""
    answers: list[str | None]
    """The known answer to each prompt, if the task names one. Empty in files of version 1."""
    pieces: Mapping[int, str]
    """The text of each token that occurs. Empty in files of version 1."""
    guesses: Guesses | None = None
    trained: TrainedViews | None = None

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
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
            RunError: the file has an unknown schema version, or is damaged.
        """
        try:
            return _loaded(path)
        except RunError:
            raise
        except Exception as error:  # whatever a damaged file makes safetensors or json raise
            raise RunError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error


def saved_path(run: Path, step: int) -> Path:
    """Return the file in a run folder that holds the saved rollout of a training step, counted from 1."""
    return run / "rollouts" / f"step-{step:08d}.safetensors"


def saved_steps(run: Path) -> list[int]:
    """List the training steps whose rollouts a run saved, in ascending order."""
    names = (path.stem.removeprefix("step-") for path in (run / "rollouts").glob("step-*.safetensors"))
    return sorted(int(name) for name in names if name.isdecimal())


def _loaded(path: Path) -> SavedRollout:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["unmask"])
        settings = facts["trajectory"]
        version = settings.pop("schema_version")
        if version not in READABLE_VERSIONS:
            raise RunError(f"{path} was written with schema version {version}; this is version {SCHEMA_VERSION}.")
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
    """The tensors of a record by the names that they have in the file."""
    values = {f.name: getattr(record, f.name) for f in fields(record)} if record else {}
    return {prefix + name: value for name, value in values.items() if value is not None}


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors with a prefix from a file's tensors, and return them by their names in the record."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _sampler_of(settings: dict[str, Any], length: int) -> SamplerConfig:
    """Return the sampler settings of a saved rollout, and remove those that older versions wrote one by one."""
    if "sampler" in settings:
        return SamplerConfig.model_validate(settings["sampler"])
    names = SamplerConfig.model_fields.keys() & settings.keys()
    return SamplerConfig(max_completion_length=length, **{name: settings.pop(name) for name in names})
