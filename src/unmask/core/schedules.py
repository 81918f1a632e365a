"""Schedules of the denoising loop as settings: how many positions a step commits."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.core.errors import ConfigError, unknown_name

SCHEDULE_NAMES = ("entropy_bound", "factor", "fixed", "threshold")
"""Types of schedules; all but `fixed` are adaptive and have a bound."""

_EXAMPLE = {"entropy_bound": 0.3, "factor": 1, "threshold": 0.9}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rule for the number of positions that a step commits, as written in `sampler.schedule`."""

    type: str = "fixed"
    """Type of the rule, one of `SCHEDULE_NAMES`."""
    bound: float = 0.0
    """Bound of an adaptive rule: a probability for `threshold`, the factor f for `factor`, nats for
    `entropy_bound`; 0 for `fixed`."""

    @property
    def is_adaptive(self) -> bool:
        """True if the number of positions depends on the predictions of the model."""
        return self.type != "fixed"

    def __str__(self) -> str:
        return f"{self.type}={self.bound!r}".removesuffix(".0") if self.is_adaptive else self.type

    @staticmethod
    def parse_all(text: str) -> list[Schedule]:
        """Read a comma-separated list of schedules. A number without a type has that of the schedule
        before it.

        Raises:
            ConfigError: as in `parse`.

        Example:
            >>> [str(schedule) for schedule in Schedule.parse_all("fixed,threshold=0.9,0.95,factor=1")]
            ['fixed', 'threshold=0.9', 'threshold=0.95', 'factor=1']
        """
        found: list[Schedule] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            is_number = part[0] in "0123456789.+-"
            found.append(Schedule.parse(f"{found[-1].type}={part}" if is_number and found else part))
        return list(dict.fromkeys(found))

    @staticmethod
    def parse(text: str) -> Schedule:
        """Read a schedule from its setting, such as `fixed` or `threshold=0.9`.

        Raises:
            ConfigError: the type is unknown, or the bound is missing, no number or out of range.

        Example:
            >>> str(Schedule.parse("threshold=0.90")), Schedule.parse("fixed").is_adaptive
            ('threshold=0.9', False)
        """
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in SCHEDULE_NAMES:
            raise ConfigError(unknown_name("schedule", name, SCHEDULE_NAMES))
        if name == "fixed":
            if value:
                raise ConfigError(f'schedule "{text}" has a bound, but the schedule fixed has none. Write fixed.')
            return Schedule()
        example = f"{name}={_EXAMPLE[name]}"
        try:
            bound = float(value)
        except ValueError:
            raise ConfigError(f'schedule "{text}" has no number after its type. Write it as in {example}.') from None
        allowed, is_allowed = {
            "threshold": ("a probability above 0 and up to 1", 0 < bound <= 1),
            "factor": ("a number above 0", 0 < bound < float("inf")),
            "entropy_bound": ("a number of nats, 0 or above", 0 <= bound < float("inf")),
        }[name]
        if not is_allowed:
            raise ConfigError(f'schedule "{text}" is out of range: its bound must be {allowed}, as in {example}.')
        return Schedule(name, bound)
