"""A reward function of your own, in Python.

    python examples/custom_reward.py runs/demo/base/final

A reward function takes prompts, completions and the rows' other columns, and returns one number (or None) for each
completion. This one judges each completion by itself and says so with `@per_completion`, because EGSPO-SA, the method of the
recipe, also scores unfinished completions. From a recipe or the command line it is named by path:

    unmask train sudoku-tiny 'reward_funcs=[examples/custom_reward.py:row_variety]' output_dir=runs/variety
"""

from __future__ import annotations

import argparse
from typing import Any

from unmask import Trainer, load_recipe
from unmask.rewards import per_completion


@per_completion
def row_variety(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Share of the four rows of a grid that hold four different digits: a weaker rule than Sudoku's."""
    return [sum(len(set(text[i : i + 4])) == 4 for i in range(0, 16, 4)) / 4 for text in completions]


def show(step: int, metrics: dict[str, Any]) -> None:
    """Print the mean reward of a training step; an evaluation has no such metric."""
    if "reward" in metrics:
        print(step, metrics["reward"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a base model, such as the one that `make demo` pretrains")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", default="runs/variety")
    arguments = parser.parse_args()
    recipe = load_recipe(
        "sudoku-tiny", [f"model={arguments.model}", f"max_steps={arguments.steps}", f"output_dir={arguments.output}"]
    )
    Trainer(recipe, reward_funcs=[row_variety], observe=show).train()
