"""Weighted means of the cohort's uploads (eq. 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of tensors weighted by n_i (eq. 6 and 7), summed in float64 in the given order.

    Args:
        tensors: all of the same shape.
        weights: a positive number for each tensor.
    """
    total = tensors[0].new_zeros(tensors[0].shape).double()
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.double()
    return (total / sum(weights)).to(tensors[0].dtype)


def weighted_means(updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of each named tensor over the updates that contain it.

    Args:
        updates: named tensors; tensors of the same name have the same shape.
        weights: a positive number for each update.
    """
    names = dict.fromkeys(name for update in updates for name in update)
    means = {}
    for name in names:
        pairs = [(update[name], weight) for update, weight in zip(updates, weights, strict=True) if name in update]
        means[name] = weighted_mean([tensor for tensor, _ in pairs], [weight for _, weight in pairs])
    return means
