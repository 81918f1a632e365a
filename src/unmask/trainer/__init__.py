"""The training loop: rollout, score, plan, old and reference passes, minibatches, on accelerate."""

from unmask.trainer.loop import Trainer

__all__ = ["Trainer"]
