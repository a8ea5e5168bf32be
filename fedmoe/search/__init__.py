"""A local search over settings, for those who do without W&B's sweeps."""
