"""PromptFL: FedAvg of prompts (Guo et al., IEEE TMC 2023)."""

from __future__ import annotations

from fedmoe.protocol.method import Method


class PromptFL(Method):
    """The cohort trains the global prompt, the server averages it (eq. 6, 7), and all clients predict with it."""

    label = "PromptFL"
