"""Measurements that anyone can run.

Each module is a command, and its results are committed as text.
"""
