"""Measurements: each module is a command that anyone can run, and its results are committed beside it as small text files."""
