"""The denoising film in a terminal, which shows the tokens that each step commits, and their
entropy.

A terminal shows the film live; a pipe gets a plain line for each step.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from unmask.core.text import visible
from unmask.functional.noise import named_generator
from unmask.sampling.encoding import decode, row_seeds
from unmask.sampling.engine import LocalEngine

if TYPE_CHECKING:
    from rich.console import RenderableType
    from transformers import PreTrainedTokenizerBase

    from unmask.core.config import SamplerConfig
    from unmask.models import Policy
    from unmask.sampling import Snapshot
    from unmask.sampling.encoding import Prompt

HOT = 2.0
"""Entropy in nats at which the colour of a token reaches full red."""
BARS = "▁▂▃▄▅▆▇█"
HIDDEN, END = "·", "∎"
PROMPT_SHOWN = 400
"""Maximum number of characters of a prompt that are shown."""


def watch(
    policy: Policy,
    prompt: Prompt,
    sampler: SamplerConfig,
    *,
    seed: int,
    delay: float,
    verdict: Callable[[str], str] | None = None,
    console: Console | None = None,
) -> None:
    """Show one completion being denoised.

    Args:
        policy: the model and its tokenizer.
        prompt: the text to complete.
        sampler: settings of the denoising loop.
        seed: seed of the random draws.
        delay: seconds to show each step on a terminal.
        verdict: function from the finished completion to a text about it, such as its reward.
        console: console to print to; default standard output.
    """
    from rich.live import Live

    console, tokenizer = console or Console(), policy.tokenizer
    film = Film(tokenizer, prompt, sampler, policy.denoiser.mask_id)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def show(snapshot: Snapshot) -> None:
        film.take(snapshot)
        if live is None:
            console.print(film.line(), soft_wrap=True, highlight=False)
        else:
            live.update(film.frame(console.width), refresh=True)
            time.sleep(delay)

    console.print(Text(f"prompt: {shortened(visible(str(prompt)))}"), soft_wrap=True)
    with live or nullcontext():
        seeds = row_seeds(1, named_generator(seed, "sample"))
        path = LocalEngine(policy).rollout([prompt], sampler, seeds, observe=show)
    completion = decode(tokenizer, path.tokens)[0]
    comment = f"\n{visible(verdict(completion))}" if verdict else ""
    entropy = f"entropy of the whole path: {float(path.entropy.sum()):.2f} nats"
    num_forwards, num_tokens = int(path.forwards[0]), int(path.tokens_committed[0])
    forwards = f"{num_forwards} forward passes, {num_tokens / num_forwards:.2f} tokens each"
    console.print(Text(f"completion: {visible(completion)}{comment}\n{entropy}\n{forwards}"), soft_wrap=True)


class Film:
    """Frames of one completion, made from snapshots of its denoising steps.

    Args:
        tokenizer: tokenizer to decode tokens with.
        prompt: the text to complete; a 4x4 Sudoku without further text is shown as a board.
        sampler: settings of the denoising loop, for its number of steps.
        mask_id: id of the mask token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, sampler: SamplerConfig, mask_id: int
    ) -> None:
        self._tokenizer, self._mask_id, self._num_steps = tokenizer, mask_id, sampler.steps
        self._limit = f"at most {sampler.steps}" if sampler.is_adaptive else str(sampler.steps)
        is_board = sampler.max_completion_length == 16 and re.fullmatch(r"[0-4]{16}=", str(prompt))
        self._clues = str(prompt)[:16] if is_board else None
        self._joint: list[float] = []
        self._pieces: list[tuple[str, str]] = []
        self._step = self._written = 0

    def take(self, snapshot: Snapshot) -> None:
        """Take the snapshot of the next step."""
        rows = (snapshot.tokens[0].tolist(), snapshot.unmask_step[0].tolist(), snapshot.entropy[0].tolist())
        self._step = snapshot.step
        self._pieces = [self._piece(*cell) for cell in zip(*rows, strict=True)]
        now = [entropy for _, step, entropy in zip(*rows, strict=True) if step == snapshot.step]
        self._written = len(now)
        self._joint.append(math.fsum(now))

    def line(self) -> Text:
        """Return the state as one line, for a pipe."""
        pieces = [(piece.replace("\n", "⏎"), style) for piece, style in self._pieces]
        return Text.assemble(f"{self._count()}  ", *pieces)

    def frame(self, width: int) -> RenderableType:
        """Return the state with its timeline and legend, for a terminal of `width` columns."""
        written = f"{self._written} token{'s' if self._written != 1 else ''} written"
        status = f"{self._count()}  {written}, H = {self._joint[-1]:.2f} nats"
        return Group(
            Text(),
            self._board() if self._clues else Text.assemble(*self._pieces),
            Text(),
            Text("H of each step  ") + timeline(self._joint, self._num_steps, max(8, width - 17)),
            Text(status),
            legend(has_board=self._clues is not None),
        )

    def _count(self) -> str:
        """Return the number of the step, and of all steps."""
        return f"step {self._step + 1:>3}/{self._limit}"

    def _piece(self, token: int, step: int, entropy: float) -> tuple[str, str]:
        if token == self._mask_id:
            return HIDDEN, "dim"
        piece = visible(str(self._tokenizer.decode([token], skip_special_tokens=True))) or END
        # The underline shows the step without colours too.
        return piece, colour(entropy) + (" bold underline" if step == self._step else "")

    def _board(self) -> Text:
        """Return four rows of four cells in separate boxes, with brackets around the cells that the
        puzzle leaves blank."""
        assert self._clues is not None
        board = Text()
        for i, (piece, style) in enumerate(self._pieces):
            left, right = "[]" if self._clues[i] == "0" else "  "
            board.append(f"{'  ' if i % 4 else '    '}{left}").append(piece, style=style).append(right)
            board.append("  " if i % 4 == 1 else "")
            board.append("\n" if i % 4 == 3 and i < 15 else "").append("\n" if i == 7 else "")
        return board


def timeline(joint: Sequence[float], num_steps: int, width: int) -> Text:
    """Return the joint entropy of each step as bars, with the newest step underlined.

    A full bar is `HOT` nats or the largest entropy, whichever is greater, so that bars do not
    shrink while values are small. If there are more steps than columns, a column shows the largest
    value of its steps.
    """
    per_column = max(1, -(-num_steps // width))
    top = max([*joint, HOT])
    line = Text()
    for start in range(0, num_steps, per_column):
        part = joint[start : min(start + per_column, len(joint))]
        if not part:
            line.append(HIDDEN, style="dim")
            continue
        is_newest = start <= len(joint) - 1 < start + per_column
        bar = BARS[min(len(BARS) - 1, int(max(part) / top * len(BARS)))]
        line.append(bar, style=colour(max(part)) + (" bold underline" if is_newest else ""))
    return line


def legend(has_board: bool = False) -> Text:
    """Return an explanation of the colours and marks of a frame; a board also has brackets around
    the blank cells."""
    text = Text("entropy at commitment, nats: ")
    for value in (0.0, 0.5, 1.0, 1.5, HOT):
        text.append("■", style=colour(value)).append(f" {value:g}{'+' if value == HOT else ''}  ")
    text.append("this step", style="bold underline").append(f"  {HIDDEN} hidden  {END} end")
    return text.append("  [ ] filled by the model") if has_board else text


def colour(entropy: float) -> str:
    """Return a colour between green (0 nats, certain) and red (`HOT` nats or more, uncertain)."""
    heat = min(1.0, entropy / HOT)
    return f"rgb({int(40 + 200 * heat)},{int(180 - 120 * heat)},60)"


def shortened(text: str) -> str:
    """Return the last `PROMPT_SHOWN` characters of a prompt. The question is usually at its end."""
    return text if len(text) <= PROMPT_SHOWN else f"... {text[-PROMPT_SHOWN:]}"
