"""Errors that a user can correct: each message says what was wrong, what was given and what to do.

The command line prints them without a stack trace and exits with code 2. Any other exception is a bug in this package and
keeps its trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from unmask.core.text import visible


class UnmaskError(Exception):
    """Base of every error that is for the user.

    Messages quote file names, columns, tensors and other libraries, so control characters in them are spelt out wherever the
    message is shown: on the command line, in Python, in a log or in a results file.
    """

    exit_code = 2
    """Of the command that it ends."""
    is_agreed = False
    """Whether all processes of a run raise it, so that one may speak for all."""

    @property
    def kind(self) -> str:
        """What the message is headed with."""
        return type(self).__name__

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(UnmaskError):
    """A recipe, an override or an argument that cannot be used as given."""


class DataError(UnmaskError):
    """Rows that lack a column, are empty, or cannot be read."""


class ModelError(UnmaskError):
    """A folder that holds no usable masked diffusion model."""


class RewardError(UnmaskError):
    """A reward function that raised, hung, or returned something that is no list of rewards."""


class RunError(UnmaskError):
    """A run folder, a checkpoint or the disk under it that does not allow what was asked."""


class LostProcessError(RunError):
    """A process of the run is stuck or gone; nothing that was saved is lost, and the run can go on."""

    exit_code = 75
    """"Temporary failure, try again" (EX_TEMPFAIL), for schedulers that start a run anew."""


def reason(error: BaseException) -> str:
    """The first line of what another library's error says, or its kind where it says nothing.

    Example:
        >>> reason(OSError("no such file\\nand a page of advice")), reason(KeyError())
        ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def no_file(path: str | os.PathLike[str], what: str = "file") -> str:
    """One sentence for a path where nothing is; for a relative one it says which folder the path was read from.

    Example:
        >>> no_file("/data/rows.csv")
        'there is no file /data/rows.csv.'
    """
    where = "" if Path(path).is_absolute() else f" Relative paths are read from the current folder, {Path.cwd()}."
    shown = str(path) if len(str(path)) <= LONGEST_PATH else f"{str(path)[:LONGEST_PATH]}..."
    return f"there is no {what} {shown}.{where}"


LONGEST_PATH = 300
"""Characters of a path that a message quotes: rows that are given where a path belongs may be very long."""

MISSPELT = 0.85
"""Share of letters in common, as difflib counts them, from which on a name counts as a misspelling of another."""


def nearest(name: str, names: Iterable[str], cutoff: float = MISSPELT) -> list[str]:
    """The name that this one is a misspelling of: nearly all letters are the same, or the same letters are in another order.

    Example:
        >>> nearest("widht", ["width", "depth"]), nearest("max_steps", ["eval_steps"]), nearest("EGSPO-SA", ["egspo_sa"])
        (['width'], [], ['egspo_sa'])
    """
    names = sorted(names)
    alike = [n for n in names if _letters(n) == _letters(name)]
    return alike[:1] or get_close_matches(name, names, n=1, cutoff=cutoff)


def _letters(name: str) -> list[str]:
    """The letters of a name in an order of their own, whatever their case, with dashes for underscores."""
    return sorted(name.lower().replace("_", "-"))


def unknown_name(kind: str, name: str, available: Iterable[str]) -> str:
    """One sentence for a name that does not exist: the one it may be a misspelling of, then all of them.

    Example:
        >>> unknown_name("method", "egpso", ["egspo", "egspo_sa"])
        'unknown method "egpso". Did you mean "egspo"? Available: egspo, egspo_sa.'
    """
    names = sorted(available)
    # The names of one table are alternatives of one kind, so a looser likeness is enough than among keys.
    near = nearest(name, names, cutoff=0.6)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'unknown {kind} "{name}".{hint} Available: {", ".join(names)}.'
