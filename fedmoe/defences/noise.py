"""Noise on the prompts that others get."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.defences.base import Serving
from fedmoe.errors import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Noise(Serving):
    """N(0, std^2) is added to each coordinate of what others get of an entry.

    No guarantee: an upload has no bound that the noise would be in proportion to (``privacy.mechanism`` has). In a
    simulation, the noise derives from the upload's own bits, so that it is the same whenever the upload is served and
    cannot be averaged away; a deployment must draw it from a secret source.
    """

    std: float = 0.01
    """The noise's standard deviation; above 0."""

    def __post_init__(self) -> None:
        require(0 < self.std < math.inf, "serving.std", self.std, "a finite number above 0")

    def shown(self, entries: Mapping[int, Tensor], shared: Tensor | None) -> Mapping[int, Tensor]:
        import torch

        found = {}
        for client, value in entries.items():
            digest = hashlib.blake2b(value.contiguous().cpu().numpy().tobytes(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            found[client] = value + self.std * torch.randn(value.shape, generator=generator).to(value)
        return found
