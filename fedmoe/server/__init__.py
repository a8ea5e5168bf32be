"""The server: cohort sampling, the weighted mean, the assignment of experts, and what it remembers.

Pure functions of tensors and seeds; ``ServerState`` is the only thing that lasts between rounds.
"""
