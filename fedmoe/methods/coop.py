"""CoOp: the prompt trained on each client alone, no federation (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed


class CoOp(Method):
    """Local prompt learning: every client trains once, from a common initial prompt, and keeps the result.

    Args:
        epochs: passes over a client's training data (25 in the paper).
    """

    label = "CoOp"

    def __init__(self, epochs: int = 25) -> None:
        if epochs < 1:
            raise UserError(f"method.epochs is {epochs}; valid is an integer of at least 1.")
        self.epochs = epochs

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        return replace(federation, rounds=1, participation=1.0, local_epochs=self.epochs)

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return [Parameter("prompt", Scope.PERSONAL, fixed(model.prompt))]
