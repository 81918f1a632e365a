"""The test run checks annotated shapes and types (functional, records, methods); here is how a test gets around that check."""

from __future__ import annotations

import inspect


def unchecked(function):
    """Returns the function without the check of its annotations, so that a test reaches the errors that the function raises."""
    return inspect.unwrap(function)
