"""Entries of the table of model families, grouped by the models that the releases grew out of."""
