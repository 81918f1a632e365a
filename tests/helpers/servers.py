"""Servers of rollouts on the loopback: one in a thread of this process, or one in a process of its own that can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from unmask.models import Policy, load_model
from unmask.sampling.remote.app import ServerLimits, listening_socket, make_app, running, serve
from unmask.sampling.remote.served import ServedModel


@contextmanager
def serving(
    policy: Policy, weights_dir: Path | None = None, limits: ServerLimits | None = None, **settings: Any
) -> Iterator[str]:
    """Serve a policy in a thread, and yield the address."""
    app = make_app(ServedModel(policy, "model", weights_dir, **settings), limits, ["127.0.0.1"])
    with running(app, limits=limits) as url:
        yield url


def serve_folder(model: str, port: int, weights_dir: str | None = None) -> None:
    """Serve the model of a folder until the process ends; for a process of its own."""
    served = ServedModel(load_model(model), model, Path(weights_dir) if weights_dir else None)
    serve(served, listening_socket("127.0.0.1", port))


def post(url: str, content: Any, path: str = "/generate", headers: dict[str, str] | None = None) -> httpx2.Response:
    """Send JSON to a server, without a proxy that the environment may name."""
    with httpx2.Client(trust_env=False, timeout=60) as client:
        headers = {"content-type": "application/json"} | (headers or {})
        # Unlike httpx2, this escapes what is not ASCII, so half a character can be sent.
        return client.post(url + path, content=json.dumps(content).encode(), headers=headers)


def get(url: str, path: str) -> httpx2.Response:
    """Read an address of a server."""
    with httpx2.Client(trust_env=False, timeout=60) as client:
        return client.get(url + path)


class NoWeights:
    """Stands for the weights of a run: the server has them already."""

    def name(self, version: int) -> str:
        return "default"

    def folder(self, version: int) -> Path:
        return Path("nowhere")

    def publish(self, version: int, push: Callable[[], None]) -> None:
        pass

    def fingerprint(self) -> str | None:
        return None

    def close(self) -> None:
        pass


def app_of(answer: Callable[[Any], Any]) -> Starlette:
    """A server that answers `/generate` by a function of the request."""

    async def generate(request: Request) -> Response:
        found = answer(await request.json())
        return found if isinstance(found, Response) else Response(json.dumps(found), media_type="application/json")

    return Starlette(routes=[Route("/generate", generate, methods=["POST"])])
