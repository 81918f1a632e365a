"""Policy-optimisation methods, one in each file. A method plans weighted views (masked versions of
the completions) of a rollout with rewards, and computes a loss from their log-probabilities."""

from unmask.methods.agrpo import AGRPO
from unmask.methods.base import SCORED, Method
from unmask.methods.bgpo import BGPO
from unmask.methods.coupled_grpo import CoupledGRPO
from unmask.methods.diffu_grpo import DiffuGRPO
from unmask.methods.direct_advantage import DirectAdvantage
from unmask.methods.dispo import DiSPO
from unmask.methods.dmpo import DMPO
from unmask.methods.egspo import EGSPO, EGSPOSA
from unmask.methods.egspo_ca import EGSPOCA
from unmask.methods.espo import ESPO
from unmask.methods.gdpo import EBPO, GDPO
from unmask.methods.gdsd import GDSD
from unmask.methods.just_grpo import JustGRPO
from unmask.methods.mask_aware import MaskAware
from unmask.methods.rldf import RLDF
from unmask.methods.spg import SPG, StableDRL
from unmask.methods.step_merge import CJGRPO, StepMerge, TraceRL
from unmask.methods.trajectory_balance import TrajectoryBalance
from unmask.methods.unigrpo import UniGRPO
from unmask.methods.vrpo import DTRPO, VRPO
from unmask.methods.wd1 import WD1

METHODS: dict[str, type[Method]] = {
    "agrpo": AGRPO,
    "bgpo": BGPO,
    "cj_grpo": CJGRPO,
    "coupled_grpo": CoupledGRPO,
    "diffu_grpo": DiffuGRPO,
    "direct_advantage": DirectAdvantage,
    "dispo": DiSPO,
    "dmpo": DMPO,
    "dtrpo": DTRPO,
    "ebpo": EBPO,
    "egspo": EGSPO,
    "egspo_ca": EGSPOCA,
    "egspo_sa": EGSPOSA,
    "espo": ESPO,
    "gdpo": GDPO,
    "gdsd": GDSD,
    "just_grpo": JustGRPO,
    "mask_aware": MaskAware,
    "rldf": RLDF,
    "spg": SPG,
    "stable_drl": StableDRL,
    "step_merge": StepMerge,
    "trace_rl": TraceRL,
    "trajectory_balance": TrajectoryBalance,
    "unigrpo": UniGRPO,
    "vrpo": VRPO,
    "wd1": WD1,
}


def methods_by_kind() -> dict[str, dict[str, type[Method]]]:
    """Return the methods of the package by name, grouped by what they score."""
    return {kind: {name: method for name, method in METHODS.items() if method.scores == kind} for kind in SCORED}


__all__ = ["METHODS", "SCORED", "Method", "methods_by_kind"]
