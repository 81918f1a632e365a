"""The program of a worker process: it loads one function and answers requests to call it.

`unmask.rewards.workers` starts it as `python -m unmask.rewards.worker PATH MEMORY KIND`, writes pickled requests to its
standard input and reads one line of JSON for each from its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from unmask.core.errors import ConfigError, RewardError
from unmask.core.timeouts import time_limit
from unmask.rewards.protocol import (
    RewardFunc,
    Score,
    call_reward,
    judges_each,
    load_reward,
    parameters_of,
    raised,
    reasons_of,
)
from unmask.rewards.workers import PATIENCE, Kind


def _plain(value: Any) -> Any:
    """A value as JSON has it; a `Score` keeps its reason, tensors and arrays become lists."""
    if isinstance(value, Score):
        return {"score": float(value), "reason": value.reason}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a function returns, awaited if need be."""
    try:
        value = function(**arguments)
        return asyncio.run(value) if inspect.iscoroutine(value) else value
    except BaseException as error:
        raise RewardError(f"raised {type(error).__name__}: {error}") from error


def _facts_of(function: RewardFunc) -> dict[str, Any]:
    """What the other side must know of a function that it does not import."""
    parameters = [
        (parameter.name, int(parameter.kind), parameter.default is parameter.empty)
        for parameter in parameters_of(function).values()
    ]
    return {"parameters": parameters, "reasons": list(reasons_of(function)), "judges_each": judges_each(function)}


class _Server:
    """The worker's side: read a request, call, reply with a line of JSON, until the pipe is closed."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.pid = kind, os.getpid()
        self.inbox, self.outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        # What the function prints, or reads, must not get between the replies.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        """Let go of the pipes in a forked child, which would keep them open beyond the end of this process."""
        for pipe, flags in ((self.inbox, os.O_RDONLY), (self.outbox, os.O_WRONLY)):
            nowhere = os.open(os.devnull, flags)
            os.dup2(nowhere, pipe.fileno(), inheritable=False)
            os.close(nowhere)

    def serve(self, path: str) -> None:
        """Load the function and answer until nobody asks any more."""
        token = pickle.load(self.inbox)
        try:
            name, function = load_reward(path)
        except ConfigError as error:
            self._reply(token, None, str(error))
            return
        self._reply(token, _facts_of(function))
        while True:
            try:
                token, timeout, arguments = pickle.load(self.inbox)
            except EOFError:
                return
            # The pool stops a call that is late. Should the pool be gone, the process stops itself.
            signal.setitimer(signal.ITIMER_REAL, PATIENCE * timeout + 5)
            try:
                with time_limit(timeout):
                    is_reward = self.kind == "reward"
                    value = call_reward(name, function, arguments) if is_reward else _call(function, arguments)
                self._reply(token, value)
            except KeyboardInterrupt as error:
                self._reply(token, None, str(raised(name, function, error)))
            except BaseException as error:
                self._reply(token, None, str(error) or type(error).__name__)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _reply(self, token: str, value: Any, message: str = "") -> None:
        if os.getpid() != self.pid:
            # A child that the function has forked and let return. The answer is its parent's to give.
            os._exit(0)
        # On a line of its own, whatever somebody else has written before.
        self.outbox.write(f"\n{token}{json.dumps([_plain(value), message])}\n".encode())
        self.outbox.flush()


def _main(path: str, memory: int, kind: Kind) -> None:
    server = _Server(kind)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        # Where the machine runs out of memory, Linux ends this process before the one that trains.
        file.write("1000")
    if memory:
        with contextlib.suppress(ValueError, OSError):  # not every system has this limit
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    server.serve(path)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), "reward" if sys.argv[3] == "reward" else "function")
