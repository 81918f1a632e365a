"""Denoising, written once: the loop, the orders in which it commits positions, and the replay of what it did."""

from unmask.sampling.denoise import Snapshot, denoise
from unmask.sampling.logprobs import LogprobSettings, view_logprobs
from unmask.sampling.orders import ORDERS, order_of

__all__ = ["ORDERS", "LogprobSettings", "Snapshot", "denoise", "order_of", "view_logprobs"]
