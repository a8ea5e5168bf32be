"""A reputation of experts from the gates' own weights (ours, no paper's): who is weighed down is no longer served.

Clients also upload, as 4 (K + 1) bytes, the mean weights of their gate on their own training images after training.
They tell the server how much a client's gate uses whose prompt. Attackers could lie about theirs; each report is
bounded, and one about oneself does not count.

Shape letters: N clients, K experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedmoe.config import FederationConfig, PrivacyConfig
from fedmoe.defences.base import Report, Screening
from fedmoe.errors import UserError, require

if TYPE_CHECKING:
    from fedmoe.server.state import ServerState

_SUMS, _COUNTS = "reputation.sums", "reputation.counts"  # among the server's extras: [N], float64


@dataclass(frozen=True, kw_only=True)
class Reputation(Screening):
    """An expert is no longer served once the gates that have had it give it too little weight.

    A report is an expert's share of the weight of all K, times K: 1 if all are equal; it counts as at most 2. A
    client's reputation is (1 + sum of its reports) / (1 + their number): it starts at 1, and once it is below
    ``least``, its prompt is not served, so that no new report can restore it.
    """

    least: float = 0.5
    """The smallest reputation that is served, in units of an even share; in [0, 1)."""
    needs_reports: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 <= self.least < 1, "screening.least", self.least, "a number in [0, 1)")

    def check(self, federation: FederationConfig, privacy: PrivacyConfig) -> None:
        if privacy.mechanism != "none":
            raise UserError(
                f"screening is Reputation, but privacy.mechanism is {privacy.mechanism!r}, which does not protect the "
                "weights that clients would upload; valid is another screening, or privacy.mechanism = none."
            )
        if federation.share_momentum:
            raise UserError(
                "screening is Reputation, but federation.share_momentum is true, where clients upload other extras; "
                "valid is false."
            )

    def trusted(self, server: ServerState) -> frozenset[int]:
        clients = frozenset(client for entries in server.pool.values() for client in entries)
        if _SUMS not in server.extras:
            return clients
        standing = ((1 + server.extras[_SUMS]) / (1 + server.extras[_COUNTS])).tolist()
        return frozenset(client for client in clients if client >= len(standing) or standing[client] >= self.least)

    def learn(self, server: ServerState, reports: Sequence[Report]) -> None:
        import torch

        sums, counts = dict[int, float](), dict[int, int]()
        for report in reports:
            if len(report.weights) != len(report.experts) + 1:  # copies, which are nobody's
                continue
            weights = [max(0.0, weight) for weight in report.weights[1:].tolist()]
            for expert, weight in zip(report.experts, weights, strict=True):
                if expert != report.client and sum(weights) > 0:
                    sums[expert] = sums.get(expert, 0.0) + min(2.0, len(weights) * weight / sum(weights))
                    counts[expert] = counts.get(expert, 0) + 1
        if not counts:
            return
        size = max(max(counts) + 1, len(server.extras.get(_SUMS, ())))
        for name, added in ((_SUMS, sums), (_COUNTS, counts)):
            held = torch.zeros(size, dtype=torch.float64)
            before = server.extras.get(name)
            if before is not None:
                held[: len(before)] = before
            for expert, value in added.items():
                held[expert] += value
            server.extras[name] = held
