"""Accuracy on held-out examples with intervals, files of results, and the card of a finished
model."""
