"""The coordinate-wise median (Yin, Chen, Ramchandran, Bartlett; ICML 2018, arXiv 1803.01498, definition 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Aggregation, in_format, one_update, stacks
from fedmoe.protocol.records import Tensors, Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Median(Aggregation):
    """Each coordinate is the median of the uploads', all of the same weight."""

    def combine(self, shared: Tensors, updates: Sequence[Update]) -> Sequence[Update]:
        values = {name: coordinate_median(stacked) for name, stacked in stacks(updates).items()}
        return one_update(updates, in_format(values, updates))


def coordinate_median(stacked: Tensor) -> Tensor:
    """[n, ...] -> [...]: of an even number, the mean of the two in the middle."""
    ordered, count = stacked.sort(dim=0).values, len(stacked)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
