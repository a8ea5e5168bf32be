"""A run's defences, as the round loop uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fedmoe.client.work import ATTENTION
from fedmoe.config import FederationConfig, PrivacyConfig
from fedmoe.defences.base import Aggregation, Report, Screening
from fedmoe.errors import UserError
from fedmoe.protocol.parameters import Parameter, Scope
from fedmoe.protocol.records import Update
from fedmoe.server.state import Known, ServerState


@dataclass(frozen=True)
class Defences:
    """The two kinds of defences; either may be missing."""

    aggregation: Aggregation | None = None
    screening: Screening | None = None

    @property
    def needs_reports(self) -> bool:
        """Whether clients also upload the mean weights of their gates."""
        return self.screening is not None and self.screening.needs_reports

    def check(
        self, method: str, declared: Sequence[Parameter], federation: FederationConfig, privacy: PrivacyConfig
    ) -> None:
        """Refuse a defence that does not fit, or that could do nothing.

        Args:
            method: the method's class, for messages.
            declared: what it learns.

        Raises:
            UserError: there is one.
        """
        if self.aggregation is not None:
            name = type(self.aggregation).__name__
            if not federation.rounds or all(part.scope is not Scope.SHARED for part in declared):
                raise UserError(
                    f"aggregation is {name}, but {method} averages nothing that it could protect; valid is null, or a "
                    "method with shared parameters."
                )
            if federation.share_momentum:
                raise UserError(
                    f"aggregation is {name}, but federation.share_momentum is true, which hands on what no defence "
                    "sees; valid is false."
                )
            self.aggregation.check(federation)
        if self.screening is not None:
            name = type(self.screening).__name__
            if not federation.rounds or not any(part.pool for part in declared):
                raise UserError(
                    f"screening is {name}, but {method} hands no client's values to others; valid is null, or a method "
                    "with a pool of prompts, such as PFedMoAP."
                )
            if self.needs_reports and not any(part.scope is Scope.EXPERT for part in declared):
                raise UserError(
                    f"screening is {name}, but {method} has no gate over experts whose weights clients could report; "
                    "valid is OutlierTest, or a method with one, such as PFedMoAP."
                )
            self.screening.check(federation, privacy)

    def combine(self, server: ServerState, updates: Sequence[Update]) -> Sequence[Update]:
        """What the method is to average, in place of the round's uploads."""
        return updates if self.aggregation is None else self.aggregation.combine(server.shared, updates)

    def served(self, server: ServerState) -> Served:
        """The server as it is now, as the screening lets clients see it."""
        return Served(server, None if self.screening is None else self.screening.trusted(server))

    def learn(self, server: ServerState, updates: Sequence[Update], known: dict[int, Known]) -> None:
        """Take account of what the round's clients report of their experts."""
        if self.screening is not None and self.needs_reports:
            reports = [
                Report(update.client_id, known[update.client_id].expert_ids, update.extras[ATTENTION])
                for update in updates
                if ATTENTION in update.extras
            ]
            self.screening.learn(server, reports)


@dataclass(frozen=True)
class Served:
    """The server, as the screening lets clients see it."""

    server: ServerState
    trusted: frozenset[int] | None  # None: everybody

    def to(self, client_id: int) -> ServerState:
        """What the client may get values of: itself, and whoever is trusted. Only the pools differ; all else is the
        server's own."""
        if self.trusted is None:
            return self.server
        return self._to_trusted if client_id in self.trusted else self._with(self.trusted | {client_id})

    @cached_property
    def _to_trusted(self) -> ServerState:
        """What all trusted clients see: one object, whose search of the pool is prepared once."""
        return self._with(self.trusted or frozenset())

    def _with(self, allowed: frozenset[int]) -> ServerState:
        pools = {
            name: {client: value for client, value in entries.items() if client in allowed}
            for name, entries in self.server.pool.items()
        }
        return replace(self.server, pool=pools)
