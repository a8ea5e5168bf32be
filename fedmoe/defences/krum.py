"""Krum and multi-Krum (Blanchard, El Mhamdi, Guerraoui, Stainer; NeurIPS 2017, arXiv 1703.02757, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.config import FederationConfig
from fedmoe.defences.base import Aggregation
from fedmoe.errors import require
from fedmoe.protocol.records import Tensors, Update
from fedmoe.server.sampling import share_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Krum(Aggregation):
    """Only the uploads that are nearest to their nearest others count: one (Krum), or several (multi-Krum).

    An upload's score is the sum of its squared distances to its n - f - 2 nearest others, where f is the number of
    attackers that is expected; the lowest scores are kept, ties by client id. Of several, the mean is weighted by n_i.
    Where failures leave fewer than f + 3 uploads in a round, the single nearest other decides.
    """

    attackers: int = 1
    """The largest number f of attackers in a cohort, of n >= 2 f + 3."""
    keep: int = 1
    """Number m of uploads that count, 1 to n - f: 1 is Krum, more is multi-Krum."""

    def __post_init__(self) -> None:
        require(self.attackers >= 0, "aggregation.attackers", self.attackers, "an integer of at least 0")
        require(self.keep >= 1, "aggregation.keep", self.keep, "an integer of at least 1")

    def check(self, federation: FederationConfig) -> None:
        count = share_of(federation.participants, federation.participation)  # unless some fail
        most = (count - 3) // 2
        valid = f"0 to {most} with cohorts of {count} clients" if most >= 0 else "no Krum with cohorts of fewer than 3"
        require(self.attackers <= most, "aggregation.attackers", self.attackers, valid)
        most = count - self.attackers
        require(self.keep <= most, "aggregation.keep", self.keep, f"1 to {most}, the honest ones of {count} clients")

    def combine(self, shared: Tensors, updates: Sequence[Update]) -> Sequence[Update]:
        import torch

        common = set.intersection(*(set(update.parameters) for update in updates))
        if len(updates) < 2 or not common:
            return updates
        rows = [
            torch.cat([update.parameters[name].double().flatten() for name in sorted(common)]) for update in updates
        ]
        scores = krum_scores(torch.stack(rows), self.attackers).tolist()
        best = sorted(range(len(updates)), key=lambda i: (scores[i], updates[i].client_id))[: self.keep]
        return [updates[i] for i in sorted(best)]


def krum_scores(rows: Tensor, attackers: int) -> Tensor:
    """The score of each of n >= 2 uploads [n, d]: [n], float64."""
    import torch

    squares = torch.stack([(rows - row).square().sum(dim=1) for row in rows])  # [n, n]
    others = squares.sort(dim=1).values[:, 1:]  # without itself, which is at distance 0
    return others[:, : max(1, len(rows) - attackers - 2)].sum(dim=1)
