"""Prompt + FedProx: PromptFL with a proximal term (Li et al., MLSys 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmoe.errors import UserError
from fedmoe.methods.promptfl import PromptFL

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client


class FedProx(PromptFL):
    """PromptFL whose local loss adds mu / 2 * ||P - P_global||^2, a pull towards the round's global prompt.

    Args:
        mu: weight of the proximal term; 0 is PromptFL. The paper does not give its value.
    """

    label = "Prompt+FedProx"

    def __init__(self, mu: float = 0.5) -> None:
        if mu < 0:
            raise UserError(f"method.mu is {mu}; valid is a number of at least 0.")
        self.mu = mu

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        distance = (client.prompts["prompt"] - client.received["prompt"]).square().sum()
        return super().loss(client, image_features, labels) + 0.5 * self.mu * distance
