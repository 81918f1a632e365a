"""Methods: one file each, one entry each. A method turns scored rollouts into weighted views and views into a loss."""

from unmask.methods.agrpo import AGRPO
from unmask.methods.base import Method
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.egspo import EGSPO, EGSPOSA

METHODS: dict[str, type[Method]] = {
    "agrpo": AGRPO,
    "diffu_grpo": DiffuGRPO,
    "egspo": EGSPO,
    "egspo_sa": EGSPOSA,
}

__all__ = ["METHODS", "Method"]
