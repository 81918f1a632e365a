"""Sampling: the denoising loop, the orders in which it commits positions, and the log-probabilities
of its paths."""

from unmask.sampling.denoise import Snapshot, denoise
from unmask.sampling.logprobs import LogprobSettings, view_logprobs
from unmask.sampling.orders import ORDERS, order_of

__all__ = ["ORDERS", "LogprobSettings", "Snapshot", "denoise", "order_of", "view_logprobs"]
