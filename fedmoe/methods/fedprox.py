"""Prompt + FedProx: PromptFL with a proximal term (Li et al., MLSys 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.methods.promptfl import PromptFL

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client


class FedProx(PromptFL):
    """PromptFL whose local loss adds mu / 2 * ||P - P_global||^2, a pull towards the round's global prompt.

    Args:
        mu: weight of the proximal term; 0 is PromptFL. The paper does not give its value.
        proximal: gradient, where the term pulls (FedProx); or detached, as in pFedMoAP's released code, whose term is
            built from tensors without a gradient. Then the loss is larger, and training is PromptFL's to the bit.
    """

    label = "Prompt+FedProx"

    def __init__(self, mu: float = 0.5, proximal: Literal["gradient", "detached"] = "gradient") -> None:
        if mu < 0:
            raise UserError(f"method.mu is {mu}; valid is a number of at least 0.")
        self.mu = mu
        self.proximal = proximal

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        distance = (client.prompts["prompt"] - client.received["prompt"]).square().sum()
        if self.proximal == "detached":
            distance = distance.detach()
        return super().loss(client, image_features, labels) + 0.5 * self.mu * distance
