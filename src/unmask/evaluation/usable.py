"""Selection of the examples that a model can use. It takes place before the first step, and is
recorded for a resumed run."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.core.records import Row
from unmask.models import Denoiser
from unmask.sampling.encoding import prompt_faults
from unmask.tasks import Task
from unmask.tasks.candidates import Candidates, FaultsOf
from unmask.tasks.source import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3
"""Maximum number of unusable examples that the warning names."""
RECORDED = 100
"""Maximum number of unusable examples that data.json names."""

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class Usable:
    """Usable examples of a run."""

    rows: dict[str, list[Row]]
    """Examples by part of the run, such as "train" and "evaluation"."""
    left_out: tuple[str, ...]
    """Location and fault of each example that was left out."""

    def record(self) -> dict[str, Any]:
        """Return facts for data.json; a resumed run must have the examples that these facts
        describe under `used`, in the same order."""
        used = {name: {"num_rows": len(rows), "sha256": content_hash(rows)} for name, rows in self.rows.items()}
        left_out = {"num_rows": len(self.left_out), "rows": list(self.left_out[:RECORDED])}
        return {"used": used} | ({"left_out": left_out} if self.left_out else {})


def usable_rows(candidates: Mapping[str, Candidates], faults_of: FaultsOf) -> Usable:
    """Return the usable examples, and log a warning about those that are left out.

    Raises:
        DataError: if there are unusable examples and the task's settings do not leave them out.
    """
    rows: dict[str, list[Row]] = {}
    left_out: list[str] = []
    for name, pool in candidates.items():
        rows[name], faults = pool.take(faults_of)
        left_out += [f"{pool.where}, {fault}" for fault in faults]
    # Two splits of one file report the same faults.
    distinct = tuple(dict.fromkeys(left_out))
    if distinct:
        more = f"; and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
        logger.warning(f"unusable examples left out: {len(distinct)} ({'; '.join(distinct[:SHOWN])}{more})")
    return Usable(rows, distinct)


def faults_for(
    task: Task,
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    completion_length: int,
    *,
    needs_answer: bool,
    is_learnt: bool = False,
) -> FaultsOf:
    """Return a function that finds the faults of examples for this model.

    Args:
        task: the task of the examples.
        denoiser: the model.
        tokenizer: the model's tokenizer.
        completion_length: number of positions of a completion.
        needs_answer: True if the task's own rewards score the examples, or its demonstrations are
            learnt.
        is_learnt: True if the demonstrations of the examples must fit into a completion.
    """

    def faults_of(rows: Sequence[Row]) -> list[str | None]:
        faults = prompt_faults(denoiser, tokenizer, [row["prompt"] for row in rows], completion_length)
        if needs_answer:
            faults = [fault or task.fault_of_answer(row) for fault, row in zip(faults, rows, strict=True)]
        if is_learnt:
            usable = [i for i, fault in enumerate(faults) if fault is None]
            texts = [task.demonstration(rows[i], random.Random(0), sloppy=False) for i in usable]
            for i, length in zip(usable, _lengths(tokenizer, texts), strict=True):
                if length > completion_length:
                    faults[i] = (
                        f"the demonstration has {length} tokens and does not fit into max_completion_length = {completion_length}"
                    )
        return faults

    return faults_of


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids] if texts else []
