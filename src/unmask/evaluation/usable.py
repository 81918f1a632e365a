"""Rows that a model can use: found before the first step, with the others named or left out, and recorded for a resumed run."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.core.records import Row
from unmask.models import Denoiser
from unmask.sampling.generation import prompt_faults
from unmask.tasks import Task
from unmask.tasks.candidates import Candidates, FaultsOf
from unmask.tasks.source import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3
"""Rows that the warning about those that are left out names."""
RECORDED = 100
"""Rows that the run folder names."""

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class Usable:
    """The rows of each part of a run, such as "train" and "evaluation"."""

    rows: dict[str, list[Row]]
    left_out: tuple[str, ...]
    """What is wrong with the rows that were left out, each with its place."""

    def record(self) -> dict[str, Any]:
        """Which rows these are, for data.json: under `used`, what a run that is resumed must have again, in the same order."""
        used = {name: {"num_rows": len(rows), "sha256": content_hash(rows)} for name, rows in self.rows.items()}
        left_out = {"num_rows": len(self.left_out), "rows": list(self.left_out[:RECORDED])}
        return {"used": used} | ({"left_out": left_out} if self.left_out else {})


def usable_rows(candidates: Mapping[str, Candidates], faults_of: FaultsOf) -> Usable:
    """Take the rows that can be used, and warn of those that are left out.

    Raises:
        DataError: there are rows that cannot be used, and the task does not leave them out.
    """
    rows: dict[str, list[Row]] = {}
    left_out: list[str] = []
    for name, pool in candidates.items():
        rows[name], faults = pool.take(faults_of)
        left_out += [f"{pool.where}, {fault}" for fault in faults]
    # Two splits of one file share what is wrong with it.
    distinct = tuple(dict.fromkeys(left_out))
    if distinct:
        more = f"; and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
        logger.warning(
            f"rows left out because they cannot be used: {len(distinct)} ({'; '.join(distinct[:SHOWN])}{more})"
        )
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
    """What is wrong with rows for this model.

    Args:
        task: whose rows they are.
        denoiser: the model.
        tokenizer: its tokenizer.
        completion_length: positions of a completion.
        needs_answer: whether the task's own rewards score the rows, or its demonstrations are learnt.
        is_learnt: whether the demonstrations of the rows have to fit into a completion.
    """

    def faults_of(rows: Sequence[Row]) -> list[str | None]:
        faults = prompt_faults(denoiser, tokenizer, [row["prompt"] for row in rows], completion_length)
        if needs_answer:
            faults = [fault or task.fault_of_answer(row) for fault, row in zip(faults, rows, strict=True)]
        if is_learnt:
            fine = [i for i, fault in enumerate(faults) if fault is None]
            texts = [task.demonstration(rows[i], random.Random(0), sloppy=False) for i in fine]
            for i, length in zip(fine, _lengths(tokenizer, texts), strict=True):
                if length > completion_length:
                    faults[i] = (
                        f"the demonstration has {length} tokens and does not fit into max_completion_length = {completion_length}"
                    )
        return faults

    return faults_of


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids] if texts else []
