"""Orders: which masked positions of the active block are committed at a step. One file each, one entry each.

An order gives every proposed position a score; the highest are committed. `random` and `left_to_right` choose without looking
at the model, so under them the recorded token log-probability is, up to a constant, that of the step. So it is under `entropy`
and `margin` for the θ that sampled, whose choice is a function of the state. `plackett_luce` draws positions with a probability
that is recorded and can be scored again under another θ. Only `low_confidence` looks at the drawn tokens, and its choice has a
probability that the record leaves out.
"""

from collections.abc import Callable

from torch import Tensor

from unmask.samplers.orders.entropy import entropy
from unmask.samplers.orders.left_to_right import left_to_right
from unmask.samplers.orders.low_confidence import low_confidence
from unmask.samplers.orders.margin import margin
from unmask.samplers.orders.plackett_luce import choice_score, plackett_luce
from unmask.samplers.orders.proposal import Proposal
from unmask.samplers.orders.random import random

Order = Callable[[Proposal], Tensor]

ORDERS: dict[str, Order] = {
    "entropy": entropy,
    "left_to_right": left_to_right,
    "low_confidence": low_confidence,
    "margin": margin,
    "plackett_luce": plackett_luce,
    "random": random,
}

CHOICE_SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {"plackett_luce": choice_score}
"""For the orders that draw positions by a Plackett-Luce distribution which depends on θ: its scores, of logits and τ."""

__all__ = ["CHOICE_SCORES", "ORDERS", "Order", "Proposal"]
