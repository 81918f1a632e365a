"""Tasks with verifiable rewards, one in each file, and a table of all tasks."""

from __future__ import annotations

from unmask.tasks.arithmetic import Arithmetic
from unmask.tasks.base import RewardFunc, Split, Task
from unmask.tasks.countdown import Countdown
from unmask.tasks.dataset import Dataset
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.hendrycks_math import Math, Math500
from unmask.tasks.humaneval import HumanEval
from unmask.tasks.kodcode import KodCode
from unmask.tasks.mbpp import MBPP
from unmask.tasks.program import ProgramFromExamples
from unmask.tasks.reasoning_gym import ReasoningGym
from unmask.tasks.story import Story
from unmask.tasks.sudoku import Sudoku
from unmask.tasks.sudoku9 import Sudoku9

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "countdown": Countdown,
    "dataset": Dataset,
    "gsm8k": GSM8K,
    "humaneval": HumanEval,
    "kodcode": KodCode,
    "math": Math,
    "math500": Math500,
    "mbpp": MBPP,
    "program": ProgramFromExamples,
    "reasoning_gym": ReasoningGym,
    "story": Story,
    "sudoku": Sudoku,
    "sudoku9": Sudoku9,
}
"""All tasks by the name that `task.type` takes in a recipe."""

__all__ = ["TASKS", "Arithmetic", "Countdown", "Dataset", "RewardFunc", "Split", "Story", "Sudoku", "Sudoku9", "Task"]
