"""Settings of the engine that samples rollouts: in this process, or on servers."""

from __future__ import annotations

from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from unmask.core.settings import Config


class EngineConfig(Config):
    """Place where rollouts and evaluations are sampled."""

    section: ClassVar[str] = "rollout_engine"

    type: Literal["local", "http"] = "local"
    """`local`: in this process. `http`: on servers, such as those of `unmask serve`."""
    server: Literal["unmask", "sglang"] = "unmask"
    """Kind of the servers. `unmask` returns the whole record of a rollout. `sglang` returns tokens
    and step maps; the log-probabilities are then computed in this process, with one forward pass
    for each denoising step of each completion."""
    urls: tuple[str, ...] = ()
    """Addresses of the servers, as in [http://127.0.0.1:30000]. Several servers share the
    completions of a step."""
    weights_dir: str | None = None
    """Folder on a disk that this process and the servers see. The weights of each training step are
    written there, and the servers read them: `unmask serve MODEL --weights-dir FOLDER`."""
    max_staleness: int = Field(0, ge=0, le=1)
    """Number of training steps by which the weights of a rollout may be older than those that are
    updated. With 1, the servers sample the rollout of the next step while this process updates, and
    `behaviour` corrects the difference."""
    timeout: float = Field(600.0, gt=0)
    """Time limit in seconds for one request. A server's share of the completions of a step or of an
    evaluation is one request, or several if it has more than 512 prompts; each has its own limit."""
    retries: int = Field(2, ge=0)
    """Number of times that a request which took too long is repeated."""
    max_wait: float = Field(300.0, ge=0)
    """Number of seconds to wait for a server that does not answer, at the start and later, before
    the run ends with an error."""

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
                raise ValueError(f"{url} is not the address of a server. Write it as http://HOST:PORT.")
        if len(set(urls)) < len(urls):
            raise ValueError("an address occurs twice. Name each server once.")
        return urls

    @model_validator(mode="after")
    def _check_together(self) -> EngineConfig:
        if self.type == "http":
            if not self.urls:
                raise ValueError("type = http needs the addresses of the servers, as in urls=[http://127.0.0.1:30000].")
            if not self.weights_dir:
                raise ValueError(
                    "type = http needs weights_dir, a folder that the servers can read: unmask serve MODEL --weights-dir FOLDER."
                )
        elif self.urls or self.max_staleness:
            name = "urls" if self.urls else "max_staleness"
            raise ValueError(f"{name} is for servers. Set rollout_engine.type to http, or leave it out.")
        if self.server == "sglang" and self.max_staleness:
            raise ValueError(
                "max_staleness = 1 does not work with server = sglang: the log-probabilities of a rollout are computed with the "
                "weights that sampled it, which this process then no longer has. Set it to 0, or use unmask serve."
            )
        return self
