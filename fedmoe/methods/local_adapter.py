"""LocalAdapter: an own prompt and an own adapter of image features, as a control of pFedMoAP.

Shape letters: b images, C classes, d feature width, g gating width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.config import FederationConfig
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.models.adapter import ResidualAdapter
    from fedmoe.protocol.client import Client


class LocalAdapter(Method):
    """pFedMoAP's prompts with a local head in place of the mixture: no experts are sent.

    A baseline of ours, which asks how much of pFedMoAP's gain is the gate's number of parameters. The prompt is treated
    as there: clients start from the global prompt in each round, upload theirs, and predict with their own last one. A
    personal residual adapter changes the image features, logits = exp(logit_scale) * I' . T with I' = I + P^T A(P I),
    see ``fedmoe.models.adapter``. It never leaves the client, starts as the identity, is trained from the client's
    first round on (pFedMoAP's gate from the second), and has as many parameters as an attention gate of the same width:
    4 g^2 + 4 g, which is 66,048 at 128.

    Args:
        gating_dim: width g that features are pooled to, as by pFedMoAP's gate; must divide CLIP's feature width. At
            that width nothing is pooled.
        pooling: stride keeps every n-th coordinate of a feature, average takes the mean of every n neighbouring ones;
            n = CLIP's feature width / gating_dim.
    """

    label = "Local adapter"

    def __init__(self, gating_dim: int = 128, pooling: Literal["stride", "average"] = "stride") -> None:
        self.gating_dim = gating_dim
        self.pooling = pooling

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        self._adapter(feature_dim)  # refuses widths that do not divide each other

    def _adapter(self, feature_dim: int, generator: torch.Generator | None = None) -> ResidualAdapter:
        from fedmoe.models.adapter import ResidualAdapter

        return ResidualAdapter(feature_dim, self.gating_dim, generator, self.pooling)

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        return [
            Parameter("prompt", Scope.SHARED, fixed(model.prompt), keep=True),
            Parameter(
                "adapter",
                Scope.PERSONAL,
                lambda generator: self._adapter(model.feature_dim, generator),
                rate="gating_lr",
            ),
        ]

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import combine

        text = client.text_features()  # [C, d]
        adapter: ResidualAdapter = getattr(client, "adapter")  # noqa: B009, its type is known here alone
        return combine(adapter.similarity(image_features, text), image_features, text, client.logit_scale, 1.0)
