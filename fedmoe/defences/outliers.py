"""An outlier test on the prompts in a pool: the modified z-score (Iglewicz, Hoaglin, "How to detect and handle
outliers", 1993, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedmoe.defences.base import Screening
from fedmoe.defences.median import coordinate_median
from fedmoe.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.server.state import ServerState

_MEASURES = ("distance", "norm")


@dataclass(frozen=True, kw_only=True)
class OutlierTest(Screening):
    """An entry is not served where its distance, or its norm, is far from most others'.

    z = 0.6745 (x - median(x)) / MAD(x), over all clients in the pool, where MAD is the median of |x - median(x)|. Both
    tails count: a prompt that is nearer to the centre than anybody else's is as strange as one that is far away. Where
    the MAD is 0, whatever differs from the median is an outlier. With fewer than three entries, all are served.
    """

    measure: Literal["distance", "norm"] = "distance"
    """x: the l2 distance of an entry from the coordinate-wise median of all, or its l2 norm."""
    threshold: float = 3.5
    """The largest |z| that is served; the source recommends 3.5."""

    def __post_init__(self) -> None:
        require(self.measure in _MEASURES, "screening.measure", self.measure, "distance or norm")
        require(0 < self.threshold < math.inf, "screening.threshold", self.threshold, "a number above 0")

    def trusted(self, server: ServerState) -> frozenset[int]:
        """The clients that are no outliers in any of the pools."""
        import torch

        clients = {client for entries in server.pool.values() for client in entries}
        for entries in server.pool.values():
            if len(entries) < 3:
                continue
            ids = sorted(entries)
            stacked = torch.stack([entries[i].double() for i in ids])
            centre = coordinate_median(stacked) if self.measure == "distance" else torch.zeros_like(stacked[0])
            scores = modified_z((stacked - centre).flatten(1).norm(dim=1))
            clients -= {i for i, z in zip(ids, scores.tolist(), strict=True) if abs(z) > self.threshold}
        return frozenset(clients)


def modified_z(values: Tensor) -> Tensor:
    """The modified z-scores of n values [n]: [n]; infinite where the MAD is 0 and a value differs from the median."""
    import torch

    deviations = values - coordinate_median(values)
    spread = coordinate_median(deviations.abs())
    strange = torch.where(deviations == 0, 0.0, deviations.sign() * math.inf)
    return torch.where(spread == 0, strange, 0.6745 * deviations / spread)
