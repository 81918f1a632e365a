"""The denoising of one completion as a strip of pictures: what was written when, how sure the model was, what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from unmask.records import Rollout
from unmask.style import save_figure

ENTROPY_SCALE = 1.0
"""Nats at which the colour is as deep as it gets."""
SURE, OPEN = "#f6f3e6", "#3f2f9d"
"""Colours of a token that was certain, and of one that was not: the report's, told apart by lightness alone too."""
DEEP = 0.66
"""Share of the scale from which on letters are white."""


def plot_filmstrip(
    rollout: Rollout, row: int, decode: Callable[[int], str], target: Path, columns: int | None = None
) -> Path:
    """Draw completion `row` of a rollout after every denoising step into `target` (PNG or SVG).

    One grid a step, tokens coloured by their entropy when they were committed; the steps that were selected for training are
    framed. Under each grid its joint entropy H_k in nats; under the selected ones also r(x̂_k), the reward of the greedy
    one-step completion of the state before.

    Args:
        rollout: as kept in a run's rollouts/.
        row: which completion.
        decode: the text of a token id.
        target: the file to write.
        columns: tokens in a line of the grid; default a square as near as can be.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    path = rollout.trajectory.rows(slice(row, row + 1))
    tokens, steps, entropy = (getattr(path, name)[0].tolist() for name in ("tokens", "unmask_step", "entropy"))
    width = columns or math.ceil(math.sqrt(len(tokens)))
    height = math.ceil(len(tokens) / width)
    colours = LinearSegmentedColormap.from_list("entropy", [SURE, OPEN])
    values = _values(rollout, row)
    figure, axes = plt.subplots(
        1, path.num_steps, figsize=(1.25 * path.num_steps, 2.1), layout="constrained", squeeze=False
    )
    for k, axis in enumerate(axes[0]):
        for i, token in enumerate(tokens):
            x, y = i % width, height - 1 - i // width
            shown = steps[i] <= k
            share = min(1.0, entropy[i] / ENTROPY_SCALE)
            face, edge = (colours(share), "#c9c4b8") if shown else ("white", "#e3dfd7")
            axis.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=edge, linewidth=0.8))
            if shown:
                style = {
                    "fontweight": "bold" if steps[i] == k else "normal",
                    "color": "white" if share > DEEP else "#1b1a18",
                }
                axis.text(x + 0.5, y + 0.47, decode(token), ha="center", va="center", fontsize=9, **style)
        joint = sum(value for value, step in zip(entropy, steps, strict=True) if step == k)
        label = f"H = {joint:.2f}"
        if k in values:
            axis.add_patch(
                Rectangle((0, 0), width, height, fill=False, edgecolor="#111111", linewidth=2.5, clip_on=False)
            )
            label += f"\nr(x̂) = {values[k]:.2f}"
        axis.set(xlim=(0, width), ylim=(0, height), aspect="equal", title=f"step {k}", xticks=[], yticks=[])
        axis.title.set_fontsize(9)
        axis.set_xlabel(label, fontsize=8)
        axis.spines[:].set_visible(False)
    save_figure(figure, target)
    plt.close(figure)
    return target


def _values(rollout: Rollout, row: int) -> dict[int, float]:
    """The selected steps of a completion, each with its one-step reward."""
    path = rollout.trajectory
    if path.greedy_step is None or rollout.one_step_reward is None:
        return {}
    kept = zip(path.greedy_step[row].tolist(), rollout.one_step_reward[row].tolist(), strict=True)
    return {step: value for step, value in kept if step >= 0}
