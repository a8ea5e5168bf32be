"""FedSEPT's router: an image's weights of the experts.

Shape letters: b images, d feature width, h heads, M experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Router(nn.Module):
    """Value map, output map, norm and a linear map to the weights of M experts: attention with a single key.

    Args:
        feature_dim: d.
        experts: M.
        heads: h; dropout leaves out whole heads, as it does where a head's only attention weight is dropped.
        dropout: its probability, in effect while gradients are computed.
        generator: for the initial values: Xavier's for the value map and torch's default for the output map (with zero
            biases), as in ``nn.MultiheadAttention``, and N(0, 0.01^2) for the last.
    """

    def __init__(
        self, feature_dim: int, experts: int, heads: int, dropout: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.value, self.output = (nn.Linear(feature_dim, feature_dim) for _ in range(2))
        self.norm = nn.LayerNorm(feature_dim)
        self.weights = nn.Linear(feature_dim, experts)
        # MultiheadAttention draws query, key and value maps as one matrix [3 d, d].
        bounds = {self.value: (6 / (4 * feature_dim)) ** 0.5, self.output: feature_dim**-0.5}
        with torch.no_grad():
            for part, bound in bounds.items():
                part.weight.uniform_(-bound, bound, generator=generator)
                part.bias.zero_()
            self.weights.weight.normal_(std=0.01, generator=generator)
            self.weights.bias.zero_()

    def forward(self, image_features: Tensor) -> Tensor:
        """Image features [b, d], l2-normalized -> weights [b, M] that sum to one."""
        value = self.value(image_features)
        if self.dropout and torch.is_grad_enabled():
            kept = F.dropout(value.new_ones(len(value), self.heads, 1), self.dropout)  # [b, h, 1]
            value = (value.unflatten(-1, (self.heads, -1)) * kept).flatten(1)
        return torch.softmax(self.weights(self.norm(self.output(value))), dim=-1)
