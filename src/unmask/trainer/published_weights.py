"""The weights of a run on a disk that its servers see: a folder for each version, written by the
writers of models and adapters, and removed when no server needs it any more."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from unmask.core.errors import ConfigError
from unmask.models.adapters import fingerprint
from unmask.runs.atomic import INCOMPLETE, disk_faults_explained, folder_replaced_whole
from unmask.trainer.distributed.backend import is_sharded
from unmask.trainer.session import Session


class PublishedWeights:
    """Writes the weights of a run for its servers; see `WeightsSource`.

    The names of versions hold the id of the run and a random part, so that a server cannot take the
    weights of another run, or of the run before it was resumed, for these.

    Args:
        session: the run.
        root: folder of the weights.
        is_whole: True to write whole weights, with adapters merged; otherwise only adapters are
            written if the run has some.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, session: Session, root: Path, *, is_whole: bool) -> None:
        self.session, self.root = session, root.expanduser().resolve()
        self.has_adapters = session.policy.adapters is not None and not is_whole
        with session.ranks.agreed():
            if session.folder.is_main and not self.root.is_dir():
                raise ConfigError(
                    f"rollout_engine.weights_dir = {root} is not a folder. Create it, and start the servers with "
                    f"--weights-dir {root}."
                )
        own = f"{session.folder.id}-{uuid.uuid4().hex[:8]}" if session.folder.is_main else ""
        self.prefix: str = session.ranks.from_main(own)
        if session.folder.is_main:
            self._remove(f"{session.folder.id}-*")

    def name(self, version: int) -> str:
        """Return the name of a version, which no other run uses."""
        return f"{self.prefix}-{version}"

    def folder(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.root / self.name(version)

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the model under the adapters; None for whole weights, and for
        weights of which a rank holds only a part."""
        if not self.has_adapters or is_sharded(self.session.accelerator):
            return None
        return fingerprint(self.session.policy.denoiser)

    def publish(self, version: int, push: Callable[[], None]) -> None:
        """Write the present weights as a version, and call `push`. All ranks call this.

        Older versions are removed, except the one before: a rollout that is still under way may
        need it again.

        Raises:
            RunError: the disk is full or cannot be written. All ranks raise it.
            EngineError: `push` failed. All ranks raise it.
        """
        session, policy = self.session, self.session.policy
        weights = session.state.adapter_weights() if self.has_adapters else session.whole_weights()
        with session.ranks.agreed():
            if not session.folder.is_main:
                return
            target = self.folder(version)
            aside = self.root / f"{INCOMPLETE}{target.name}"
            alive = session.progress.alive
            with disk_faults_explained(self.root), folder_replaced_whole(target, aside, alive) as folder:
                if self.has_adapters:
                    policy.save_adapter(folder, weights)
                else:
                    policy.save(folder, weights, working=alive)
            push()
            kept = {self.name(version), self.name(version - 1)}
            self._remove(f"{self.prefix}-*", kept)

    def close(self) -> None:
        """Remove all versions. The servers have read them."""
        if self.session.folder.is_main:
            self._remove(f"{self.prefix}-*")

    def _remove(self, pattern: str, kept: set[str] | None = None) -> None:
        for folder in [*self.root.glob(pattern), *self.root.glob(f"{INCOMPLETE}{pattern}")]:
            if folder.name not in (kept or set()):
                shutil.rmtree(folder, ignore_errors=True)
