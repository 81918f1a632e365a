"""The command line. A command imports heavy packages only when it runs, so that help appears
without delay."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer

from unmask import __version__
from unmask.cli import advice, catalogue, checkpoints, evaluation, results, serving, training
from unmask.cli.options import say
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
for module in (training, evaluation, results, serving, checkpoints, catalogue, advice):
    app.add_typer(module.app)

_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: with anything else on the cores, spinning made
    # a step 5 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A progress bar for each file of a tiny model would only be noise.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # transformers warns about padding without a mask whenever a completion contains a PAD token.
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment variables that are set before the libraries that read them are imported. A value that
the user has set stays."""


class _Visible(logging.Formatter):
    """Formatter that makes control characters in log messages visible."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"unmask {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Define the options of all commands."""


def main() -> None:
    """Run the command line. An error of unmask prints its message and ends with its exit code, by
    default 2."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if logging.lastResort is not None:
        # This handler prints warnings, and like errors they quote text from files and models.
        logging.lastResort.setFormatter(_Visible())
    try:
        app(prog_name="unmask")
    except UnmaskError as error:
        # If every rank raises this error, only rank 0 prints it.
        if not error.is_agreed or os.environ.get("RANK", "0") == "0":
            say("\n  ".join([f"{error.kind}: {error}", *getattr(error, "__notes__", ())]), err=True)
        if isinstance(error, LostProcessError) and "RANK" in os.environ:
            # A normal exit would close connections to ranks that are gone, and could wait for them
            # forever.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except OSError as error:
        # A closed pipe is not an error of the run, and an OSError without a number does not come
        # from the file system.
        if error.errno in (None, errno.EPIPE):
            raise
        path = f"{error.filename}: " if error.filename else ""
        say(f"{RunError.__name__}: {path}{error.strerror}. Check this path, or use another one.", err=True)
        sys.exit(UnmaskError.exit_code)
