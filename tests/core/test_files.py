"""Tests of damaged and hostile files, and of files that are written completely or not at all."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from tests.helpers.messages import raises
from tests.helpers.runs import unmask
from unmask.core.errors import ConfigError, RunError
from unmask.core.files import (
    MAX_YAML_NODES,
    YamlError,
    parse_yaml,
    read_json_lines,
    read_json_object,
    read_text,
    read_yaml,
)
from unmask.core.timeouts import interrupted_after
from unmask.recipes.load import load_recipe
from unmask.report.figure_style import panels, save_figure, save_table

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, f"stand for more than {MAX_YAML_NODES:,} values"),
        (MERGES, f"stand for more than {MAX_YAML_NODES:,} values"),
        ("a: &a [*a]\n", "contains itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: 0x_\n", "invalid literal"),
        ("a: 2024-99-99\n", "month"),
        (f"a: {'1' * 5000}\n", "digits"),
        ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("a" * 2**21, "at most"),
        ("? {a: 1}\n: b\n", "unhashable"),
        ("a: \x00\n", "not allowed"),
    ],
)
def test_yaml_that_is_invalid_or_would_take_too_long_is_refused(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        parse_yaml(text)


def test_aliases_that_repeat_a_little_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {x: 1}, y: 2}\n") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"x": 1, "y": 2},
    }


def test_a_yaml_bomb_in_a_recipe_or_setting_is_refused_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMB)
    assert unmask("train", tmp_path / "bomb.yaml") == 2
    assert "bomb.yaml cannot be read as YAML: its aliases stand for more than" in capsys.readouterr().err
    with raises(ConfigError, "the value is not valid YAML (its aliases stand for"):
        load_recipe("sudoku-tiny", ["task={" + BOMB.replace("\n", ", ") + "}"])


def test_an_error_about_a_file_that_is_not_text_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        (b"x\n\xff", "is not UTF-8 text: line 2 holds other bytes"),
        (b"{", r"cannot be read as JSON: .*\(char 1\)\.$"),
        (b"[1]", "must hold a JSON object, not list"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        path.write_bytes(content)
        with pytest.raises(RunError, match=message):
            read_json_object(path)
    path.write_text("- 1\n")
    with raises(RunError, "holds a list"):
        read_yaml(path)
    path.unlink()
    path.mkdir()
    with raises(RunError, "is not a file"):
        read_text(path)
    os.mkfifo(tmp_path / "pipe")
    with raises(RunError, "is not a file"):
        read_text(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with raises(RunError, "No such file"):
        read_text(tmp_path / "link")
    with raises(RunError, "File name too long", snapshot=False):
        read_text(tmp_path / ("x" * 300))


def test_json_lines_are_read_up_to_an_unfinished_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for text in ('{"a": 1}\n{"a": 2}\n{"a"', '{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 2}', '{"a": 1}\n{"a": 2}\n[3]'):
        path.write_text(text)
        assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text("")
    assert read_json_lines(path) == []
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with raises(RunError, "lines.jsonl, line 2 is not a JSON object: '{\"a\"'. Remove it"):
        read_json_lines(path, advice="Remove it.")


def test_a_name_with_dollar_signs_is_shown_as_text(tmp_path: Path) -> None:
    with panels(1) as (figure, (axis,)):
        axis.set_title("costs $5 and $x^{")
        axis.plot([1], [1], label="$\\frac{")
        axis.legend()
        save_figure(figure, tmp_path / "a.svg")
    assert "costs $5 and $x^{" in (tmp_path / "a.svg").read_text()


def test_cells_that_a_spreadsheet_would_execute_are_quoted(tmp_path: Path) -> None:
    cells = ["=1+1", "+1", "-x", "@SUM(A1)", " =1", "plain", -1.5, 2]
    save_table(tmp_path / "a.csv", list("abcdefgh"), [cells])
    with (tmp_path / "a.csv").open(newline="") as file:
        _, row = csv.reader(file)
    assert row == ["'=1+1", "'+1", "'-x", "'@SUM(A1)", "' =1", "plain", "-1.5", "2"]


def test_a_figure_or_table_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def half(target: Path, content: bytes) -> None:
        with target.open("wb") as file:
            file.write(content[:4])
        raise OSError(28, "No space left on device")

    with panels(1) as (figure, _), monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with raises(RunError, "a.png cannot be written (No space left on device)"):
            save_figure(figure, tmp_path / "a.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]
    with raises(RunError, "cannot be written"):
        save_table(tmp_path / "a.png" / "a.csv", ["a"], [[1]])
    plt.close("all")


def test_slow_code_is_interrupted_and_quick_code_is_not() -> None:
    def loop() -> None:
        with interrupted_after(0.05, "too slow"):
            while True:
                pass

    with pytest.raises(TimeoutError, match="too slow"):
        loop()
    with interrupted_after(0.05, "too slow"):
        pass
    # Later code is not interrupted.
    time.sleep(0.1)
    with pytest.raises(ValueError, match="its own"), interrupted_after(5, "too slow"):
        raise ValueError("its own")
