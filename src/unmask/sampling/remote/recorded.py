"""Files of recorded answers: one JSON object a line, with a request and its response in SGLang's
format as they were on the wire.

    {"request": {"input_ids": [...], "sampling_params": {...}, "return_step_maps": true},
     "response": {"output_ids": [...], "meta_info": {"step_maps": [...], ...}}, "reward": 1.0}

A request with several prompts has a list of responses, and then `reward` and `row` are lists too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import DataError, no_file, reason
from unmask.core.files import parse_json
from unmask.core.records import Row
from unmask.sampling.remote.format import Answer, FormatError, Request, SamplingParams, parsed, quoted

MAX_LINE_BYTES = 2**28
"""Maximum size of a line."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded answer."""

    line: int
    """Line of the file, from 1."""
    prompt: list[int]
    """Tokens of the prompt."""
    params: SamplingParams
    """Sampling parameters of the request."""
    answer: Answer
    """The answer of the engine."""
    reward: float | None
    """Reward that the line gives the completion."""
    row: Row | None
    """Example of a task that the line gives, from which the reward can be computed."""


def read_recorded(file: Path) -> list[Recorded]:
    """Read a file of recorded answers.

    Raises:
        DataError: the file is missing, is empty, or has a line that cannot be used; the message
            names the line.
    """
    if not file.is_file():
        raise DataError(no_file(file))
    answers: list[Recorded] = []
    for number, text in _lines(file):
        with_line = f"{file}, line {number}"
        try:
            answers += _answers(number, parse_json(text))
        except FormatError as fault:
            raise DataError(f"{with_line}: {fault}") from fault
        except ValueError as error:
            raise DataError(
                f"{with_line} is not JSON, or was cut off: {text[:60]!r}. Remove the line, or record the answers again."
            ) from error
    if not answers:
        raise DataError(f"{file} is empty: it has no recorded answer.")
    return answers


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank."""
    try:
        with file.open("rb") as lines:
            number = 0
            while line := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{file}, line {number} has more than {MAX_LINE_BYTES:,} bytes. Record fewer prompts a line."
                    )
                if line.strip():
                    yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}, line {number} is not UTF-8 text.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or reason(error)}.") from error


def _answers(number: int, content: Any) -> Iterator[Recorded]:
    """Yield the answers of one line."""
    if not isinstance(content, dict) or not {"request", "response"} <= content.keys():
        raise FormatError('it must be an object with the keys "request" and "response".')
    request = parsed(Request, content["request"], "request")
    request.sampling_params.check()
    prompts = request.prompts()
    count = len(prompts)
    columns = [content["response"], content.get("reward"), content.get("row")]
    if request.is_batch:
        columns = [column if column is not None else [None] * count for column in columns]
    else:
        columns = [[column] for column in columns]
    for name, column in zip(("response", "reward", "row"), columns, strict=True):
        if not isinstance(column, list) or len(column) != count:
            given = f"{len(column)} entries" if isinstance(column, list) else quoted(column)
            raise FormatError(
                f"{name} has {given} for the {count} prompts of the request. Give a list with one for each."
            )
    for index, (prompt, response, reward, row) in enumerate(zip(prompts, *columns, strict=True)):
        name = f"response.{index}" if request.is_batch else "response"
        answer = parsed(Answer, response, name)
        yield Recorded(number, prompt, request.sampling_params, answer, _reward(reward), _row(row))


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise FormatError(f"reward = {quoted(value)} is not a finite number.")
    return float(value)


def _row(value: Any) -> Row | None:
    if value is not None and not isinstance(value, dict):
        raise FormatError(f"row = {quoted(value)} is not an object with the columns of an example.")
    return value
