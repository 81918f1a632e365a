"""GSM8K: grade-school word problems whose answer is a number (arXiv:2110.14168).

The reward is 1 for the correct number, otherwise 0. Released graders compare strings ("1,000"
differs from "1000") and ignore minus signs, so with them the two examples of the test split that
have negative answers cannot be solved. The sum of shaped rewards that the papers use is in
`unmask.rewards`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from unmask.core.errors import DataError
from unmask.rewards.grading.numerals import read_number
from unmask.rewards.protocol import Score
from unmask.tasks.maths import MathsTask, text_column
from unmask.tasks.source import is_file

if TYPE_CHECKING:
    from unmask.core.records import Row

_CALCULATOR = re.compile(r"<<[^<>]*>>")


class GSM8K(MathsTask):
    """Word problems with a number as the answer: 7,473 for training, 1,319 for test.

    A tenth of the training problems are for validation.

    Columns: `question`, and `answer`, which ends in "#### 18".
    """

    type: Literal["gsm8k"] = "gsm8k"
    source: str = "openai/gsm8k:main"
    """Training rows: a data set of the hub (its split "train"), or a .parquet, .jsonl or .csv
    file."""
    test_source: str | None = None
    """Test rows. The default is the split "test" if `source` is a data set of the hub; there is no
    default if `source` is a file."""

    shots: ClassVar[str] = "gsm8k.jsonl"

    def sources(self) -> tuple[str, str | None]:
        return self.source, self.test_source or (None if is_file(self.source) else self.source)

    def build(self, raw: Row, place: str) -> Row:
        working, marker, answer = text_column(raw, "answer", place).rpartition("####")
        answer = answer.strip()
        if not marker or read_number(answer) is None:
            raise DataError(f'{place}: the column "answer" ends in {answer[-40:]!r}, not in "#### " and a number.')
        # Remove notes for a calculator, as in 3*4=<<3*4=12>>12, which a model should not write.
        return self.item(text_column(raw, "question", place).strip(), _CALCULATOR.sub("", working).strip(), answer)

    def grade(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """Return 1.0 for the correct number, otherwise 0.0. The reason is "unparsed" if the answer
        is not a number."""
        return [_grade(answer, str(row["answer"])) for answer, row in zip(answers, rows, strict=True)]


def _grade(answer: str, gold: str) -> float:
    given, wanted = read_number(answer, in_prose=True), read_number(gold)
    if given is None:
        return Score(0.0, "unparsed")
    return float(wanted is not None and given.equals(wanted))
