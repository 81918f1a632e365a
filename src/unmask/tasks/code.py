"""What tasks share whose answer is a program: finding it in a completion, running its tests, the share that pass as reward.

Rewards of arXiv:2603.12554's release and of arXiv:2512.03759's are the share of unit tests passed, plus points for format. Here
the share is all: a value V(x̂_k) of half-done text that earned points for its fences would be no estimate of the outcome.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unmask.core.errors import DataError
from unmask.rewards.grading.answers import before_end
from unmask.rewards.grading.extract import code_in
from unmask.rewards.grading.syntax import MAX_CODE, without_dead_code
from unmask.rewards.protocol import Score, per_completion, reports, text_of
from unmask.rewards.sandbox import Result, SandboxConfig, SandboxJob, make_sandbox
from unmask.tasks.base import Task
from unmask.tasks.sourced import SourcedTask

if TYPE_CHECKING:
    from unmask.core.records import Row

MAX_RECENT = 4096
"""Results that are remembered for each sandbox."""


class ProgramTask(Task):
    """Base of tasks whose answer is run. A subclass says which job an answer makes."""

    sandbox: SandboxConfig = SandboxConfig()
    """Where programs run, and what they may use up."""

    @abstractmethod
    def job(self, answer: str, row: Row) -> SandboxJob | None:
        """The program in an answer with the tests of its row, or None if there is no program."""

    def results(self, answers: Sequence[str | None], rows: Sequence[Row]) -> list[Result | None]:
        """Run each answer's tests, equal jobs once; None where there is no program."""
        jobs = [None if answer is None else self.job(answer, row) for answer, row in zip(answers, rows, strict=True)]
        return _run_all(self.sandbox, jobs)

    def score(self, answer: str, row: Row) -> float:
        """Share of the tests that pass."""
        return _score(self.results([answer], [row])[0])

    def is_right(self, answer: str, row: Row) -> bool:
        """Whether every test passes."""
        result = self.results([answer], [row])[0]
        return result is not None and result.passed

    @per_completion
    @reports("unparsed", "failed", "error", "timed_out", "unsupported")
    def _reward(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """The share of each completion's tests that pass, with the status of the first that does not as its reason.

        None where other completions used up the time of the batch, so that nothing is known about this one.
        """
        rows = self._reward_rows(columns, len(completions))
        answers = [self._answer(text_of(completion)) for completion in completions]
        return [
            _score(result) if result is None or result.is_judged else None for result in self.results(answers, rows)
        ]

    def _reward_rows(self, columns: dict[str, Any], count: int) -> list[Row]:
        for name in self.reward_columns:
            if name not in columns:
                raise DataError(
                    f'the reward of task "{self.type}" reads the column "{name}", which the rows lack; '
                    f"they have {', '.join(sorted(columns)) or 'none'}. Use rows made by this task."
                )
        return [{name: columns[name][i] for name in self.reward_columns} for i in range(count)]


class CodeTask(ProgramTask, SourcedTask):
    """Base of tasks with a data set of programming problems, one with a reference program for each where it has them."""

    format: Literal["bare", "plain", "tagged"] = "tagged"
    """`tagged`: a chat message for the tokenizer's template, which asks for the program in an answer tag. `plain`: the same as
    text. `bare`: the problem as Python has it, continued by the program and nothing else."""

    reward_columns: ClassVar[tuple[str, ...]] = ("tests", "names", "setup")

    def prompt(self, problem: str, instruction: str) -> str | list[dict[str, str]]:
        """The prompt of a problem: `problem` if bare, else the instruction's text with the problem in its place."""
        if self.format == "bare":
            return problem
        return instruction if self.format == "plain" else [{"role": "user", "content": instruction}]

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """The reference program, in a fence and an answer tag unless bare; there is no sloppy one."""
        program = str(row["answer"])
        if not program:
            raise DataError(
                f'the rows of task "{self.type}" have no reference programs to learn from. Pretrain on others.'
            )
        return program if self.format == "bare" else f"<answer>\n```python\n{program}\n```\n</answer>"

    def job(self, answer: str, row: Row) -> SandboxJob | None:
        """The program in the answer, with the row's tests; None if there is no program, or too long a one."""
        code = code_in(answer, row["names"])
        return self.tested(code, row) if code.strip() and len(code) <= MAX_CODE else None

    def tested(self, program: str, row: Row) -> SandboxJob:
        """A program with the row's tests, without imports that it does not use: the sandbox may lack them."""
        program = without_dead_code(program, row["names"])
        return SandboxJob(program, tuple(row["tests"]), tuple(row["names"]), row["setup"])

    @property
    def completion_length(self) -> int:
        """Characters of the longest demonstration, and one for EOS; 256 where there are no reference programs."""
        return 1 + max(map(len, self._demonstrations()), default=255)

    def _demonstrations(self) -> list[str]:
        rng = random.Random(0)
        return [self.demonstration(row, rng, sloppy=False) for row in self._all() if row["answer"]]

    def _answer(self, completion: str) -> str | None:
        """The completion up to its end-of-turn token. `job` finds the program in it, for which it needs the row's names."""
        text = before_end(completion)
        return text if text.strip() else None


@lru_cache(maxsize=8)
def code_text(name: str) -> str:
    """A shipped instruction for a programming problem, with places in braces for what the problem is."""
    return (resources.files("unmask.tasks") / "texts" / "code" / f"{name}.txt").read_text(encoding="utf-8").strip()


def _run_all(config: SandboxConfig, jobs: Iterable[SandboxJob | None]) -> list[Result | None]:
    """The result of each job. Those of late are remembered: an evaluation asks for reward and verdict of the same text."""
    jobs = list(jobs)
    known = _recent(config)
    new = [job for job in dict.fromkeys(jobs) if job is not None and job not in known]
    known.update(zip(new, make_sandbox(config).run(new), strict=True))
    found = [None if job is None else known[job] for job in jobs]
    for job in [job for job in new if not known[job].was_run] + list(known)[: max(0, len(known) - MAX_RECENT)]:
        known.pop(job, None)
    return found


@lru_cache(maxsize=8)
def _recent(config: SandboxConfig) -> dict[SandboxJob, Result]:
    return {}


def _score(result: Result | None) -> Score:
    """The share of tests passed, and the status of the first that did not."""
    if result is None:
        return Score(0.0, "unparsed")
    return Score(result.share_passed, "" if result.passed else result.status)
