"""A run's defences, as the round loop uses them."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from fedmoe.client.work import ATTENTION
from fedmoe.config import FederationConfig, PrivacyConfig
from fedmoe.defences.base import Aggregation, Report, Screening, Serving
from fedmoe.errors import UserError
from fedmoe.protocol.parameters import Parameter, Scope
from fedmoe.protocol.records import Update
from fedmoe.server.state import Known, ServerState

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Defences:
    """The three kinds of defences; each may be missing."""

    aggregation: Aggregation | None = None
    screening: Screening | None = None
    serving: Serving | None = None

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
        for key, defence in (("screening", self.screening), ("serving", self.serving)):
            if defence is not None and (not federation.rounds or not any(part.pool for part in declared)):
                raise UserError(
                    f"{key} is {type(defence).__name__}, but {method} hands no client's values to others; valid is "
                    "null, or a method with a pool of prompts, such as PFedMoAP."
                )
        if self.screening is not None:
            name = type(self.screening).__name__
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
        """The server as it is now, as screening and serving let clients see it."""
        return Served(server, None if self.screening is None else self.screening.trusted(server), self.serving)

    def learn(self, server: ServerState, updates: Sequence[Update], known: dict[int, Known]) -> None:
        """Take account of the round's uploads, and of what its clients report of their experts."""
        if self.screening is not None:
            self.screening.note(server, updates)
        if self.screening is not None and self.needs_reports:
            reports = [
                Report(update.client_id, known[update.client_id].expert_ids, update.extras[ATTENTION])
                for update in updates
                if ATTENTION in update.extras
            ]
            self.screening.learn(server, reports)


@dataclass(frozen=True)
class Served:
    """The server, as the screening lets clients see it, and as the serving shows it to them."""

    server: ServerState
    trusted: frozenset[int] | None  # None: everybody
    serving: Serving | None = None

    def to(self, client_id: int) -> ServerState:
        """What the client may get values of: itself, as it is, and whoever is trusted, as it is shown. Only the pools
        differ; all else is the server's own."""
        if self.serving is not None:
            own = {name: client_id in entries for name, entries in self.server.pool.items()}
            return replace(
                self.server,
                pool={
                    name: {**entries, **({client_id: self.server.pool[name][client_id]} if own[name] else {})}
                    for name, entries in self._shown.items()
                },
                ahead=(),  # another pool for each client
            )
        if self.trusted is None:
            return self.server
        if client_id in self.trusted:
            return self._to_trusted
        return self._with(self.trusted | {client_id})

    @cached_property
    def _shown(self) -> dict[str, dict[int, Tensor]]:
        """What others get of the trusted clients' entries, by pool."""
        assert self.serving is not None
        allowed = self.server if self.trusted is None else self._with(self.trusted)
        return {
            name: dict(self.serving.shown(entries, self.server.shared.get(name)))
            for name, entries in allowed.pool.items()
        }

    @cached_property
    def _to_trusted(self) -> ServerState:
        """What all trusted clients see: one object, whose search of the pool is prepared once."""
        return self._with(self.trusted or frozenset(), self.server.ahead)

    def _with(self, allowed: frozenset[int], ahead: Sequence[int] = ()) -> ServerState:
        pools: dict[str, MutableMapping[int, Tensor]] = {
            name: {client: value for client, value in entries.items() if client in allowed}
            for name, entries in self.server.pool.items()
        }
        return replace(self.server, pool=pools, ahead=ahead)
