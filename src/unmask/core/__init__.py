"""Foundations that every part uses: settings, records, errors, text and files."""
