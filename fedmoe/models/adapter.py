"""A residual adapter of image features with as many parameters as the attention gate.

Shape letters: b images, C classes, d feature width, g gating width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmoe.models.gating import Pooled, linear


class ResidualAdapter(Pooled):
    """I' = I + P^T A(P I), with A(x) = s * (W_2 relu(W_1 x + b_1) + b_2), where P pools from d to g.

    W_1 is [2g, g], W_2 [g, 2g], and s [g] scales each coordinate: 4 g^2 + 4 g parameters, as many as the four maps of
    the attention gate have at every width g (66,048 at g = 128). W_1 and b_1 are drawn from torch.nn.Linear's
    distribution; W_2 and b_2 start at zero and s at one, so that I' = I at first.

    Args:
        feature_dim: CLIP's feature width d.
        gating_dim: width g the features are pooled to; must divide d. At g = d nothing is pooled.
        generator: source of the initial parameters; None: torch's global one.
        pooling: stride or average, see ``Pooled``.

    Raises:
        UserError: g does not divide d.
    """

    def __init__(
        self, feature_dim: int, gating_dim: int, generator: torch.Generator | None = None, pooling: str = "stride"
    ) -> None:
        super().__init__(feature_dim, gating_dim, pooling)
        self.inner = linear(gating_dim, 2 * gating_dim, generator)
        self.outer = nn.utils.skip_init(nn.Linear, 2 * gating_dim, gating_dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.scale = nn.Parameter(torch.ones(gating_dim))

    def forward(self, image_features: Tensor) -> Tensor:
        """A(P I): image features [b, d] -> [b, g]."""
        change: Tensor = self.scale * self.outer(self.inner(self.pool(image_features)).relu())
        return change

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """P^T A(P I) . T = A(P I) . P T [b, C]: what the adapter adds to I [b, d] . T [C, d]."""
        return self(image_features) @ self.pool(text_features).T
