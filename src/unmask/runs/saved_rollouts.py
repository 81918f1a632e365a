"""What a run keeps of a rollout for people to look at: a few groups, with texts, what was trained of them, and guesses.

A file of it is a `Rollout` file with notes: whoever wants the rollout alone reads it with `Rollout.load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.errors import RunError
from unmask.records import Rollout, read_notes


@dataclass(frozen=True, slots=True)
class Guesses:
    """Greedy one-step completions x̂_k of states along the paths, under the policy that walked them."""

    step: Tensor
    """[S] int32, ascending: the steps k."""
    tokens: Tensor
    """[B, S, L] int32: the state before step k with every masked position filled by its likeliest token."""
    reward: Tensor | None = None
    """[B, S] float32; None where the reward functions failed on them."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The n views of the kept completions that the update was made on."""

    row: Tensor
    """[n] int32: the completion."""
    step: Tensor
    """[n] int32: the step whose state the view shows; -1 where it shows no state of the path."""
    slot: Tensor
    """[n] int32: whose other fills the view reads, by their slot in the rollout; -1 where it reads what was written."""
    advantage: Tensor
    """[n] float32, or [n, M] where M actions of a state have one each."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One step's kept groups."""

    rollout: Rollout
    completions: list[str]
    """B texts."""
    prompts: list[Any]
    """One for each group: text, or chat messages. Empty in files of version 1."""
    answers: list[str | None]
    """The known answer to each prompt, where the task says one. Empty in files of version 1."""
    pieces: Mapping[int, str]
    """The text of each token that occurs. Empty in files of version 1."""
    guesses: Guesses | None = None
    trained: Trained | None = None

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        notes = {}
        for name, record in (("guess", self.guesses), ("trained", self.trained)):
            for key in record.__slots__ if record else ():
                if (value := getattr(record, key)) is not None:
                    notes[f"{name}_{key}"] = value
        extra = {
            "completions": self.completions,
            "prompts": self.prompts,
            "answers": self.answers,
            "pieces": {str(token): text for token, text in self.pieces.items()},
        }
        self.rollout.save(path, extra, notes)

    @staticmethod
    def load(path: Path) -> Kept:
        """Read what `save` wrote, or what an earlier version did.

        Raises:
            RunError: the file is of an unknown schema version, or damaged.
        """
        try:
            rollout, facts = Rollout.load(path)
            notes = read_notes(path)
        except RunError:
            raise
        except Exception as error:  # whatever a damaged file makes safetensors or json raise
            raise RunError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
        parts = {
            name: {key.removeprefix(f"{name}_"): value for key, value in notes.items() if key.startswith(f"{name}_")}
            for name in ("guess", "trained")
        }
        return Kept(
            rollout,
            facts.get("completions", []),
            facts.get("prompts", []),
            facts.get("answers", []),
            {int(token): text for token, text in facts.get("pieces", {}).items()},
            Guesses(**parts["guess"]) if parts["guess"] else None,
            Trained(**parts["trained"]) if parts["trained"] else None,
        )
