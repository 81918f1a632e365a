"""Commands that show what a run or a comparison came to: report, plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import numbers, say

results = typer.Typer()


@results.command(name="report")
def report_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, and folders of comparisons.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; default report.html in the first folder.")
    ] = None,
    rollouts: Annotated[
        int, typer.Option(min=0, help="Kept rollouts of each run to show, evenly spaced if it kept more; 0 for none.")
    ] = 200,
) -> None:
    """Write one HTML page that shows what happened in a run.

    The denoising film, the curves of the run, the comparison.

    The file holds all that it shows, opens from disk and asks nothing of any server. Several runs are drawn into the same curves.
    """
    from unmask.report.build import write_report

    made = write_report([run.expanduser() for run in runs], output and output.expanduser(), rollouts)
    for note in made.notes:
        say(f"left out: {note}", err=True)
    size = made.size / 1e6
    hint = "; --rollouts with a smaller number makes it smaller" if size > 20 else ""
    say(f"report: {made.path} ({size:.1f} MB{hint})")


@results.command()
def plot(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or the folder of one comparison.")
    ],
    metric: Annotated[
        str, typer.Option(help="Keys of metrics.jsonl, comma-separated; default accuracies and reward.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="A .png, .svg or .pdf file; all are written, and the numbers as .csv.")
    ] = None,
    x: Annotated[str, typer.Option(help="Against what: step, token_passes, reward_calls or seconds.")] = "step",
    smooth: Annotated[int, typer.Option(min=1, help="Draw means of this many measurements; not of accuracies.")] = 1,
    across: Annotated[
        str, typer.Option(help="Settings that may differ among runs of one line besides the seed, comma-separated.")
    ] = "",
) -> None:
    """Draw metrics of runs for a paper, with 95 % intervals.

    Over seeds, or Wilson's of one run's accuracy.

    Runs of one recipe with different seeds are one line. Of a comparison, accuracy against compute is drawn anew into
    --output, and accuracy against denoising steps, where that was measured, into NAME-decoding beside it.
    """
    from unmask.core.errors import ConfigError
    from unmask.report.comparison_files import replot
    from unmask.report.plot import plot_metrics

    folders, output = [folder.expanduser() for folder in folders], output and output.expanduser()
    if any((folder / "cells.jsonl").is_file() for folder in folders):
        if len(folders) > 1 or metric or across or x != "step" or smooth > 1:
            raise ConfigError("a comparison's figures are drawn alone and take --output only. Name its folder alone.")
        drawn = replot(folders[0], output)
    else:
        metrics, others = numbers(metric, str, "--metric"), numbers(across, str, "--across")
        drawn = [plot_metrics(folders, metrics, output or Path("plot.png"), x=x, smooth=smooth, across=others)]
    say("\n".join(f"figure: {path}" for path in drawn))
    if not drawn:
        say("nothing to draw: the comparison has neither points along its runs nor decoding steps.", err=True)
