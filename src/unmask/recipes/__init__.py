"""The settings of a run, called its recipe: the schema, the checks, the messages, and the recipes
that the package ships."""
