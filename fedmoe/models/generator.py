"""FedTPG's prompt generator: from the set of a task's class names to context vectors (arXiv 2310.06123, section 3).

Shape letters: C classes, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptGenerator(nn.Module):
    """Learned queries attend to the class names' text features; a gated feed-forward block with a residual follows.

        x = attention(norm(Q), norm(E), norm(E));    prompt = x + W_2 (a * GELU(b)),    [a; b] = W_1 norm(x).

    There is no residual around the attention. The prompt does not depend on the order of the class names.

    Args:
        length: l, the number of queries.
        width: w. feature_dim: d.
        heads: of the attention; must divide w.
        generator: for the initial values: N(0, 0.02^2) for the queries, torch's defaults for all else.
    """

    def __init__(
        self, length: int, width: int, feature_dim: int, heads: int = 4, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        seed = torch.randint(2**63 - 1, (), generator=generator).item()
        with torch.random.fork_rng(devices=[]):  # torch's modules draw from the global generator
            torch.manual_seed(int(seed))
            self.queries = nn.Parameter(torch.randn(length, width) * 0.02)
            self.norm_queries, self.norm_names = nn.LayerNorm(width), nn.LayerNorm(feature_dim)
            self.attention = nn.MultiheadAttention(width, heads, kdim=feature_dim, vdim=feature_dim, batch_first=True)
            self.norm = nn.LayerNorm(width)
            self.wide, self.narrow = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, names: Tensor) -> Tensor:
        """Text features of the task's class names [C, d] -> a prompt [l, w]."""
        found = self.norm_names(names)
        x, _ = self.attention(self.norm_queries(self.queries), found, found, need_weights=False)
        gated, gate = self.wide(self.norm(x)).chunk(2, dim=-1)
        return x + self.narrow(gated * F.gelu(gate))
