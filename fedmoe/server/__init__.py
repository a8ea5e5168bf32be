"""The server: cohort sampling, weighted means, assignment of experts, and its state.

Pure functions of tensors and seeds; only ``ServerState`` lasts between rounds.
"""
