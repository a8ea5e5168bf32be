"""What the server keeps from round to round."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from fedmoe.server.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fedmoe.server.search import PoolSearch

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)  # there is one for each client
class Known:
    """What the server knows about a client besides its uploads."""

    rounds_seen: int = 0  # number of rounds it has trained in
    expert_ids: tuple[int, ...] = ()  # whose values were its experts in the last of these rounds
    version: int = 0  # the last of these rounds, whose state the client is to use; 0 for none
    gated: bool = False  # whether a gate took part in it, which it can do without other clients' values

    @property
    def has_gate(self) -> bool:
        return self.gated or bool(self.expert_ids)


@dataclass
class ServerState:
    """What the server keeps: everything that server hooks may read and write.

    Attributes:
        shared: current values of the shared parameters, by name.
        pool: for each pooled parameter, every client's last upload of it.
        kept: names of the shared parameters of which a client that has trained keeps its own last value.
        clients: what is known about each client that has trained.
        extras: further named tensors that a method keeps between rounds; checkpoints include them.
        domains: each client's domain, where the data has domains.
        ahead: the clients that will be asked about next, in this order: one product finds many clients' nearest.
        scratch: a folder for what would take much memory, in files that end with the process; None: it is in memory.
    """

    shared: dict[str, Tensor]
    pool: dict[str, MutableMapping[int, Tensor]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    clients: MutableMapping[int, Known] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    domains: Mapping[int, str] = field(default_factory=dict)
    ahead: Sequence[int] = field(default=(), repr=False, compare=False)
    scratch: Path | None = field(default=None, repr=False, compare=False)
    _searches: dict[str, PoolSearch] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.pool = {name: _journal(entries) for name, entries in self.pool.items()}
        self.clients = _journal(self.clients)

    def known(self, client_id: int) -> Known:
        return self.clients.get(client_id, Known())

    def holds(self, client_id: int, name: str) -> bool:
        """Whether a client has its own last value of a shared parameter."""
        return name in self.kept and self.known(client_id).rounds_seen > 0

    def pooled(self, name: str) -> Mapping[int, Tensor]:
        """Every client's last upload of a parameter."""
        return self.pool[name]

    def nearest(self, name: str, client_id: int, count: int) -> list[int]:
        """The clients whose uploads of a parameter are nearest to a client's own, see ``nearest_experts``."""
        return self._search(name).nearest(self.pooled(name), client_id, count, self.ahead)

    def farthest(self, name: str, client_id: int, count: int) -> list[int]:
        """The clients whose uploads of a parameter are farthest from a client's own, see ``farthest_experts``."""
        return self._search(name).farthest(self.pooled(name), client_id, count, self.ahead)

    def _search(self, name: str) -> PoolSearch:
        from fedmoe.server.search import PoolSearch

        return self._searches.setdefault(name, PoolSearch(self.scratch))

    def copy(self) -> ServerState:
        """A copy whose mappings can be changed. Tensors are shared, since none is written to in place."""
        pool: dict[str, MutableMapping[int, Tensor]] = {name: Journal(entries) for name, entries in self.pool.items()}
        known, extras = Journal(self.clients), dict(self.extras)
        return ServerState(dict(self.shared), pool, self.kept, known, extras, self.domains, scratch=self.scratch)


def _journal(entries: MutableMapping[int, Value]) -> Journal[int, Value]:
    return entries if isinstance(entries, Journal) else Journal(entries)
