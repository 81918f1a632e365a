"""The releases that are compared, one in each file: a training step of each, from its own
functions."""

from benchmark.peers.releases.agrpo import AGRPO
from benchmark.peers.releases.base import Release
from benchmark.peers.releases.d1 import D1
from benchmark.peers.releases.dare import DARE, DareCJ
from benchmark.peers.releases.dllm import Dllm
from benchmark.peers.releases.dllm_rl import DllmRL
from benchmark.peers.releases.egspo import EGSPO
from benchmark.peers.releases.espo import ESPO

RELEASES: dict[str, type[Release]] = {
    "EGSPO": EGSPO,
    "d1": D1,
    "ESPO": ESPO,
    "AGRPO": AGRPO,
    "dllm": Dllm,
    "DARE": DARE,
    "DARE cj": DareCJ,
    "dLLM-RL": DllmRL,
}
"""Releases by name."""

__all__ = ["RELEASES", "Release"]
