"""The training loop, which is built on accelerate. It samples and scores completions, and updates
the policy."""

from unmask.trainer.loop import Trainer

__all__ = ["Trainer"]
