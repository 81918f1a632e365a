"""Prompts of tasks of mathematics, and demonstrations that follow the prompt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.helpers.messages import raises
from tests.helpers.rows import files
from unmask.core.errors import ConfigError
from unmask.tasks.gsm8k import GSM8K


def test_a_prompt_is_one_user_message_by_default(tmp_path: Path) -> None:
    (message,) = GSM8K(**files(tmp_path)).prompt("Why?")
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nWhy?")
    assert "<answer>" in message["content"]
    system, user = GSM8K(**files(tmp_path), instruction_role="system").prompt("Why?")
    assert (system["role"], user) == ("system", {"role": "user", "content": "Why?"})
    assert message["content"] == f"{system['content']}\n\nWhy?"


def test_worked_examples_are_turns_that_follow_the_instruction(tmp_path: Path) -> None:
    for instruction in ("answer", "boxed", "reasoning"):
        task = GSM8K(**files(tmp_path), num_shots=2, instruction=instruction)
        messages = task.prompt("Why?")
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
        assert messages[-1]["content"] == "Why?"
        # The examples are graded as a completion would be.
        assert task.solved(messages[1]["content"], {"answer": "22"})
    assert messages[1]["content"].startswith("<reasoning>\n")


def test_a_plain_prompt_says_the_same_as_text(tmp_path: Path) -> None:
    text = GSM8K(**files(tmp_path), format="plain", num_shots=1).prompt("Why?")
    messages = GSM8K(**files(tmp_path), num_shots=1).prompt("Why?")
    assert isinstance(text, str)
    assert text.endswith("\n\nProblem: Why?\nSolution:")
    assert messages[1]["content"] in text


def test_training_and_evaluation_share_the_prompt(tmp_path: Path) -> None:
    task = GSM8K(**files(tmp_path))
    rows = task.rows("train", 3) + task.rows("validation", 3) + task.rows("test", 3)
    assert [row["prompt"] for row in rows] == [task.prompt(row["question"]) for row in rows]


def test_an_instruction_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("Just answer in <answer> tags.\n")
    assert GSM8K(**files(tmp_path), instruction=str(mine)).prompt("Why?") == [
        {"role": "user", "content": "Just answer in <answer> tags.\n\nWhy?"}
    ]
    with raises(ConfigError, '"polite"', "answer, boxed, reasoning", ".txt file"):
        GSM8K(instruction="polite")
    with pytest.raises(ConfigError, match="cannot be read"):
        GSM8K(instruction="none/there.txt")


def test_demonstrations_are_right_and_sloppy_ones_a_number_of_the_problem(tmp_path: Path) -> None:
    rng = random.Random(0)
    for form in ("bare", "plain", "tagged"):
        task = GSM8K(**files(tmp_path), format=form)
        rows = task.rows("train", 20)
        assert all(task.solved(task.demonstration(row, rng, sloppy=False), row) for row in rows)
        sloppy = [task.demonstration(row, rng, sloppy=True) for row in rows]
        assert sum(task.solved(text, row) for text, row in zip(sloppy, rows, strict=True)) <= 1  # 1 * 1 is 1
        assert all(text.isdigit() == (form == "bare") for text in sloppy)
