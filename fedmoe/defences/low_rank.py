"""Low-rank prompts for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Serving
from fedmoe.errors import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LowRank(Serving):
    """Others get G + the best approximation of P - G [l, w] of a rank.

    G is the server's shared value (0 where there is none). The largest singular values are kept.
    """

    rank: int = 1
    """The rank, at least 1; one of min(l, w) or more changes nothing."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "serving.rank", self.rank, "an integer of at least 1")

    def shown(self, entries: Mapping[int, Tensor], shared: Tensor | None) -> Mapping[int, Tensor]:
        return {
            client: low_rank(value - (0 if shared is None else shared), self.rank) + (0 if shared is None else shared)
            for client, value in entries.items()
        }


def low_rank(value: Tensor, rank: int) -> Tensor:
    """The best approximation of a matrix [..., l, w] of that rank, in the l2 norm."""
    import torch

    left, values, right = torch.linalg.svd(value.double(), full_matrices=False)
    return ((left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]).to(value.dtype)
