"""Checks with a time budget: each prints one line, and all results go into one JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch


class CheckSkippedError(Exception):
    """A check cannot run on this machine; the text says why."""


class Outcome(NamedTuple):
    """Result of a check."""

    passes: bool | None
    """Whether the check passes; None for a measurement that has no bound."""
    facts: dict[str, Any]
    """Measured numbers by name."""


class Check(NamedTuple):
    """A function to run, and the number of seconds that it takes on a card of 80 GB."""

    run: Callable[[Any], Outcome]
    seconds: float


CHECKS: dict[str, Check] = {}
"""All checks by name, in the order in which they run."""


def check(seconds: float) -> Callable[[Callable[[Any], Outcome]], Callable[[Any], Outcome]]:
    """Return a decorator that adds a function to `CHECKS`.

    Args:
        seconds: the check is skipped if less time is left.
    """

    def add(function: Callable[[Any], Outcome]) -> Callable[[Any], Outcome]:
        CHECKS[function.__name__] = Check(function, seconds)
        return function

    return add


@dataclass
class Report:
    """Lines of a run and its results by check.

    Args:
        path: JSON file that is written after each check; None writes none. If it has results of the
            same card and versions, those of checks that do not run again stay.
        about: facts about the run, such as the name of the card and the commit. Each result repeats
            the commit.
    """

    path: Path | None
    about: dict[str, Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.earlier: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            before = json.loads(self.path.read_text())
            if all(before.get(key) == self.about.get(key) for key in ("card", "versions")):
                self.earlier = before["checks"]

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self.started

    def add(self, name: str, word: str, facts: dict[str, Any], seconds: float) -> None:
        """Print a line, and write all results."""
        shown = _rounded(facts)
        self.results[name] = {
            "result": word,
            "seconds": round(seconds, 1),
            **shown,
            "commit": self.about.get("commit"),
        }
        print(f"{self.seconds:5.0f} s  {word:8} {name}: {json.dumps(shown, default=str)}", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**self.about, "checks": {**self.earlier, **self.results}}, indent=1, default=str)
            self.path.write_text(text + "\n", encoding="utf-8")

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for name, result in self.results.items() if result["result"] == "FAIL"]


def run(bench: Any, report: Report, names: list[str], budget: float) -> None:
    """Run checks until the budget is spent. A check that raises is a line of the report, and does
    not end the run.

    Args:
        bench: argument of the checks.
        report: lines and results.
        names: checks to run.
        budget: seconds for the whole run.
    """
    for name in names:
        function, seconds = CHECKS[name]
        started = time.monotonic()
        if report.seconds + seconds > budget:
            report.add(name, "skipped", {"reason": f"needs {seconds:.0f} s, and the budget is spent"}, 0.0)
            continue
        try:
            passes, facts = function(bench)
            word = {True: "PASS", False: "FAIL", None: "measured"}[passes]
        except CheckSkippedError as reason:
            word, facts = "skipped", {"reason": str(reason)}
        except Exception as error:
            place = [f for f in traceback.extract_tb(error.__traceback__) if "/unmask/" in f.filename][-1:]
            where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in place]
            word, facts = "FAIL", {"error": f"{type(error).__name__}: {str(error)[:300]}", "at": where}
        report.add(name, word, facts, time.monotonic() - started)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rounded(value: Any) -> Any:
    """Round the numbers in nested results to four digits."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the median number of seconds of a call, after one call that does not count."""
    return statistics.median(wall_seconds(work, repeats + 1)[1:])


def wall_seconds(work: Callable[[], object], runs: int) -> list[float]:
    """Return the number of seconds of each call, with what it left to do on the GPU."""
    times = []
    for _ in range(runs):
        _synchronize()
        started = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - started)
    return times


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def about() -> dict[str, Any]:
    """Return the card, the versions and the commit."""
    packages = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
        "cuda": torch.version.cuda,
        "versions": {name: version for name in packages if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
