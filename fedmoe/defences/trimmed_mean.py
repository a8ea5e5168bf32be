"""The coordinate-wise trimmed mean (Yin, Chen, Ramchandran, Bartlett; ICML 2018, arXiv 1803.01498, definition 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Aggregation, in_format, one_update, stacks
from fedmoe.errors import require
from fedmoe.protocol.records import Tensors, Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Aggregation):
    """Each coordinate is the mean of the uploads' without the largest and the smallest ones, all of the same weight."""

    trim: float = 0.2
    """Share beta of the uploads that is left out at each end, in [0, 0.5); ceil(beta n), but never all of them."""

    def __post_init__(self) -> None:
        require(0 <= self.trim < 0.5, "aggregation.trim", self.trim, "a number in [0, 0.5)")

    def combine(self, shared: Tensors, updates: Sequence[Update]) -> Sequence[Update]:
        values = {name: trimmed_mean(stacked, self.trim) for name, stacked in stacks(updates).items()}
        return one_update(updates, in_format(values, updates))


def trimmed_mean(stacked: Tensor, trim: float) -> Tensor:
    """[n, ...] -> [...]: the mean without the ceil(trim n) largest and smallest, of which at most (n - 1) / 2 each."""
    import math

    count = len(stacked)
    cut = min(math.ceil(trim * count - 1e-9), (count - 1) // 2)
    return stacked.sort(dim=0).values[cut : count - cut].mean(dim=0)
