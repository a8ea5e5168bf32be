"""The federation: the round loop, the fleet of clients, evaluation, late clients and novel classes."""
