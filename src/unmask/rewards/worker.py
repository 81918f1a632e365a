"""Main program of a worker process, which loads one function and calls it on request.

`unmask.rewards.workers` starts it as `python -m unmask.rewards.worker PATH MEMORY KIND`. It reads
pickled requests from standard input and writes one line of JSON for each request to standard
output.
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
    reasons_of,
    reward_error,
)
from unmask.rewards.workers import PATIENCE, Kind


def _plain(value: Any) -> Any:
    """Convert a value for JSON: a `Score` keeps its reason, and tensors and arrays become lists."""
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
    """Return the result of a function, awaited if it is a coroutine."""
    try:
        value = function(**arguments)
        return asyncio.run(value) if inspect.iscoroutine(value) else value
    except BaseException as error:
        raise RewardError(f"raised {type(error).__name__}: {error}") from error


def _facts_of(function: RewardFunc) -> dict[str, Any]:
    """Return the facts that the training process needs about a function that it does not import."""
    parameters = [
        (parameter.name, int(parameter.kind), parameter.default is parameter.empty)
        for parameter in parameters_of(function).values()
    ]
    return {"parameters": parameters, "reasons": list(reasons_of(function)), "judges_each": judges_each(function)}


class _Server:
    """Server loop of a worker: read a request, call the function, reply with a line of JSON."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.pid = kind, os.getpid()
        self.inbox, self.outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        # The function must not read requests from stdin or write between the replies on stdout.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        """Replace the pipes in a forked child, because the child would hold them open."""
        for pipe, flags in ((self.inbox, os.O_RDONLY), (self.outbox, os.O_WRONLY)):
            null = os.open(os.devnull, flags)
            os.dup2(null, pipe.fileno(), inheritable=False)
            os.close(null)

    def serve(self, path: str) -> None:
        """Load the function and answer requests until the pipe is closed."""
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
            # The pool kills a late worker. This alarm ends the worker if the pool no longer exists.
            signal.setitimer(signal.ITIMER_REAL, PATIENCE * timeout + 5)
            try:
                with time_limit(timeout):
                    is_reward = self.kind == "reward"
                    value = call_reward(name, function, arguments) if is_reward else _call(function, arguments)
                self._reply(token, value)
            except KeyboardInterrupt as error:
                self._reply(token, None, str(reward_error(name, function, error)))
            except BaseException as error:
                self._reply(token, None, str(error) or type(error).__name__)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _reply(self, token: str, value: Any, message: str = "") -> None:
        if os.getpid() != self.pid:
            # The function has forked, and its child has returned here. Only the parent may reply.
            os._exit(0)
        # The reply starts on a new line, because other output may have left a line unfinished.
        self.outbox.write(f"\n{token}{json.dumps([_plain(value), message])}\n".encode())
        self.outbox.flush()


def _main(path: str, memory: int, kind: Kind) -> None:
    server = _Server(kind)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        # If the machine runs out of memory, Linux ends this process rather than the training
        # process.
        file.write("1000")
    if memory:
        with contextlib.suppress(ValueError, OSError):  # Some systems lack this limit.
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    server.serve(path)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), "reward" if sys.argv[3] == "reward" else "function")
