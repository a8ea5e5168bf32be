"""The federation: the round loop, where clients are, evaluation, late clients and novel classes."""
