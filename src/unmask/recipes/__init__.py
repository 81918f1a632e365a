"""The settings of a run: schema, checks, messages, and the recipes that are shipped."""
