"""The servers of a run together: their models, their weights, and the shares of a rollout that each
of them samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from unmask.core.counter import Counter
from unmask.core.errors import EngineError
from unmask.models import Denoiser
from unmask.sampling.remote.client import Server, WrongWeightsError
from unmask.sampling.remote.format import quoted

POLL_SECONDS = 1.0
"""Number of seconds between two signs of life while servers work."""
MAX_UPDATES = 3
"""Number of times that the weights of one request are sent to a server again."""

T = TypeVar("T")


class WeightsSource(Protocol):
    """Interface of what writes the weights of a run for its servers."""

    def name(self, version: int) -> str:
        """Return the name of a version, which no other run uses."""
        ...

    def folder(self, version: int) -> Path:
        """Return the folder of a version."""
        ...

    def publish(self, version: int, push: Callable[[], None]) -> None:
        """Write the present weights as a version, and call `push` when they are written. All ranks
        call this, one of them writes and calls `push`, and all wait for it."""
        ...

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the model under the adapters; None if there is none to
        compare."""
        ...

    def close(self) -> None:
        """Remove all versions."""
        ...


class Servers:
    """Several servers that sample with the same weights.

    Args:
        servers: the servers.
        weights: what writes the weights.
        denoiser: model that is trained, which the servers must hold, too.
        is_ours: True if the servers are those of unmask, whose facts can be compared.
        alive: function that is called while servers work.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        weights: WeightsSource,
        denoiser: Denoiser,
        *,
        is_ours: bool = True,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers, self.weights, self.denoiser = list(servers), weights, denoiser
        self.is_ours, self.alive = is_ours, alive
        self.version: int | None = None
        """Version of the weights that the servers have; None before the first update."""
        self.passes = Counter()
        """Token passes of the servers."""

    def close(self) -> None:
        """Close all connections, and remove the weights that were written."""
        for server in self.servers:
            server.close()
        self.weights.close()

    def update(self, version: int) -> None:
        """Write the present weights, and let every server load them, unless they have this version
        already. All ranks call this.

        Raises:
            EngineError: a server does not answer, holds another model, or cannot load the weights.
        """
        if version == self.version:
            return
        is_first = self.version is None

        def push() -> None:
            if is_first:
                self.each([partial(self._check, server) for server in self.servers])
            self.each([partial(self._push, server, version) for server in self.servers])

        self.weights.publish(version, push)
        self.version = version

    def generate(self, requests: Sequence[Sequence[tuple[Mapping[str, Any], int]]], version: int) -> list[list[Any]]:
        """Send its requests, one after the other, to each of the first servers, to all of these at
        the same time. Return the answers of each server in the order of its requests.

        Args:
            requests: the requests of each server, with the largest sizes of their answers in bytes.
            version: version of the weights that must sample them.

        Raises:
            EngineError: a server does not answer, or refuses a request.
        """

        def answers(server: Server, own: Sequence[tuple[Mapping[str, Any], int]]) -> list[Any]:
            return [self._generated(server, *request, version) for request in own]

        return self.each([partial(answers, *pair) for pair in zip(self.servers, requests, strict=False)])

    def each(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """Run functions at the same time, in threads, and return their results.

        Raises:
            EngineError: the error of the first function that has one.
        """
        results: list[Any] = [None] * len(functions)

        def run(index: int) -> None:
            try:
                results[index] = functions[index]()
            except BaseException as error:  # it is raised in the thread of the caller
                results[index] = error

        # Daemons, so that a run that ends with an error does not wait for the other servers.
        threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(functions))]
        for thread in threads:
            thread.start()
        for index, thread in enumerate(threads):
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                self.alive()
            if isinstance(results[index], BaseException):
                raise results[index]
        return results

    def _generated(self, server: Server, content: Mapping[str, Any], size: int, version: int) -> Any:
        """Send a request, and send the weights first if the server does not have them, such as after
        a new start."""
        for _ in range(MAX_UPDATES):
            try:
                return server.generate(content, size)
            except WrongWeightsError:
                self._push(server, version)
        raise server.error(
            "other weights replace those of this run as soon as they are loaded. Give each run servers of its own."
        )

    def _push(self, server: Server, version: int) -> None:
        answer = server.update_weights(self.weights.folder(version), self.weights.name(version))
        ours = answer.get("unmask")
        theirs, own = ours.get("base_fingerprint") if isinstance(ours, dict) else None, self.weights.fingerprint()
        if theirs and own and theirs != own:
            raise server.error(
                f"its model is not the one that the adapters were made for (fingerprint {quoted(theirs)}, here "
                f"{quoted(own)}). Start it with the model of the recipe."
            )

    def _check(self, server: Server) -> None:
        """Compare the facts of a server with those of the model that is trained."""
        facts = server.info()
        if not self.is_ours:
            return
        theirs = facts.get("unmask")
        if not isinstance(theirs, dict):
            raise server.error(
                "it is not a server of `unmask serve`, because its model info lacks the key unmask. Set rollout_engine.server to "
                "sglang if it is one of SGLang."
            )
        own = {
            "vocab_size": self.denoiser.vocab_size,
            "mask_id": self.denoiser.mask_id,
            "eos_id": self.denoiser.eos_id,
            "block_length": self.denoiser.block_length,
            "logit_shift": self.denoiser.logit_shift,
            "dtype": str(self.denoiser.backbone.dtype).removeprefix("torch."),
        }
        for name, value in own.items():
            if theirs.get(name) != value:
                advice = "Start it with --dtype." if name == "dtype" else "Start it with the model of the recipe."
                raise server.error(
                    f"its model has {name} = {quoted(theirs.get(name))}, and the one here {quoted(value)}. {advice}"
                )
        if theirs.get("takes_weights") is not True:
            raise server.error(
                "it takes no weights. Start it with --weights-dir and the folder rollout_engine.weights_dir."
            )


def shares(total: int, count: int) -> list[slice]:
    """Divide rows into parts of nearly equal size, at most `count` of them and none of them empty.

    Example:
        >>> [part.stop - part.start for part in shares(5, 3)], len(shares(2, 3))
        ([1, 2, 2], 2)
    """
    count = min(total, count)
    return [slice(index * total // count, (index + 1) * total // count) for index in range(count)]


def as_error(server: Server, fault: ValueError) -> EngineError:
    """Return the error for an answer of a server that cannot be used."""
    return server.error(f"its answer cannot be used: {fault}")
