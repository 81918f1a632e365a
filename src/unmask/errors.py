"""Errors that a user can mend: each message says what was wrong, what was given and what to do.

The command line prints them without a stack trace and exits with code 2. Anything else that is raised is a bug of ours
and keeps its trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnmaskError(Exception):
    """Base of every error that is for the user."""

    exit_code = 2
    """Of the command that it ends."""
    is_agreed = False
    """Whether all processes of a run raise it, so that one may speak for all."""

    @property
    def kind(self) -> str:
        """What the message is headed with."""
        return type(self).__name__


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


def unknown_name(kind: str, name: str, available: Iterable[str]) -> str:
    """One sentence for a name that is not there: the nearest one, then all of them.

    Example:
        >>> unknown_name("method", "egpso", ["egspo", "egspo_sa"])
        'unknown method "egpso". Did you mean "egspo"? Available: egspo, egspo_sa.'
    """
    names = sorted(available)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'unknown {kind} "{name}".{hint} Available: {", ".join(names)}.'
