"""MATH: competition problems whose answer is an expression (arXiv:2103.03874).

MATH500 (arXiv:2305.20050) is its test.

The reward is 1 for an equal expression, else 0. Numbers, words and equal spellings are compared
here, all else by math-verify. The papers' sum of shaped rewards is in `unmask.rewards`, without the
bug that keeps all of them from finding a box.
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

    Columns: `problem`, `answer`, and optionally `solution`, to learn from. Rows without an answer
    are left out.
    """

    type: Literal["math"] = "math"
    source: str = "ankner/math-500"
    """Training rows: a data set of the hub (its split "train"), or a .parquet, .jsonl or .csv
    file."""
    test_source: str | None = "HuggingFaceH4/MATH-500"
    """Test rows; from the hub, the split "test". null if there are none."""
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
        """Return 1.0 for an equal expression, else 0.0; "timeout" if the comparison did not end."""
        return grade(answers, [str(row["answer"]) for row in rows])


class Math500(Math):
    """The 500 problems of MATH500, only for test.

    To train, use task `math`, which has the same test rows.
    """

    type: Literal["math500"] = "math500"  # type: ignore[assignment]
    test_source: str = "HuggingFaceH4/MATH-500"

    def sources(self) -> tuple[None, str]:
        return None, self.test_source
