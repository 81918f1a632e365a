"""Accuracy on held-out examples with intervals, files of results, and the model card of a finished
model."""
