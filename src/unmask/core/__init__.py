"""Modules that all other parts of the package use: settings, records, errors, text and files."""
