"""Denoising, written once: the loop, the orders in which it commits positions, and the replay of what it did."""

from unmask.samplers.denoise import Snapshot, denoise
from unmask.samplers.orders import ORDERS, order_of
from unmask.samplers.replay import Scoring, score_views

__all__ = ["ORDERS", "Scoring", "Snapshot", "denoise", "order_of", "score_views"]
