"""The command line. Heavy packages are imported inside the commands, so that help is there at once."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer

from unmask import __version__
from unmask.cli.advice import advice
from unmask.cli.catalogue import catalogue
from unmask.cli.checkpoints import checkpoints
from unmask.cli.evaluation import evaluation
from unmask.cli.options import say
from unmask.cli.results import results
from unmask.cli.training import training
from unmask.core.errors import LostProcessError, RunError, UnmaskError
from unmask.core.text import visible

app = typer.Typer(
    name="unmask",
    help="Reinforcement learning for diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for commands in (training, evaluation, results, checkpoints, catalogue, advice):
    app.add_typer(commands)

_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: with anything else on the cores, spinning made a step 5 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Saving and loading a tiny model needs no progress bar of its own.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # transformers warns of padding without a mask whenever a completion holds a PAD token.
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before the libraries that read them are imported, unless the user has set them."""


class _Visible(logging.Formatter):
    """A record's message with control characters spelt out."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"unmask {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take what holds for all commands."""


def main() -> None:
    """Run the command line; a user's mistake ends with its message and exit code 2."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if logging.lastResort is not None:
        # Warnings go to the terminal by this handler, and quote texts from outside as errors do.
        logging.lastResort.setFormatter(_Visible())
    try:
        app(prog_name="unmask")
    except UnmaskError as error:
        # What all processes of a run have agreed on is said by one of them.
        if not error.is_agreed or os.environ.get("RANK", "0") == "0":
            say("\n  ".join([f"{error.kind}: {error}", *getattr(error, "__notes__", ())]), err=True)
        if isinstance(error, LostProcessError) and "RANK" in os.environ:
            # An orderly end would close connections to processes that are gone, and may wait for them for ever.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except OSError as error:
        # A pipe whose reader has left is no fault, and what has no number does not come from the file system.
        if error.errno in (None, errno.EPIPE):
            raise
        place = f"{error.filename}: " if error.filename else ""
        say(f"{RunError.__name__}: {place}{error.strerror}. Look at that place, or name another one.", err=True)
        sys.exit(UnmaskError.exit_code)
