"""A server as a client sees it: requests with time limits, repetition, and a wait for a server that
does not answer. Answers count as hostile."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import EngineError, reason
from unmask.core.files import parse_json
from unmask.sampling.remote.format import quoted

if TYPE_CHECKING:
    import httpx2

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between two tries: the first pause, which doubles with each try, and the longest."""
POLL_SECONDS = 0.5
"""Number of seconds between two checks of whether the run has ended."""
CONNECT_SECONDS = 10.0
"""Maximum number of seconds for opening a connection."""
SMALL_ANSWER = 2**20
"""Maximum number of bytes of an answer that holds no completions."""
MAX_MESSAGE = 500
"""Maximum number of characters of a server's message that is quoted."""
BUSY = (502, 503)
"""Statuses with which a server says that it cannot answer now."""
SLOW = (408, 504)
"""Statuses with which a server says that an answer took too long."""

logger = logging.getLogger("unmask")


class WrongWeightsError(EngineError):
    """The server has other weights than those of a request."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits of a client."""

    timeout: float = 600.0
    """Maximum number of seconds for one request, from the connection to the end of the answer."""
    max_wait: float = 300.0
    """Maximum number of seconds to wait for a server that does not answer."""
    retries: int = 2
    """Number of times that a request which took too long is repeated."""


class Server:
    """One server.

    Args:
        url: address, such as http://127.0.0.1:30000.
        patience: time limits.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        import httpx2

        self.url, self.patience = url.rstrip("/"), patience or Patience()
        self._tls = httpx2.create_ssl_context()
        self.stopped = threading.Event()
        """Set to end all waiting."""

    def close(self) -> None:
        """End all waiting, after which the open connections are closed."""
        self.stopped.set()

    def info(self) -> dict[str, Any]:
        """Return what `/get_model_info` says, once the server answers.

        Raises:
            EngineError: it does not answer in time, or not with an object.
        """
        content = self._request("GET", "/get_model_info", None, SMALL_ANSWER)
        if not isinstance(content, dict):
            raise self.error(f"its answer to /get_model_info is {quoted(content)}, not an object.")
        return content

    def generate(self, content: Mapping[str, Any], max_bytes: int) -> Any:
        """Return the JSON content of the answer to a request.

        Args:
            content: the request.
            max_bytes: maximum size of the answer.

        Raises:
            WrongWeightsError: the server has other weights.
            EngineError: it does not answer in time, refuses the request, or answers with something
                that is not JSON.
        """
        return self._request("POST", "/generate", content, max_bytes)

    def update_weights(self, folder: Path, version: str) -> dict[str, Any]:
        """Let the server load the weights in a folder, and return its answer.

        Raises:
            EngineError: it cannot load them.
        """
        content = {"model_path": str(folder), "weight_version": version}
        answer = self._request("POST", "/update_weights_from_disk", content, SMALL_ANSWER)
        if not isinstance(answer, dict) or answer.get("success") is not True:
            raise self.error(f"it did not load the weights in {folder}: {quoted(answer)}.")
        return answer

    def error(self, message: str) -> EngineError:
        """Return an error about this server."""
        return EngineError(f"the server {self.url}: {message}")

    def _request(self, method: str, path: str, content: Mapping[str, Any] | None, max_bytes: int) -> Any:
        """Send a request until it is answered, or until patience ends."""
        import httpx2

        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        slow, pause, since = 0, FIRST_PAUSE, None
        while True:
            is_answered = False
            try:
                status, answer = self._once(method, path, body, max_bytes)
                if since is not None and status not in BUSY:
                    logger.warning(f"the server {self.url} answers again after {time.monotonic() - since:.0f} s.")
                    since = None
                if status == 200:
                    return self._parsed(path, answer)
                if status not in BUSY + SLOW:
                    raise self._refusal(status, answer)
                is_answered, cause = True, f"status {status}, {_message(answer)}"
            except (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout) as error:
                status, cause = 504, reason(error)
            except httpx2.TransportError as error:
                status, cause = 503, reason(error)
            if status in SLOW:
                slow += 1
                if slow > self.patience.retries:
                    raise self._given_up(path, slow, cause, is_answered)
                continue
            since = self._waited(since, cause)
            if self.stopped.wait(pause):
                raise self.error("the run has ended.")
            pause = min(2 * pause, LONGEST_PAUSE)

    def _given_up(self, path: str, times: int, cause: str, is_answered: bool) -> EngineError:
        """Return the error for a request that took too long; `is_answered` says that the server set
        the limit."""
        if is_answered:
            return self.error(
                f"it gave up {path} {times} times ({cause}). Raise its time limit, unmask serve --timeout, or use more servers."
            )
        return self.error(
            f"{path} took more than {self.patience.timeout:g} s, {times} times ({cause}). Raise rollout_engine.timeout, or "
            "use more servers."
        )

    def _waited(self, since: float | None, cause: str) -> float:
        """Return the time since when the server has not answered, and say so the first time."""
        now, limit = time.monotonic(), self.patience.max_wait
        if since is None:
            logger.warning(f"the server {self.url} does not answer ({cause}). Waiting for it, for at most {limit:g} s.")
            return now
        if now - since > limit:
            raise self.error(
                f"it has not answered for {limit:g} s ({cause}). Start it again (unmask serve), and then this run with --resume. "
                "rollout_engine.max_wait sets how long a run waits."
            )
        return since

    def _once(self, method: str, path: str, body: bytes | None, max_bytes: int) -> tuple[int, bytes]:
        """Send a request, and return the status and the content of the answer, all within the time
        limit."""
        import httpx2

        total = self.patience.timeout
        limit = httpx2.Timeout(total, connect=min(CONNECT_SECONDS, total))
        found: list[tuple[int, bytes] | BaseException] = []
        # A proxy that the environment names is for the internet, not for a server of the own network.
        with httpx2.Client(timeout=limit, trust_env=False, verify=self._tls) as client:

            def run() -> None:
                try:
                    found.append(self._answer(client, method, path, body, max_bytes))
                except BaseException as error:  # it is raised in the thread of the caller
                    found.append(error)

            # The limits of the client hold for each read alone, and an answer may arrive byte by byte.
            thread, deadline = threading.Thread(target=run, daemon=True), time.monotonic() + total
            thread.start()
            while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
                if self.stopped.is_set():
                    raise self.error("the run has ended.")
                thread.join(min(left, POLL_SECONDS))
        if not found:
            raise httpx2.ReadTimeout("the answer arrives too slowly")
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _answer(
        self, client: httpx2.Client, method: str, path: str, body: bytes | None, max_bytes: int
    ) -> tuple[int, bytes]:
        """Send a request, and return the status and the content of the answer."""
        header = {"content-type": "application/json"} if body is not None else {}
        with client.stream(method, f"{self.url}{path}", content=body, headers=header) as answer:
            content = bytearray()
            for part in answer.iter_bytes():
                content += part
                if len(content) > max_bytes:
                    raise self.error(f"its answer to {path} has more than the {max_bytes:,} bytes that it can have.")
            return answer.status_code, bytes(content)

    def _parsed(self, path: str, answer: bytes) -> Any:
        try:
            return parse_json(answer.decode("utf-8"))
        except ValueError as error:
            raise self.error(f"its answer to {path} is not JSON: {quoted(answer[:60])}.") from error

    def _refusal(self, status: int, answer: bytes) -> EngineError:
        message = _message(answer)
        if status == 409:
            return WrongWeightsError(f"the server {self.url}: {message}")
        return self.error(f"it refused the request with status {status}: {message}")


def _message(answer: bytes) -> str:
    """Return the message in the answer of a server that refuses a request, as messages quote it."""
    try:
        content = parse_json(answer.decode("utf-8", "replace"))
    except ValueError:
        content = None
    found: Any = None
    if isinstance(content, dict):
        error = content.get("error")
        found = error.get("message") if isinstance(error, dict) else content.get("message")
    return quoted(str(found), MAX_MESSAGE) if found else quoted(answer[:60].decode("utf-8", "replace"))
