"""What all releases have in common: files, a stand-in of the trainer, and an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.peers.setting import MASK, ROLLOUT_STEPS, TEMPERATURE, Setting, Shape
from benchmark.peers.source import functions_of, trainer_of


@dataclass(frozen=True)
class Source:
    """A file whose functions are used."""

    path: str
    """Path of the file below the folder of all checkouts. The first part is the folder of a
    checkout, and the rest is the path in the repository."""
    names: tuple[str, ...]
    """Functions, methods and classes that are taken from the file."""
    origin: str
    """Repository and commit of the file that was measured."""


class Release:
    """A release beside this package. `rollout`, `score` and `update` are measured."""

    sources: ClassVar[tuple[Source, ...]]
    """Files that the functions come from."""
    scores: ClassVar[bool] = True
    """False if a step of the release needs no pass over the views besides the update."""

    def __init__(self, checkouts: Path, setting: Setting) -> None:
        self.setting, self.shape, self.device = setting, setting.shape, setting.device
        self.model: Any = setting.released
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.functions = functions_of([(checkouts / s.path, s.names) for s in self.sources], **self.names())
        self.trainer = trainer_of(self.functions, self.device, model=self.model, **self.attributes())
        self.inputs: dict[str, Any] = {}

    @classmethod
    def is_there(cls, checkouts: Path) -> bool:
        """Return True if the files of the release are below `checkouts`."""
        return all((checkouts / source.path).is_file() for source in cls.sources)

    @classmethod
    def rollout_steps(cls, shape: Shape) -> int:
        """Return the number of denoising steps of a rollout."""
        return ROLLOUT_STEPS

    def names(self) -> dict[str, Any]:
        """Return what the functions find under further names, such as the variables of an enclosing
        function."""
        return {}

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that the methods read from the trainer."""
        return {}

    def rollout(self) -> Any:
        """Denoise the prompts, with what the release records."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the inputs of the loss from the finished completions, outside the measurement."""
        raise NotImplementedError

    def score(self) -> Any:
        """Run one pass over the views without a graph."""
        raise NotImplementedError

    def prepare_update(self) -> None:
        """Give the loss its old and reference log-probabilities."""

    def backward(self) -> None:
        """Compute the loss and back-propagate it."""
        self.trainer.compute_loss(self.model, self.inputs).backward()

    def update(self) -> None:
        """Make one optimizer step."""
        self.optimizer.zero_grad()
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @property
    def sequences(self) -> Tensor:
        """[B, P + L] prompts with their completions."""
        return torch.cat([self.setting.prompts, self.setting.tokens], dim=1)

    def masked_prompts(self) -> Tensor:
        """[B, P + L] sequences as diffu-GRPO scores them: the completion is masked, and so is each
        token of the prompt with probability 0.15."""
        sequences = self.sequences
        is_masked = torch.rand(sequences.shape, device=self.device) < 0.15
        is_masked[:, self.shape.prompt :] = True
        return sequences.masked_fill(is_masked, MASK)

    def generation(self) -> dict[str, Any]:
        """Return the arguments of LLaDA's loop, which several releases have."""
        shape = self.shape
        return {
            "model": self.model, "prompt": self.setting.prompts, "steps": ROLLOUT_STEPS, "gen_length": shape.length,
            "block_length": shape.block, "temperature": TEMPERATURE, "mask_id": MASK,
        }  # fmt: skip
