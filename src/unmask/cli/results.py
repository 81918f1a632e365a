"""Commands that show the results of a run or a comparison: report and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import numbers, say

app = typer.Typer()


@app.command(name="report")
def report_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs and of comparisons.")],
    output: Annotated[Path | None, typer.Option(help="File to write; default report.html in the first folder.")] = None,
    rollouts: Annotated[
        int,
        typer.Option(min=0, help="Maximum number of saved rollouts to show of each run, evenly spaced; 0 shows none."),
    ] = 200,
) -> None:
    """Write one HTML page that shows what happened in a run.

    The page shows saved completions step by step (the denoising film), the curves of the run and,
    for a comparison, the tables. The curves of several runs are drawn in the same plots.

    The page is a single file that opens from disk and loads nothing from a server.
    """
    from unmask.report.build import write_report

    made = write_report([run.expanduser() for run in runs], output and output.expanduser(), rollouts)
    for note in made.notes:
        say(f"left out: {note}", err=True)
    size = made.size / 1e6
    hint = "; use --rollouts with a smaller number for a smaller file" if size > 20 else ""
    say(f"report: {made.path} ({size:.1f} MB{hint})")


@app.command()
def plot(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or the folder of one comparison.")
    ],
    metric: Annotated[
        str, typer.Option(help="Keys of metrics.jsonl, comma-separated; default accuracies and reward.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="File that ends in .png, .svg or .pdf. The other two formats, and the numbers as .csv, are written beside it."
        ),
    ] = None,
    x: Annotated[
        str, typer.Option(help="Quantity on the x axis: step, token_passes, reward_calls or seconds.")
    ] = "step",
    smooth: Annotated[
        int, typer.Option(min=1, help="Number of measurements to average for a point; accuracies are not averaged.")
    ] = 1,
    across: Annotated[
        str, typer.Option(help="Config keys to average over, in addition to the seed, comma-separated.")
    ] = "",
) -> None:
    """Draw metrics of runs for a paper, with 95 % intervals.

    Runs of one recipe with different seeds form one line, with an interval over seeds. For a single
    run, accuracies have Wilson intervals.

    For a comparison, the file given with --output shows accuracy against compute. If accuracy was
    also measured for several numbers of denoising steps, a second file shows it, such as
    out-decoding.png beside out.png.
    """
    from unmask.core.errors import ConfigError
    from unmask.report.comparison_files import replot
    from unmask.report.plot import plot_metrics

    folders, output = [folder.expanduser() for folder in folders], output and output.expanduser()
    if any((folder / "cells.jsonl").is_file() for folder in folders):
        if len(folders) > 1 or metric or across or x != "step" or smooth > 1:
            raise ConfigError(
                "the figures of a comparison cannot be combined with other runs or options. Give only its folder and --output."
            )
        drawn = replot(folders[0], output)
    else:
        metrics, others = numbers(metric, str, "--metric"), numbers(across, str, "--across")
        drawn = [plot_metrics(folders, metrics, output or Path("plot.png"), x=x, smooth=smooth, across=others)]
    say("\n".join(f"figure: {path}" for path in drawn))
    if not drawn:
        say("nothing to draw: the comparison has measured neither points during its runs nor decoding steps.", err=True)
