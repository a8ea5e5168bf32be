"""The run folder: its format, its lock, checkpoints, and resuming."""
