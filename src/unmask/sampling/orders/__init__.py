"""Orders: remasking strategies, which decide the masked positions that a step commits. Each order
has one file and one entry in `ORDERS`.

An order gives every proposed position a priority, and the positions of highest priority are
committed. The orders differ in how their choice enters the policy gradient:

- `random` and `left_to_right` do not depend on the model. The recorded token log-probability is
  that of the step, up to a constant.
- `entropy`, `margin` and `max_probability` depend on the state alone. Their token log-probability is
  that of the step too, but only at the parameters θ that sampled the path.
- `plackett_luce` and `learned` draw positions with a probability that is recorded, and that can be
  computed under another θ. `learned` reads the scores of a position head of the model.
- `low_confidence` depends on the drawn tokens. Its choice has a probability that is not recorded.
"""

from collections.abc import Callable

from torch import Tensor

from unmask.core.by_path import load_callable
from unmask.core.errors import ConfigError
from unmask.sampling.orders.entropy import entropy
from unmask.sampling.orders.learned import learned
from unmask.sampling.orders.left_to_right import left_to_right
from unmask.sampling.orders.low_confidence import low_confidence
from unmask.sampling.orders.margin import margin
from unmask.sampling.orders.max_probability import max_probability
from unmask.sampling.orders.plackett_luce import plackett_luce, position_logit
from unmask.sampling.orders.proposal import Proposal
from unmask.sampling.orders.random import random

Order = Callable[[Proposal], Tensor]

ORDERS: dict[str, Order] = {
    "entropy": entropy,
    "learned": learned,
    "left_to_right": left_to_right,
    "low_confidence": low_confidence,
    "margin": margin,
    "max_probability": max_probability,
    "plackett_luce": plackett_luce,
    "random": random,
}

POSITION_LOGITS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "learned": position_logit,
    "plackett_luce": position_logit,
}
"""Logits of the position choice as a function of token logits and τ, for orders that draw positions
from a Plackett-Luce distribution. The order `learned` adds the scores of the position head."""


def order_of(name: str) -> Order:
    """Return the order of a name in ORDERS, or at a path such as `my_order.py:mine`.

    The path may name a function, or a class whose instances can be called. A class is instantiated
    without arguments.

    Raises:
        ConfigError: the order does not exist. The order raises this error too, if it returns
            priorities of the wrong shape.
    """
    if name in ORDERS:
        return ORDERS[name]
    own = load_callable(name, "order")
    order: Order = own() if isinstance(own, type) else own

    def checked(proposal: Proposal) -> Tensor:
        priority, shape = order(proposal), tuple(proposal.positions.shape)
        if not isinstance(priority, Tensor) or tuple(priority.shape) != shape:
            is_tensor = isinstance(priority, Tensor)
            result = f"a tensor of shape {list(priority.shape)}" if is_tensor else type(priority).__name__
            raise ConfigError(
                f'order "{name}" returned {result}. It must return a tensor of shape {list(shape)}: a priority for each position.'
            )
        return priority

    return checked


__all__ = ["POSITION_LOGITS", "ORDERS", "Order", "Proposal", "order_of"]
