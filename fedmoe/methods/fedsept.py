"""FedSEPT: prompt experts in a common low-rank basis, a private residual, and a router on the client.

Wang et al., "Towards Privacy-Preserving Federated Prompt Tuning under Data Heterogeneity: A Subspace-Decomposed Expert
Approach", ACM MM 2026, as in its public release; the paper's text was not available. Expert m of client i is

    P_m = A_m B + R_i,

with factors A_m [l, r] that are averaged over clients, a fixed public basis B [r, w] and a residual R_i [l, w] that
never leaves the client. With the router's weights pi (x) of an image, which sum to 1, the logits are

    sum_m pi_m(x) * exp(logit_scale) * I . T(P_m).

Shape letters: b images, C classes, M experts, l context tokens, w token width, d feature width, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, normal
from fedmoe.seeds import torch_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client


def diversity(factors: Tensor) -> Tensor:
    """The mean of cos^2(A_m, A_k) over all pairs m != k of factors [M, ...], each taken as one vector."""
    from torch.nn.functional import normalize

    count = len(factors)
    unit = normalize(factors.flatten(1), dim=-1)
    squares = (unit @ unit.T).square()  # [M, M]
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))


class FedSEPT(Method):
    """The factors A are averaged over the cohort (weighted by n_i); residual and router stay on the client.

    Local objective: cross-entropy + lambda * the mean squared cosine between the experts' factors. A is trained with
    ``optim.prompt_lr``, R and the router with ``optim.gating_lr`` (the release uses one rate). R starts at zero. The
    client predicts with the current A and its own R and router; a client that never took part has their initial values.
    A client sends M l r numbers: 1,024 at the defaults, an eighth of one prompt.

    The router is attention with the image feature as the only key, as in the release. The weight of a single key is
    always 1, so its query and key maps do nothing and are left out; what remains is value map, output map, norm, and a
    linear map to M weights. The release trains it without weight decay; here it has ``optim.weight_decay``. Its README
    names a regularizer of the gate, which its code does not have.

    The release's differential privacy (DP-SGD on A alone) does not bound what R and the router, trained without noise,
    carry from one step's example into the next step's gradients. Here, ``privacy.mechanism`` = upload or dpsgd gives
    the guarantees that ``fedmoe.privacy.mechanism`` states.

    Args:
        num_experts: M; with one expert there is no router.
        rank: r, the number of rows of the basis.
        lmbda: weight lambda of the diversity term; the default is the release's.
        heads: of the router's value map, for the dropout; must divide CLIP's feature width.
        dropout: probability that a head of the router's value is left out in training.
        std: standard deviation of the initial A and of the basis, which is the same in every run.
    """

    label = "FedSEPT"
    half_precision = False

    def __init__(
        self,
        num_experts: int = 4,
        rank: int = 16,
        lmbda: float = 10.0,
        heads: int = 4,
        dropout: float = 0.1,
        std: float = 0.02,
    ) -> None:
        for name, value in {"num_experts": num_experts, "rank": rank, "heads": heads}.items():
            if value < 1:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 1.")
        for name, number in {"lmbda": lmbda, "std": std}.items():
            if number < 0:
                raise UserError(f"method.{name} is {number}; valid is a number of at least 0.")
        if not 0 <= dropout < 1:
            raise UserError(f"method.dropout is {dropout}; valid is a number in [0, 1).")
        self.num_experts = num_experts
        self.rank = rank
        self.lmbda = lmbda
        self.heads = heads
        self.dropout = dropout
        self.std = std

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        import torch

        basis = torch.empty(self.rank, clip.token_width)
        return {"basis": basis.normal_(std=self.std, generator=torch_generator(0, "FedSEPT"))}  # B [r, w]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        if model.feature_dim % self.heads:
            raise UserError(
                f"method.heads is {self.heads}, which does not divide CLIP's feature width {model.feature_dim}; valid "
                "is a divisor of it."
            )

        def zeros(generator: torch.Generator) -> Tensor:
            import torch

            return torch.zeros_like(model.prompt)

        def router(generator: torch.Generator) -> nn.Module:
            from fedmoe.models.router import Router

            return Router(model.feature_dim, self.num_experts, self.heads, self.dropout, generator)

        factors = normal((self.num_experts, *model.prompt.shape[:-1], self.rank), self.std)
        parts = [
            Parameter("factors", Scope.SHARED, factors),  # A
            Parameter("residual", Scope.PERSONAL, zeros, rate="gating_lr"),  # R
        ]
        if self.num_experts > 1:
            parts.append(Parameter("router", Scope.PERSONAL, router, rate="gating_lr"))
        return parts

    def prompt(self, client: Client) -> Tensor:
        """The experts' prompts [M, l, w]."""
        basis = client.constants["basis"].to(client.prompts["factors"])
        return client.prompts["factors"] @ basis + client.prompts["residual"]

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        fit = super().loss(client, image_features, labels)
        if self.num_experts == 1 or not self.lmbda:
            return fit
        return fit + self.lmbda * diversity(client.prompts["factors"])

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        import torch

        text = client.text_features()  # [M, C, d]
        logits = client.logit_scale * torch.einsum("bd,mcd->bmc", image_features, text)
        if self.num_experts == 1:
            return logits[:, 0]
        return (self.routing(client, image_features).unsqueeze(-1) * logits).sum(dim=1)

    def routing(self, client: Client, image_features: Tensor) -> Tensor:
        """The router's weights [b, M] of image features [b, d]."""
        weights: Tensor = client.router(image_features.detach())  # type: ignore[attr-defined]
        return weights

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        """The entropy of the router's weights in units of that of equal weights: 0 for one expert, 1 for all alike."""
        if self.num_experts == 1:
            return {}
        weights = self.routing(client, image_features)
        entropy = -weights.xlogy(weights).sum(dim=1).mean()
        return {"routing_entropy": entropy / math.log(self.num_experts)}
