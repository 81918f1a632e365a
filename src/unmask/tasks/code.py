"""Base class of tasks whose answer is a program. The task finds the program, runs its tests and
rewards the share of tests that pass.

In the releases of arXiv:2603.12554 and arXiv:2512.03759, the reward is the share of unit tests
passed plus points for format. Here the reward is only the share of tests. With points for format,
an unfinished text could earn points for its code fences, and the one-step value V_k would not
estimate the final reward.
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
"""Number of recent results that are cached for each sandbox."""


class ProgramTask(Task):
    """Base class of tasks that run the answer as a program. A subclass defines the sandbox job
    (program and tests) for an answer."""

    sandbox: SandboxConfig = SandboxConfig()
    """Sandbox in which programs run, and its limits."""

    @abstractmethod
    def job(self, answer: str, row: Row) -> SandboxJob | None:
        """Return the program in an answer, together with the tests of its row; None if there is no
        program."""

    def results(self, answers: Sequence[str | None], rows: Sequence[Row]) -> list[Result | None]:
        """Return the results of the tests of each answer; None for an answer without a program.

        Equal jobs run once.
        """
        jobs = [None if answer is None else self.job(answer, row) for answer, row in zip(answers, rows, strict=True)]
        return _run_all(self.sandbox, jobs)

    def score(self, answer: str, row: Row) -> float:
        """Return the share of tests that pass."""
        return _score(self.results([answer], [row])[0])

    def is_right(self, answer: str, row: Row) -> bool:
        """Return True if every test passes."""
        result = self.results([answer], [row])[0]
        return result is not None and result.passed

    @per_completion
    @reports("unparsed", "failed", "error", "timed_out", "unsupported")
    def _reward(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return for each completion the share of tests that pass, with the first failure as the
        reason.

        A reward is None if its result is unknown because other completions used up the time limit
        of the batch.
        """
        rows = self._reward_rows(columns, len(completions))
        answers = [self._answer(text_of(completion)) for completion in completions]
        return [
            _score(result) if result is None or result.is_judged else None for result in self.results(answers, rows)
        ]


class CodeTask(ProgramTask, SourcedTask):
    """Base class of tasks with a data set of programming problems, with or without reference
    programs."""

    format: Literal["bare", "plain", "tagged"] = "tagged"
    """Form of prompts and answers.

    `tagged`: a chat message for the tokenizer's template that asks for the program in an answer
    tag. `plain`: the same as text. `bare`: the problem as Python source, which the program
    continues."""

    reward_columns: ClassVar[tuple[str, ...]] = ("tests", "names", "setup")

    def prompt(self, problem: str, instruction: str) -> str | list[dict[str, str]]:
        """Return `problem` in the format `bare`, otherwise the instruction with the problem in
        it."""
        if self.format == "bare":
            return problem
        return instruction if self.format == "plain" else [{"role": "user", "content": instruction}]

    def demonstration(self, row: Row, rng: random.Random, sloppy: bool) -> str:
        """Return the reference program, in a code fence and an answer tag unless the format is
        `bare`. `sloppy` has no effect."""
        program = str(row["answer"])
        if not program:
            raise DataError(
                f'the rows of task "{self.type}" have no reference programs to learn from. Pretrain on another task.'
            )
        return program if self.format == "bare" else f"<answer>\n```python\n{program}\n```\n</answer>"

    def job(self, answer: str, row: Row) -> SandboxJob | None:
        """Return the program in the answer, together with the row's tests; None if the program is
        missing or too long."""
        code = code_in(answer, row["names"])
        return self.tested(code, row) if code.strip() and len(code) <= MAX_CODE else None

    def tested(self, program: str, row: Row) -> SandboxJob:
        """Return a program with the row's tests. Unused imports are removed, because the imported
        modules may be missing."""
        program = without_dead_code(program, row["names"])
        return SandboxJob(program, tuple(row["tests"]), tuple(row["names"]), row["setup"])

    @property
    def completion_length(self) -> int:
        """Number of characters of the longest demonstration, plus 1 for EOS; 256 if there are no
        demonstrations."""
        return 1 + max(map(len, self._demonstrations()), default=255)

    def _demonstrations(self) -> list[str]:
        rng = random.Random(0)
        return [self.demonstration(row, rng, sloppy=False) for row in self._all() if row["answer"]]

    def _answer(self, completion: str) -> str | None:
        """Return the completion up to its end-of-turn token.

        `job` finds the program in this text, because the row is needed to find it.
        """
        text = before_end(completion)
        return text if text.strip() else None


@lru_cache(maxsize=8)
def code_text(name: str) -> str:
    """Return a shipped instruction for a programming problem, with placeholders in braces."""
    return (resources.files("unmask.tasks") / "texts" / "code" / f"{name}.txt").read_text(encoding="utf-8").strip()


def _run_all(config: SandboxConfig, jobs: Iterable[SandboxJob | None]) -> list[Result | None]:
    """Return the results of jobs.

    Recent results are cached, because an evaluation needs each result twice (for the reward and for
    the verdict).
    """
    jobs = list(jobs)
    recent = _recent(config)
    new = [job for job in dict.fromkeys(jobs) if job is not None and job not in recent]
    recent.update(zip(new, make_sandbox(config).run(new), strict=True))
    results = [None if job is None else recent[job] for job in jobs]
    for job in [job for job in new if not recent[job].was_run] + list(recent)[: max(0, len(recent) - MAX_RECENT)]:
        recent.pop(job, None)
    return results


@lru_cache(maxsize=8)
def _recent(config: SandboxConfig) -> dict[SandboxJob, Result]:
    return {}


def _score(result: Result | None) -> Score:
    """Return the share of tests passed, with the status of the first failure."""
    if result is None:
        return Score(0.0, "unparsed")
    return Score(result.share_passed, "" if result.passed else result.status)
