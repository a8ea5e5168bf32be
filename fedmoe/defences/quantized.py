"""Quantized prompts for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Serving
from fedmoe.errors import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Quantized(Serving):
    """Others get each coordinate of P - G rounded to one of 2^bits values.

    These are evenly spaced from the smallest coordinate to the largest one. G is the server's shared value (0 where
    there is none).
    """

    bits: int = 4
    """Number of bits of a coordinate, 1 to 16."""

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 16, "serving.bits", self.bits, "an integer from 1 to 16")

    def shown(self, entries: Mapping[int, Tensor], shared: Tensor | None) -> Mapping[int, Tensor]:
        return {
            client: quantized(value - (0 if shared is None else shared), self.bits) + (0 if shared is None else shared)
            for client, value in entries.items()
        }


def quantized(value: Tensor, bits: int) -> Tensor:
    """Each coordinate as the nearest of 2^bits values from the least to the greatest."""
    low, step = value.min(), (value.max() - value.min()) / (2**bits - 1)
    return value if step == 0 else low + ((value - low) / step).round() * step
