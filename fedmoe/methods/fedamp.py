"""Prompt + FedAMP: attentive message passing between clients' prompts on the server.

Huang, Chu, Zhou, Wang, Liu, Pei, Zhang, "Personalized Cross-Silo Federated Learning on Non-IID Data", AAAI 2021
(arXiv 2007.03797). Objective over all clients' models w_i, with losses F_i:

    sum_i F_i(w_i) + lambda * sum_{i<j} A(||w_i - w_j||^2),    A(x) = 1 - exp(-x / sigma).

Shape letters: l context tokens, w token width, m prompts in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import Downlink, RoundContext

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


def message_weights(pool: Mapping[int, Tensor], client_id: int, sigma: float, alpha: float) -> dict[int, float]:
    """The weights xi_ij of the pool's prompts in client i's mixture; they sum to 1.

    xi_ij = alpha * A'(||w_i - w_j||^2) with A'(x) = exp(-x / sigma) / sigma for j != i, and the self weight
    xi_ii = 1 - sum_j xi_ij. Distances are sums of squared differences in float64.
    """
    own = pool[client_id].double()
    others = sorted(other for other in pool if other != client_id)
    squares = {other: (pool[other].double() - own).square().sum() for other in others}
    weights = {other: alpha / sigma * float((-square / sigma).exp()) for other, square in squares.items()}
    return {client_id: 1 - sum(weights.values()), **weights}


class FedAMP(Method):
    """Each client receives its own mixture of all clients' prompts, and its training is pulled towards that mixture.

    Server, round t: u_i = sum_j xi_ij w_j over the last uploaded prompts, a step of length alpha down the gradient of
    the attentive term, so that clients with similar prompts influence each other more (``message_weights``). Client:
    w_i = argmin F_i(w) + lambda / (2 alpha) * ||w - u_i||^2, by local SGD starting from its own last prompt. The client
    predicts with w_i; there is no global model, so a client that never took part predicts with the initial prompt. A
    client that has not uploaded yet receives nothing and trains without the pull.

    With lambda = 0 there is no pull, and FedAMP is local training.

    Args:
        sigma: scale of squared distances between prompts beyond which clients hardly attend to each other.
        alpha: the server's step; null: sigma / m with m prompts in the pool. Then equal prompts give their plain
            mean, distant ones stay unchanged, and no weight is negative.
        lmbda: weight lambda of the attentive term. pFedMoAP's paper gives none of the three values.
    """

    label = "Prompt+FedAMP"

    def __init__(self, sigma: float = 1.0, alpha: float | None = None, lmbda: float = 0.1) -> None:
        if sigma <= 0:
            raise UserError(f"method.sigma is {sigma}; valid is a number above 0.")
        if alpha is not None and alpha <= 0:
            raise UserError(f"method.alpha is {alpha}; valid is a number above 0, or null for sigma / clients.")
        if lmbda < 0:
            raise UserError(f"method.lmbda is {lmbda}; valid is a number of at least 0.")
        self.sigma = sigma
        self.alpha = alpha
        self.lmbda = lmbda

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        if self.alpha is None or federation.clients == 1:
            return
        largest = self.sigma / (federation.clients - 1)
        if self.alpha > largest:  # equal prompts would leave a client's own a negative weight
            raise UserError(
                f"method.alpha is {self.alpha}; with method.sigma = {self.sigma:g} and federation.clients = "
                f"{federation.clients} valid is at most sigma / (clients - 1) = {largest:g}, or null."
            )

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return [Parameter("prompt", Scope.SHARED, fixed(model.prompt), keep=True, pool=True)]

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        import torch

        pool = server.pooled("prompt")
        if client_id not in pool:
            return Downlink()
        alpha = self.sigma / len(pool) if self.alpha is None else self.alpha
        weights = message_weights(pool, client_id, self.sigma, alpha)
        mixture = torch.zeros_like(pool[client_id], dtype=torch.float64)
        for other, weight in sorted(weights.items()):  # in a fixed order, so that the sum always has the same bits
            mixture += weight * pool[other].double()
        return Downlink(extras={"mixture": mixture.to(pool[client_id].dtype), "alpha": torch.tensor(alpha)})

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return Downlink()  # there is no global model: a client that never took part uses the initial prompt

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        loss = super().loss(client, image_features, labels)
        if "mixture" not in client.extras or self.lmbda == 0:
            return loss
        distance = (client.prompts["prompt"] - client.extras["mixture"]).square().sum()
        return loss + self.lmbda / (2 * client.extras["alpha"]) * distance
