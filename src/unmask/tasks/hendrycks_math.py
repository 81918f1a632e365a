"""MATH: competition problems whose answer is an expression (arXiv:2103.03874).

The test split is MATH500 (arXiv:2305.20050).

The reward is 1 for an expression that is equal to the answer, otherwise 0. This module compares
numbers, words and equal spellings; the package math-verify compares everything else. The sum of
shaped rewards that the papers use is in `unmask.rewards`, without the bug in the released code that
prevents these rewards from finding a boxed answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unmask.rewards.grading.boxes import last_boxed
from unmask.rewards.grading.verifier import grade
from unmask.rewards.protocol import per_completion, reports
from unmask.tasks.maths import MathsTask, text_column

if TYPE_CHECKING:
    from unmask.core.records import Row


class Math(MathsTask):
    """Competition problems: MATH without MATH500 for training, MATH500 for test.

    A tenth of the training problems are for validation.

    Columns: `problem`, `answer`, and optionally `solution`, which pretraining learns from. Rows
    without an answer are left out.
    """

    type: Literal["math"] = "math"
    source: str = "ankner/math-500"
    """Training rows: a data set of the hub (its split "train"), or a .parquet, .jsonl or .csv
    file."""
    test_source: str | None = "HuggingFaceH4/MATH-500"
    """Test rows; the split "test" is read if they come from the hub. null if there are no test
    rows."""
    instruction: str = "boxed"

    shots: ClassVar[str] = "math.jsonl"

    def sources(self) -> tuple[str | None, str | None]:
        return self.source, self.test_source

    def build(self, raw: Row, place: str) -> Row | None:
        solution = str(raw.get("solution") or "")
        if "answer" not in raw and solution:
            raw = raw | {"answer": last_boxed(solution)}
        if "answer" in raw and (raw["answer"] is None or not str(raw["answer"]).strip()):
            return None
        answer, problem = text_column(raw, "answer", place), text_column(raw, "problem", place)
        return self.item(problem.strip(), solution.strip(), answer.strip())

    @per_completion
    @reports("unparsed", "timeout")
    def _reward(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return super()._reward(prompts, completions, **columns)

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return 1.0 for an expression that is equal to the answer, otherwise 0.0. The reason is
        "timeout" if the comparison did not end in time."""
        return grade(answers, [str(row["answer"]) for row in rows])


class Math500(Math):
    """The 500 problems of MATH500, only for test.

    To train, use task `math`, which has the same test rows.
    """

    type: Literal["math500"] = "math500"  # type: ignore[assignment]
    test_source: str = "HuggingFaceH4/MATH-500"

    def sources(self) -> tuple[None, str]:
        return None, self.test_source
