"""Prompt + FedPer: some context vectors are averaged, the others stay with the client.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019 (arXiv 1912.00818):
a model is base layers W_B, which FedAvg averages, followed by personalization layers W_P_j, which client j keeps.

Shape letters: l context tokens, k of them personal, w token width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.methods.promptfl import PromptFL
from fedmoe.protocol.records import ClientState, ClientUpdate, Downlink, Loadout, RoundContext
from fedmoe.server.state import ServerState

if TYPE_CHECKING:
    from fedmoe.client.module import ClientModule  # Lightning takes seconds to import


class FedPer(PromptFL):
    """PromptFL in which the last k context vectors of a prompt stay local; both parts are trained together.

    Round t, on the clients of the cohort: start from (shared part of round t - 1, own last k vectors), train both on
    the local objective, upload the first l - k vectors, whose mean weighted by n_i is the new shared part (eq. 6, 7).
    Prediction joins the current shared part with the client's own vectors; a client that never took part has those
    of the common start.

    The personal vectors are the last ones because that is what FedPer's last layers are in a prompt. CLIP's text
    tower is causal: a vector sees only those before it. So the shared vectors pass through the tower alike on every
    client, as base layers do, and the personal ones build on them; they also stand next to the class name, with
    ``prompt.position`` at its default ``end``. Were the first ones personal, each client would see all shared vectors
    through its own.

    Args:
        personal_vectors: number k of context vectors that stay local, 0 (PromptFL) to l (local training); null: half
            of them, l // 2. Neither paper gives a number for prompts.
    """

    label = "Prompt+FedPer"

    def __init__(self, personal_vectors: int | None = None) -> None:
        if personal_vectors is not None and personal_vectors < 0:
            raise UserError(f"method.personal_vectors is {personal_vectors}; valid is an integer of at least 0.")
        self.personal_vectors = personal_vectors

    def shared(self, prompt: Tensor) -> Tensor:
        """A copy of the part [..., l - k, w] of a whole prompt [..., l, w] that is sent.

        Raises:
            UserError: the prompt has fewer vectors than are to stay local.
        """
        return prompt[..., : self._count(prompt), :].clone()

    def join(self, shared: Tensor | None, own: Tensor) -> Tensor:
        """The shared part [..., l - k, w], if any, in front of the last k vectors of the whole prompt ``own``."""
        return own if shared is None else torch.cat([shared, own[..., self._count(own) :, :]], dim=-2)

    def _count(self, prompt: Tensor) -> int:
        length = prompt.shape[-2]
        personal = length // 2 if self.personal_vectors is None else self.personal_vectors
        if personal > length:
            raise UserError(
                f"method.personal_vectors is {personal}, but the prompt has {length} context vectors; valid is 0 to "
                f"{length}."
            )
        return length - personal

    def _current(self, server: ServerState) -> Tensor | None:
        """The shared part; None where all vectors are personal."""
        # Until the first upload the server holds the whole common start, from then on the mean of shared parts.
        shared = server.prompt if server.pool else self.shared(server.prompt)
        return shared if shared.numel() else None

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return Downlink(self._current(server))

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        return Loadout(self.join(downlink.prompt, state.prompt))

    def finish(
        self, client: ClientModule, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[ClientUpdate, ClientState]:
        update, kept = super().finish(client, state, downlink, num_examples)
        shared = self.shared(kept.prompt)
        return replace(update, prompt=shared if shared.numel() else None), kept

    def inference(self, server: ServerState, state: ClientState, downlink: Downlink) -> Loadout:
        return Loadout(self.join(self._current(server), state.prompt))
