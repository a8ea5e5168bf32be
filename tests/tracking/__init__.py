"""Tracking for real: wandb's own client against a local stand-in for its server, offline files, failures as they come.

The expected rows are those of rounds.jsonl, read with the json module, and values worked out by hand.
"""
