"""Methods: one file each, one entry each. A method turns scored rollouts into weighted views and views into a loss."""

from unmask.methods.agrpo import AGRPO
from unmask.methods.base import Method
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.egspo import EGSPO, EGSPOSA
from unmask.methods.wd1 import WD1

METHODS: dict[str, type[Method]] = {
    "agrpo": AGRPO,
    "diffu_grpo": DiffuGRPO,
    "egspo": EGSPO,
    "egspo_sa": EGSPOSA,
    "wd1": WD1,
}

__all__ = ["METHODS", "Method"]
