"""Reinforcement learning for masked diffusion language models.

A model, a task with a checkable reward and a method go in. A better model comes out, together with
the evidence that it is better. A notebook needs one import:

    import unmask as um

    policy = um.load_model("runs/sudoku-tiny-base/final")
    um.evaluate(policy, "sudoku").accuracy
    um.Trainer(um.load_recipe("sudoku-tiny"), reward_funcs=my_reward).train()
    um.open_run("runs/sudoku-tiny").metrics

Each name is imported when it is first used, so `import unmask` does not import torch. The folders
of the package can be reached the same way: `um.tasks.Sudoku()`, `um.functional.advantage`. The page
docs/python.md walks through all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.core.config import SamplerConfig
    from unmask.core.records import LossInputs, LossOutput, Needs, Rollout, Trajectory, Views
    from unmask.evaluation.on_task import evaluate
    from unmask.methods import METHODS, Method
    from unmask.models import Denoiser, Policy, load_model, save_model
    from unmask.recipes.load import load_recipe
    from unmask.recipes.schema import TrainRecipe
    from unmask.report.api.comparison import compare
    from unmask.report.api.run import open_run
    from unmask.report.api.trainer import Trainer
    from unmask.sampling.encoding import decode
    from unmask.sampling.generate import generate
    from unmask.sampling.orders import ORDERS
    from unmask.tasks import TASKS, Task

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "ORDERS",
    "TASKS",
    "Denoiser",
    "LossInputs",
    "LossOutput",
    "Method",
    "Needs",
    "Policy",
    "Rollout",
    "SamplerConfig",
    "Task",
    "TrainRecipe",
    "Trainer",
    "Trajectory",
    "Views",
    "__version__",
    "compare",
    "decode",
    "evaluate",
    "generate",
    "load_model",
    "load_recipe",
    "open_run",
    "save_model",
]

_MODULES = {
    "unmask.core.config": ("SamplerConfig",),
    "unmask.core.records": ("LossInputs", "LossOutput", "Needs", "Rollout", "Trajectory", "Views"),
    "unmask.evaluation.on_task": ("evaluate",),
    "unmask.methods": ("METHODS", "Method"),
    "unmask.models": ("Denoiser", "Policy", "load_model", "save_model"),
    "unmask.recipes.load": ("load_recipe",),
    "unmask.recipes.schema": ("TrainRecipe",),
    "unmask.report.api.comparison": ("compare",),
    "unmask.report.api.run": ("open_run",),
    "unmask.report.api.trainer": ("Trainer",),
    "unmask.sampling.generate": ("generate",),
    "unmask.sampling.encoding": ("decode",),
    "unmask.sampling.orders": ("ORDERS",),
    "unmask.tasks": ("TASKS", "Task"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
"""The module that defines each name. No folder of the package may have one of these names: the
first import of a submodule sets an attribute of its parent, which would replace the function."""

_ELSEWHERE = frozenset({"GRPOTrainer", "GRPOConfig", "DiffuGRPOTrainer", "DiffuGRPOConfig", "TrainingArguments"})
"""Names of other libraries, which their users may look for here."""


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        # An AttributeError would lose its message in `from unmask import NAME`.
        raise ImportError(
            f"unmask has no {name}. Use Trainer, which takes TRL's names and chooses the method as a setting: "
            'Trainer(model=policy, reward_funcs=my_reward, train_dataset=rows, method="diffu_grpo", learning_rate=1e-5).train()'
        )
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    from importlib.util import find_spec

    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
