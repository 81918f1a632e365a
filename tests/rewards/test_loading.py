"""Reward functions by name and by path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.messages import raises
from unmask.core.errors import ConfigError
from unmask.rewards.loading import by_name
from unmask.rewards.protocol import load_reward
from unmask.rewards.scorer import Scorer

ROWS = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "3+4=", "answer": "7"}]


def test_two_functions_of_one_name_are_refused() -> None:
    assert by_name([("right", max), ("length", len)]) == {"right": max, "length": len}
    with raises(ConfigError, '"right"', "Rename"):
        by_name([("right", max), ("right", len)])


def test_a_function_is_found_in_a_module_or_a_file(tmp_path: Path) -> None:
    assert load_reward("statistics:fmean")[0] == "fmean"
    (tmp_path / "mine.py").write_text("HALF = 0.5\ndef half(completions, **_):\n    return [HALF] * len(completions)\n")
    name, function = load_reward(f"{tmp_path}/mine.py:half")
    assert name == "half"
    assert Scorer({name: function})(ROWS, ["4", "7"]).total == [0.5, 0.5]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_colon", "must be given as package.module:function or file.py:function."),
        ("no_such_package.rewards:f", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_package'"),
        ("{}/none.py:f", "cannot be loaded: there is no file {}/none.py."),
        ("{}/mine.py:f", 'cannot be loaded: unknown name "f". Available: also.'),
        ("{}/mine.py:HALF", "is a float, not a function."),
        ("{}/broken.py:f", "cannot be loaded: SyntaxError: '(' was never closed (broken.py, line 1)"),
        ("{}/raising.py:f", "cannot be loaded: ZeroDivisionError: division by zero (raising.py, line 1)"),
    ],
)
def test_a_path_without_a_function_is_an_error_with_the_reason(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "mine.py").write_text("HALF = 0.5\ndef also():\n    pass\n")
    (tmp_path / "broken.py").write_text("def f(\n")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    path, message = path.format(tmp_path), message.format(tmp_path)
    with pytest.raises(ConfigError, match="^" + re.escape(f'reward function "{path}" {message}') + "$"):
        load_reward(path)
