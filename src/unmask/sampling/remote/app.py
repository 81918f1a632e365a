"""The HTTP side of a server: routes, limits and answers to wrong requests. Nothing that arrives is
unpickled or run."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError, ModelError, UnmaskError, reason
from unmask.core.files import parse_json
from unmask.sampling.remote.format import FormatError, quoted
from unmask.sampling.remote.served import ServedModel, WrongVersionError
from unmask.sampling.remote.worker import Job, Worker

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

BODY_SECONDS = 60.0
"""Maximum number of seconds in which the body of a request must arrive."""
POLL_SECONDS = 0.25
"""Number of seconds between two checks of whether a client still waits."""

SPARE_CONNECTIONS = 8
"""Number of connections besides those of the requests that run and wait, such as for `/health`."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""JSON escape of half a character."""

logger = logging.getLogger("unmask")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits that keep a server from being overloaded."""

    max_bytes: int = 64 * 2**20
    """Maximum size of a request."""
    max_waiting: int = 16
    """Maximum number of requests that wait for the model."""
    timeout: float = 3600.0
    """Maximum number of seconds that a request may wait and run."""


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: what is wrong, as a sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_app(model: ServedModel, limits: ServerLimits | None = None, hosts: Sequence[str] | None = None) -> Starlette:
    """Return the ASGI application of a server.

    Args:
        model: the model that answers.
        limits: limits of the server.
        hosts: names and addresses by which clients may call the server; None for any. They keep a
            web page out whose name was made to point to this machine.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    limits, worker = limits or ServerLimits(), Worker((limits or ServerLimits()).max_waiting)

    def answered(handle: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        async def endpoint(request: HttpRequest) -> Response:
            try:
                content: Response = await handle(request)
                return content
            except RefusedError as error:
                return _error(error.status, str(error))

        return endpoint

    async def generate(request: HttpRequest) -> Response:
        content = await _content(request, limits)
        body = await _done(request, worker, limits, lambda job: _encoded(model.generate(content, job.check)))
        return _json(body)

    async def update(request: HttpRequest) -> Response:
        content = await _content(request, limits)
        path, version = _update_of(content)

        def replace(_: Job) -> bytes:
            fingerprint = model.update(path, version)
            logger.info("weights %s from %s", version, path)
            answer = {"success": True, "message": f"the weights are {version}", "num_paused_requests": 0}
            return _encoded(answer | {"unmask": {"base_fingerprint": fingerprint}})

        return _json(await _done(request, worker, limits, replace))

    async def info(_: HttpRequest) -> Response:
        return _json(_encoded(model.info()))

    return Starlette(
        routes=[
            Route("/generate", answered(generate), methods=["POST"]),
            Route("/update_weights_from_disk", answered(update), methods=["POST"]),
            Route("/get_model_info", info, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
        ],
        middleware=[] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={404: _missing, 405: _missing, Exception: _failed},
    )


async def _health(_: HttpRequest) -> Response:
    """Say that the server runs."""
    return _json(b'{"status":"ok"}')


async def _missing(request: HttpRequest, error: Any) -> Response:
    """Answer a request for something that is not offered."""
    return _error(error.status_code, f"{request.method} {quoted(request.url.path)} is not offered by this server.")


async def _failed(_: HttpRequest, error: Exception) -> Response:
    """Answer a request during which an unexpected error occurred."""
    logger.error("a request failed: %s: %s", type(error).__name__, error)
    return _error(500, f"the server failed: {type(error).__name__}: {reason(error)}")


async def _content(request: HttpRequest, limits: ServerLimits) -> Any:
    """Return the JSON content of a request."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect

    if "origin" in request.headers:
        raise RefusedError(403, "the request has the header Origin, and requests of web pages are refused.")
    # A web page cannot send this type to another site without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(415, "the content type must be application/json.")
    too_large = RefusedError(
        413, f"the request has more than {limits.max_bytes:,} bytes. Send fewer prompts at a time."
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limits.max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RefusedError(408, f"the request did not arrive within {BODY_SECONDS:g} s.") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "the request is incomplete.") from error
    try:
        return await run_in_threadpool(lambda: _parsed(body))
    except ValueError as error:
        raise RefusedError(400, f"the request is not JSON: {reason(error)}.") from error


def _parsed(body: bytearray) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, or has text that is not Unicode.
    """
    content = parse_json(body.decode("utf-8"))
    if SURROGATE.search(body):
        try:
            # Half a character, such as "\ud800", passes the parser.
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except RecursionError as error:
            raise ValueError("its values are nested too deeply") from error
        except UnicodeEncodeError as error:
            raise ValueError("it holds one half of a surrogate pair, which is no character") from error
    return content


def _update_of(content: Any) -> tuple[str, str]:
    """Return the folder and the version of new weights."""
    path = content.get("model_path") if isinstance(content, dict) else None
    if not isinstance(path, str) or not path or "\0" in path or len(path) > 4096:
        raise RefusedError(400, f"model_path = {quoted(path)} is not the path of a folder.")
    version = content.get("weight_version", "default")
    if not isinstance(version, str) or not 0 < len(version) <= 200:
        raise RefusedError(400, f"weight_version = {quoted(version)} is not a text of at most 200 characters.")
    return path, version


async def _done(request: HttpRequest, worker: Worker, limits: ServerLimits, function: Callable[[Job], bytes]) -> bytes:
    """Run a job, and return its result. The job is given up if the client has gone, or if it takes
    too long."""
    try:
        job = worker.submit(function)
    except queue.Full:
        raise RefusedError(503, f"{limits.max_waiting} requests wait already. Try again later.") from None
    future, deadline = asyncio.wrap_future(job.result), time.monotonic() + limits.timeout
    # Nobody reads the result of a job that was given up, and asyncio would report that as an error.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    while not future.done():
        await asyncio.wait({future}, timeout=POLL_SECONDS)
        if not future.done() and await request.is_disconnected():
            job.abandon()
            raise RefusedError(400, "the client has gone.")
        if not future.done() and time.monotonic() > deadline:
            job.abandon()
            raise RefusedError(504, f"the request took more than {limits.timeout:g} s. Send fewer prompts at a time.")
    try:
        body: bytes = future.result()
        return body
    except FormatError as error:
        raise RefusedError(400, str(error)) from error
    except WrongVersionError as error:
        raise RefusedError(409, str(error)) from error
    except PermissionError as error:
        raise RefusedError(403, str(error)) from error
    except UnmaskError as error:
        raise RefusedError(422 if isinstance(error, ModelError) else 400, f"{error.kind}: {error}") from error


def _encoded(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _json(body: bytes, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(body, status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json(_encoded({"error": {"message": message}, "success": False, "message": message}), status)


def check_installed() -> None:
    """Check that the packages of a server are there.

    Raises:
        ConfigError: names the command that installs them.
    """
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise ConfigError(
            f'a server needs {" and ".join(missing)}, which are not installed: pip install "unmask[serve]"'
        )


def is_loopback(bound: socket.socket) -> bool:
    """Return True if only this machine can reach a socket."""
    return ip_address(bound.getsockname()[0]).is_loopback


def hosts_of(bound: socket.socket) -> list[str] | None:
    """Return the names by which clients may call the server of a socket; None, for any, if other
    machines can reach it."""
    if not is_loopback(bound):
        return None
    address = bound.getsockname()[0]
    return ["localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address]


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        host: address, such as 127.0.0.1.
        port: port; 0 for any free one.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as unless_it_listens:
            bound = unless_it_listens.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            # At once: only then is the port taken, and connections wait until the server starts.
            bound.listen()
            unless_it_listens.pop_all()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"the server cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or reason(error)}). Choose another "
            "--host or --port."
        ) from error
    return bound


def serve(model: ServedModel, bound: socket.socket, limits: ServerLimits | None = None) -> None:
    """Answer requests until SIGINT or SIGTERM.

    Args:
        model: the model that answers.
        bound: socket of `listening_socket`.
        limits: limits of the server.
    """
    limits = limits or ServerLimits()
    _server(make_app(model, limits, hosts_of(bound)), limits).run(sockets=[bound])


@contextmanager
def running(app: Starlette, port: int = 0, limits: ServerLimits | None = None) -> Iterator[str]:
    """Run a server on the loopback, in a thread of this process, and yield its address.

    Args:
        app: application of the server.
        port: port; 0 for any free one.
        limits: limits of the server.
    """
    bound = listening_socket("127.0.0.1", port)
    server = _server(app, limits or ServerLimits())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server ended before it answered; its thread printed why")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def _server(app: Starlette, limits: ServerLimits) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        timeout_keep_alive=30,
        # The bodies of more requests are not read. uvicorn answers 503 from this number on.
        limit_concurrency=1 + limits.max_waiting + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
