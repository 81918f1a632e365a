"""One run on several ranks: the accelerator, collectives, sharded weights, state and signals."""
