"""Errors that a user can correct: each message says what is wrong, what was given and what to do.

The command line prints them without a stack trace and exits with code 2. Any other exception is a
bug in this package and keeps its trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from unmask.core.text import visible


class UnmaskError(Exception):
    """Base class of all errors that a user can correct.

    Messages quote file names, columns, tensors and other libraries. Control characters in them are
    therefore spelled out wherever the message is shown: on the command line, in Python, in a log or
    in a results file.

    Args:
        arguments: message, as for any exception.
        agreed: True if every rank of a run raises this error.
    """

    exit_code = 2
    """Exit code of a command that ends with this error."""

    def __init__(self, *arguments: object, agreed: bool = False) -> None:
        super().__init__(*arguments)
        self.is_agreed = agreed
        """True if every rank of a run raises this error, so that only rank 0 prints it."""

    @property
    def kind(self) -> str:
        """Heading of the message."""
        return type(self).__name__

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(UnmaskError):
    """Error in a recipe, an override or an argument."""


class DataError(UnmaskError):
    """Error in a dataset: rows that lack a column, are empty, or cannot be read."""


class ModelError(UnmaskError):
    """Error in a model folder that holds no usable masked diffusion model."""


class RolloutError(UnmaskError):
    """Error in a rollout: the policy that sampled it differs too much from the policy that is
    trained."""


class EngineError(UnmaskError):
    """Error in a rollout engine outside this process: a server that does not answer, or an answer
    that cannot be used."""


class RewardError(UnmaskError):
    """Error in a reward function that raised an exception, did not return in time, or returned
    something other than a list of rewards."""


class RunError(UnmaskError):
    """Error in a run folder, in a checkpoint, or on the disk that holds them."""


class LostProcessError(RunError):
    """A process of the run is stuck or has ended. No saved file is lost, and the run can be
    resumed."""

    exit_code = 75
    """Exit code EX_TEMPFAIL, "temporary failure, try again", for schedulers that restart a run."""


def reason(error: BaseException) -> str:
    """Return the first line of another library's error message, or the class of the error if the
    message is empty.

    Example:
        >>> reason(OSError("no such file\\nand a page of advice")), reason(KeyError())
        ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def no_file(path: str | os.PathLike[str], what: str = "file") -> str:
    """Return a sentence about a path where nothing exists. For a relative path, the sentence names
    the folder to which the path is relative.

    Example:
        >>> no_file("/data/rows.csv")
        'there is no file /data/rows.csv.'
    """
    where = "" if Path(path).is_absolute() else f" Relative paths are read from the current folder, {Path.cwd()}."
    shown = str(path) if len(str(path)) <= MAX_PATH_CHARACTERS else f"{str(path)[:MAX_PATH_CHARACTERS]}..."
    return f"there is no {what} {shown}.{where}"


MAX_PATH_CHARACTERS = 300
"""Maximum number of characters of a path that a message quotes. A user may pass a long row of data
where a path is expected."""

MISSPELLING_CUTOFF = 0.85
"""Minimum similarity, as difflib measures it, at which a name counts as a misspelling of another
name."""


def nearest(name: str, names: Iterable[str], cutoff: float = MISSPELLING_CUTOFF) -> list[str]:
    """Return a list with the known name that a misspelled name probably stands for; an empty list
    if there is none. The two names have nearly all letters in common, or the same letters in
    another order.

    Example:
        >>> nearest("widht", ["width", "depth"]), nearest("max_steps", ["eval_steps"]), nearest("EGSPO-SA", ["egspo_sa"])
        (['width'], [], ['egspo_sa'])
    """
    names = sorted(names)
    alike = [n for n in names if _letters(n) == _letters(name)]
    return alike[:1] or get_close_matches(name, names, n=1, cutoff=cutoff)


def _letters(name: str) -> list[str]:
    """Return the letters of a name in sorted order, in lower case, with underscores replaced by
    dashes."""
    return sorted(name.lower().replace("_", "-"))


def unknown_name(kind: str, name: str, available: Iterable[str]) -> str:
    """Return a message about a name that does not exist: first the name that was probably meant,
    then all names that exist.

    Example:
        >>> unknown_name("method", "egpso", ["egspo", "egspo_sa"])
        'unknown method "egpso". Did you mean "egspo"? Available: egspo, egspo_sa.'
    """
    names = sorted(available)
    # The names of one table are alternatives, so a lower similarity is enough here than among keys.
    near = nearest(name, names, cutoff=0.6)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'unknown {kind} "{name}".{hint} Available: {", ".join(names)}.'
