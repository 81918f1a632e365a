"""Reinforcement learning for masked diffusion language models.

A model, a task with a checkable reward and a method go in; a better model and the evidence that it is better come out:

    from unmask import Trainer, load_recipe

    Trainer(load_recipe("sudoku-tiny", {"max_steps": 50}), reward_funcs=my_reward).train()

The names here are imported when they are first used, so that `import unmask` does not import torch. Everything else is
imported from the module that defines it, such as `unmask.functional` for the mathematics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.models import Denoiser
    from unmask.recipes.schema import load_recipe
    from unmask.report.api.trainer import Trainer

__version__ = "0.1.0"
__all__ = ["Denoiser", "Trainer", "__version__", "load_recipe"]

# `evaluate` cannot stand here: the module of that name would replace it the first time anything imports it.
_HOME = {"Denoiser": "unmask.models", "Trainer": "unmask.report.api.trainer", "load_recipe": "unmask.recipes.schema"}


_ELSEWHERE = frozenset({"GRPOTrainer", "GRPOConfig", "DiffuGRPOTrainer", "DiffuGRPOConfig", "TrainingArguments"})
"""Names of other libraries, whose users may look for them here."""


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        # An AttributeError would lose its message in `from unmask import NAME`.
        raise ImportError(
            f"unmask has no {name}. A run is described by a recipe, and the method is one of its settings: "
            'from unmask import Trainer, load_recipe; Trainer(load_recipe("sudoku-tiny", {"method.type": "diffu_grpo"})).train()'
        )
    if name not in _HOME:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
