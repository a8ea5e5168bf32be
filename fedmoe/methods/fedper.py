"""Prompt + FedPer: some context vectors are averaged, the others stay on the client.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019 (arXiv 1912.00818):
a model is base layers W_B, which FedAvg averages, followed by personalization layers W_P_j, which client j keeps.

Shape letters: l context tokens, k of them personal, w token width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmoe.errors import UserError
from fedmoe.methods.promptfl import PromptFL
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client


class FedPer(PromptFL):
    """PromptFL in which the last k context vectors of a prompt stay local; both parts are trained together.

    Round t, on the clients of the cohort: start from the shared part of round t - 1 and the client's own last k
    vectors, train both on the local objective, and upload the first l - k vectors, whose mean weighted by n_i is the
    new shared part (eq. 6, 7). Prediction joins the current shared part with the client's own vectors; a client that
    never took part uses their initial values.

    The last vectors are the personal ones because they correspond to FedPer's last layers. CLIP's text tower is causal:
    a vector sees only those before it. So the shared vectors pass through the tower in the same way on every client, as
    base layers do, and the personal ones build on them; with ``prompt.position`` at its default ``end``, they are also
    next to the class name. If the first vectors were personal, each client would see all shared ones through its own.

    Args:
        personal_vectors: number k of context vectors that stay local, 0 (PromptFL) to l (local training); null: half
            of them, l // 2. Neither paper gives a number for prompts.
    """

    label = "Prompt+FedPer"

    def __init__(self, personal_vectors: int | None = None) -> None:
        if personal_vectors is not None and personal_vectors < 0:
            raise UserError(f"method.personal_vectors is {personal_vectors}; valid is an integer of at least 0.")
        self.personal_vectors = personal_vectors

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        length = model.prompt.shape[-2]
        personal = length // 2 if self.personal_vectors is None else self.personal_vectors
        if personal > length:
            raise UserError(
                f"method.personal_vectors is {personal}, but the prompt has {length} context vectors; valid is 0 to "
                f"{length}."
            )
        first, last = model.prompt.split([length - personal, personal], dim=-2)
        parts = [Parameter("prompt", Scope.SHARED, fixed(first)), Parameter("own", Scope.PERSONAL, fixed(last))]
        return [part for part, tensor in zip(parts, (first, last), strict=True) if tensor.numel()]

    def prompt(self, client: Client) -> Tensor:
        import torch

        return torch.cat(list(client.prompts.learned.values()), dim=-2)  # the shared vectors [l - k, w] first
