"""Norm clipping (Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?", arXiv 1911.07963)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Aggregation
from fedmoe.errors import require
from fedmoe.protocol.records import Tensors, Update

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class NormClipping(Aggregation):
    """Each update X - G, over all shared parameters, is scaled down to the l2 norm ``bound`` if it is longer."""

    bound: float | None = None
    """The largest norm of an update; null: the median of the round's norms, so that half of the updates stay."""

    def __post_init__(self) -> None:
        valid = "null or a finite number above 0"
        require(self.bound is None or 0 < self.bound < math.inf, "aggregation.bound", self.bound, valid)

    def combine(self, shared: Tensors, updates: Sequence[Update]) -> Sequence[Update]:
        norms = [update_norm(shared, update) for update in updates]
        bound = sorted(norms)[(len(norms) - 1) // 2] if self.bound is None else self.bound
        return [clipped(shared, update, norm, bound) for update, norm in zip(updates, norms, strict=True)]


def update_norm(shared: Tensors, update: Update) -> float:
    """The l2 norm of X - G over all parameters of the update, in float64."""
    squares = ((value.double() - shared[name].double()).square().sum() for name, value in update.parameters.items())
    return math.sqrt(math.fsum(float(square) for square in squares))


def clipped(shared: Tensors, update: Update, norm: float, bound: float) -> Update:
    """G + min(1, bound / norm) (X - G); an update within the bound is returned as it is."""
    return update if norm <= bound else update.scaled(shared, bound / norm)
