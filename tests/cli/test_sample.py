"""The film in a terminal: what each step wrote, how sure the model was, and nothing that the
terminal would obey."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.helpers.runs import unmask
from unmask.cli import sample as film
from unmask.cli.sample import Film, colour, legend, timeline, watch
from unmask.core.config import SamplerConfig
from unmask.models import load_model
from unmask.sampling import Snapshot

SAMPLER = SamplerConfig(max_completion_length=16, num_steps=4, temperature=0.9)
PUZZLE = "0120340000000021="


class Letters:
    """Decodes token i as the i-th of its texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.texts[i] for i in ids)


def terminal(width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, height=40, legacy_windows=False
    )


def plain(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_watching_on_a_terminal_draws_the_states_in_one_place(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(film.time, "sleep", naps.append)
    console = terminal()
    sampler = SamplerConfig(max_completion_length=8, num_steps=4, temperature=0.9)
    watch(load_model(tiny_model), "1234=", sampler, seed=1, delay=0.25, console=console)
    assert naps == [0.25] * 4
    assert "step   4/4" in plain(console)
    assert "entropy at commitment, nats" in plain(console)
    assert isinstance(console.file, io.StringIO)
    # Cursor movements, and colours between green and red.
    assert "\x1b[1A" in console.file.getvalue()
    assert re.search(r"38;2;\d+;\d+;60m", console.file.getvalue())


def test_a_pipe_gets_a_line_for_each_step_without_escapes(tiny_model: Path) -> None:
    out = io.StringIO()
    watch(
        load_model(tiny_model),
        PUZZLE,
        SAMPLER,
        seed=1,
        delay=9.0,
        verdict=lambda _: "solved",
        console=Console(file=out),
    )
    lines = out.getvalue().splitlines()
    assert lines[0] == f"prompt: {PUZZLE}"
    assert [line[:10] for line in lines[1:5]] == [f"step   {k}/4" for k in (1, 2, 3, 4)]
    assert [line.count("·") for line in lines[1:5]] == [12, 8, 4, 0]
    assert lines[5].startswith("completion: ")
    assert "\x1b" not in out.getvalue()


def test_a_sudoku_is_a_board_with_the_blanks_of_the_puzzle_in_brackets() -> None:
    frames = Film(Letters("·", *"1234"), PUZZLE, SAMPLER, mask_id=0)  # type: ignore[arg-type]
    tokens = torch.tensor([[4, 1, 2, 0] + [0] * 12])
    step = torch.tensor([[0, 0, 1, 4] + [4] * 12], dtype=torch.int32)
    frames.take(Snapshot(1, tokens, step, torch.tensor([[0.5, 0.25, 1.5, 0.0] + [0.0] * 12]), 0.5))
    console = terminal()
    console.print(frames.frame(100))
    assert "    [4]   1      2   [·]\n" in plain(console)
    assert "step   2/4  1 token written, H = 1.50 nats" in plain(console)
    assert isinstance(console.file, io.StringIO)
    # This step's token is underlined, the others are not.
    assert re.search(r"\x1b\[1;4;38;2;\d+;\d+;60m2", console.file.getvalue())
    assert re.search(r"\x1b\[38;2;\d+;\d+;60m4", console.file.getvalue())


def test_anything_but_a_board_is_text() -> None:
    frames = Film(Letters("·", "if\n", "x\x1b[2J", ""), "write code", SAMPLER, mask_id=0)  # type: ignore[arg-type]
    tokens, step = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[0, 0, 0, 4]], dtype=torch.int32)
    frames.take(Snapshot(0, tokens, step, torch.zeros(1, 4), 0.25))
    assert frames.line().plain == "step   1/4  if⏎x␛[2J∎·"


def test_the_timeline_is_as_high_as_the_entropy_and_fits_its_width() -> None:
    line = timeline([0.0, 1.0, 2.0, 0.5], 6, 80)
    assert line.plain == "▁▅█▃··"
    assert [str(span.style) for span in line.spans if "underline" in str(span.style)] == [
        f"{colour(0.5)} bold underline"
    ]
    # 100 steps in 20 columns: the largest of five each.
    many = timeline([0.0] * 7 + [2.0], 100, 20)
    assert many.plain == "▁█" + "·" * 18


def test_small_entropies_do_not_fill_a_bar_and_bars_do_not_shrink_when_more_arrive() -> None:
    assert timeline([0.03], 3, 80).plain == "▁··"
    assert timeline([1.0], 3, 80).plain[0] == timeline([1.0, 2.0], 3, 80).plain[0]


def test_the_legend_of_a_board_explains_its_brackets() -> None:
    assert "[ ] filled by the model" in legend(has_board=True).plain
    assert "[ ]" not in legend().plain


def test_the_legend_says_what_colours_and_marks_mean() -> None:
    assert "nats: ■ 0  ■ 0.5  ■ 1  ■ 1.5  ■ 2+  this step" in legend().plain
    assert (colour(0.0), colour(2.0), colour(99.0)) == ("rgb(40,180,60)", "rgb(240,60,60)", "rgb(240,60,60)")


def test_the_command_says_whether_the_row_is_solved(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmask("sample", tiny_model, "--task", "sudoku", "--steps", 4) == 0
    said = capsys.readouterr().out
    completion = re.search(r"^completion: (.*)$", said, flags=re.MULTILINE)
    assert completion is not None
    right = re.search(r"^(?:solved|not solved; the answer is ([1-4]{16}))$", said, flags=re.MULTILINE)
    assert right is not None
    assert right[1] != completion[1]
    # A pipe has no colours to explain.
    assert "green" not in said
