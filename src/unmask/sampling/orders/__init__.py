"""Orders: which masked positions of the active block are committed at a step. One file each, one entry each.

An order gives every proposed position a score; the highest are committed. `random` and `left_to_right` choose without looking
at the model, so under them the recorded token log-probability is, up to a constant, that of the step. So it is under `entropy`
and `margin` for the θ that sampled, whose choice is a function of the state. `plackett_luce` draws positions with a probability
that is recorded and can be scored again under another θ. Only `low_confidence` looks at the drawn tokens, and its choice has a
probability that the record leaves out.
"""

from collections.abc import Callable

from torch import Tensor

from unmask.core.by_path import load_callable
from unmask.core.errors import ConfigError
from unmask.sampling.orders.entropy import entropy
from unmask.sampling.orders.left_to_right import left_to_right
from unmask.sampling.orders.low_confidence import low_confidence
from unmask.sampling.orders.margin import margin
from unmask.sampling.orders.plackett_luce import plackett_luce, position_logit
from unmask.sampling.orders.proposal import Proposal
from unmask.sampling.orders.random import random

Order = Callable[[Proposal], Tensor]

ORDERS: dict[str, Order] = {
    "entropy": entropy,
    "left_to_right": left_to_right,
    "low_confidence": low_confidence,
    "margin": margin,
    "plackett_luce": plackett_luce,
    "random": random,
}

POSITION_LOGITS: dict[str, Callable[[Tensor, float], Tensor]] = {"plackett_luce": position_logit}
"""For the orders that draw positions by a Plackett-Luce distribution which depends on θ: its scores, of logits and τ."""


def order_of(name: str) -> Order:
    """Returns the order of a name in ORDERS, or the one at a path such as `my_order.py:mine`, which may be a function, or a class
    that is called after it was made without arguments.

    Raises:
        ConfigError: there is none, or it gives scores of another shape than the positions'.
    """
    if name in ORDERS:
        return ORDERS[name]
    own = load_callable(name, "order")
    order: Order = own() if isinstance(own, type) else own

    def checked(proposal: Proposal) -> Tensor:
        score, shape = order(proposal), tuple(proposal.positions.shape)
        if not isinstance(score, Tensor) or tuple(score.shape) != shape:
            given = f"a tensor of shape {list(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ConfigError(
                f'order "{name}" returned {given}. It must return a tensor of shape {list(shape)}: a score for each position.'
            )
        return score

    return checked


__all__ = ["POSITION_LOGITS", "ORDERS", "Order", "Proposal", "order_of"]
