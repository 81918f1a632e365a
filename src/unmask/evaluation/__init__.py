"""Accuracy on held-out examples, its intervals, and what is published of it."""
