"""Base class of mathematics tasks. A prompt may contain worked examples, and the answer is in a tag
or a box."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unmask.core.errors import ConfigError, DataError
from unmask.rewards.grading.answers import answer_in, before_end
from unmask.tasks.sourced import SourcedTask

if TYPE_CHECKING:
    from unmask.core.records import Row

TEXTS = resources.files("unmask.tasks") / "texts"
"""Folder of the shipped instructions (.txt) and worked examples (.jsonl)."""


class MathsTask(SourcedTask):
    """Base class of mathematics tasks whose rows consist of a problem and its answer.

    Training and evaluation use the same prompt.
    """

    format: Literal["bare", "plain", "tagged"] = "tagged"
    """Form of prompts and answers.

    `tagged`: chat messages for the tokenizer's template. `plain`: the same as text. `bare`: only
    the problem, then only the answer, for tiny character models."""
    instruction: str = "answer"
    """Instruction that asks for the answer: the name of a shipped text (answer, boxed or reasoning)
    or the path of your own .txt file."""
    instruction_role: Literal["user", "system"] = "user"
    """Position of the instruction in a tagged prompt: before the first problem, as in the papers,
    or in a system message."""
    num_shots: int = Field(0, ge=0, le=4)
    """Number of shipped worked examples before the problem."""

    reward_columns: ClassVar[tuple[str, ...]] = ("answer",)
    shots: ClassVar[str]
    """Name of the file with worked examples."""

    @model_validator(mode="after")
    def _check_instruction(self) -> Self:
        instruction_text(self.instruction)
        return self

    def item(self, question: str, working: str, answer: str) -> Row:
        """Return a row with its prompt."""
        return {"prompt": self.prompt(question), "answer": answer, "question": question, "working": working}

    def key(self, row: Row) -> str:
        """Return the text of the problem, which is the same for every format of the prompt."""
        return str(row["question"])

    def prompt(self, question: str) -> str | list[dict[str, str]]:
        """Return the prompt of a problem in the task's format."""
        if self.format == "bare":
            return f"{question}\n"
        instruction = instruction_text(self.instruction)
        examples = [(shot["question"], self.solution(shot)) for shot in worked_examples(self.shots)[: self.num_shots]]
        if self.format == "plain":
            turns = [*(f"Problem: {q}\nSolution: {a}" for q, a in examples), f"Problem: {question}\nSolution:"]
            return "\n\n".join([instruction, *turns])
        messages = [
            {"role": role, "content": text}
            for turn in examples
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": question})
        if self.instruction_role == "system":
            return [{"role": "system", "content": instruction}, *messages]
        return [{"role": "user", "content": f"{instruction}\n\n{messages[0]['content']}"}, *messages[1:]]

    def solution(self, row: Row) -> str:
        """Return a whole completion in the form that the instruction asks for."""
        box = f"\\boxed{{{row['answer']}}}" if self.instruction == "boxed" else row["answer"]
        working = f"<reasoning>\n{row['working']}\n</reasoning>" if self.instruction == "reasoning" else row["working"]
        return f"{working}\n<answer>{box}</answer>".lstrip()

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the solution, or only the answer in the format `bare`. If `sloppy`, the answer is
        a number from the problem."""
        if sloppy:
            row = row | {"answer": rng.choice(re.findall(r"[0-9]+", row["question"]) or ["0"]), "working": ""}
        return str(row["answer"]) if self.format == "bare" else self.solution(row)

    def score(self, answer: str, row: Row) -> float:
        """Return 1 if the answer is correct, otherwise 0."""
        return self.grade([answer], [row])[0]

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if the answer equals the answer of the row."""
        return self.score(answer, row) == 1.0

    def _answer(self, completion: str) -> str | None:
        return answer_in(completion) or (before_end(completion).strip() or None if self.format == "bare" else None)


def text_column(raw: dict[str, Any], name: str, place: str) -> str:
    """Return the text of a column. A number counts as text, because csv files have only text.

    Raises:
        DataError: the column is missing, is not text, or is empty.
    """
    value = raw.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{place} has no text in the column "{name}". Its columns: {", ".join(raw)}.')
    return value


@lru_cache(maxsize=16)
def instruction_text(name: str) -> str:
    """Return the text of a shipped instruction or of a .txt file.

    Raises:
        ConfigError: the instruction does not exist.
    """
    shipped = sorted(path.name.removesuffix(".txt") for path in TEXTS.iterdir() if path.name.endswith(".txt"))
    try:
        if name in shipped:
            return (TEXTS / f"{name}.txt").read_text(encoding="utf-8").strip()
        if name.endswith(".txt"):
            return Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"instruction {name} cannot be read: {error}.") from error
    raise ConfigError(f'instruction "{name}" is neither one of {", ".join(shipped)} nor a .txt file.')


@lru_cache(maxsize=4)
def worked_examples(name: str) -> list[dict[str, str]]:
    """Return the shipped worked examples of a file. Each has a question, the working and the
    answer."""
    return [json.loads(line) for line in (TEXTS / name).read_text(encoding="utf-8").splitlines()]
