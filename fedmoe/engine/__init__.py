"""Clients in other processes and on other machines, by Flower (flwr 1.42). In process, nothing here is needed."""
