"""Parts that one run on several ranks needs: accelerator, collectives, sharded weights, saved state
and signals."""
