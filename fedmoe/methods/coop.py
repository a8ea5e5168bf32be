"""CoOp: the prompt trained on each client alone, no federation (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import ClientState, ClientUpdate, Downlink, Loadout, RoundContext
from fedmoe.server.state import ServerState

if TYPE_CHECKING:
    from fedmoe.client.module import ClientModule  # Lightning takes seconds to import


class CoOp(Method):
    """Local prompt learning: every client trains once, from the common start, and keeps its prompt.

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

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return Downlink(prompt=None)

    def finish(
        self, client: ClientModule, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[ClientUpdate, ClientState]:
        update, kept = super().finish(client, state, downlink, num_examples)
        return replace(update, prompt=None), kept

    def inference(self, server: ServerState, state: ClientState, downlink: Downlink) -> Loadout:
        return Loadout(state.prompt)
