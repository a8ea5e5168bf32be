"""Differential privacy of what clients send: mechanisms, accounting, gradients."""
