"""The state after a round, as named tensors and plain numbers: the contents of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedmoe.protocol.parameters import Parameter, part_of
from fedmoe.protocol.records import ClientState, Tensors
from fedmoe.runs.checkpoint import Group, flat
from fedmoe.server.journal import Journal
from fedmoe.server.state import Known, ServerState

_MOST_CLIENTS = 1_000_000  # a damaged number of clients must not use up all memory


def fresh_server(declared: Iterable[Parameter], start: Tensors) -> ServerState:
    """The server before the first round.

    Args:
        declared: the method's parameters.
        start: the common initial values of the shared ones, by name.
    """
    parts = {part.name: part for part in declared}
    pool: dict[str, MutableMapping[int, Tensor]] = {name: {} for name in start if parts[part_of(name)].pool}
    return ServerState(dict(start), pool, frozenset(name for name in start if parts[part_of(name)].keep))


@dataclass
class FederationState:
    """The last finished round, the server, and each client's own state after the last round it trained in.

    Round 0 is the evaluation before training; -1 means that nothing is done yet.
    """

    round: int
    num_clients: int
    server: ServerState
    clients: dict[int, ClientState] = field(default_factory=dict)  # those that have trained
    only: Collection[int] | None = None  # the clients whose parts alone ``pieces`` and ``rest`` give; None: all

    def flatten(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and the rest as JSON."""
        return flat(self.pieces()), self.rest()

    def pieces(self) -> dict[str, Tensor | Group | None]:
        """All tensors by name, what changes together in one piece. With ``only``, None stands for what one of these
        clients does not have (any more)."""
        server = self.server
        pieces: dict[str, Tensor | Group | None] = {
            "shared": _Tensors(server.shared),
            "extras": _Tensors(server.extras),
        }
        for name, entries in server.pool.items():
            chosen = entries if self.only is None else self.only
            pieces |= {f"pool/{client}/{name}": entries.get(client) for client in chosen}
        chosen = self.clients if self.only is None else self.only
        return pieces | {f"client/{i}": self.clients.get(i) for i in chosen}

    def rest(self) -> dict[str, Any]:
        """What is no tensor, as JSON; with ``only`` as ``pieces``."""
        server = self.server
        chosen = server.clients if self.only is None else self.only
        return {
            "round": self.round,
            "num_clients": self.num_clients,
            "pooled": sorted(server.pool),
            "kept": sorted(server.kept),
            "clients": {str(i): _known(server.clients.get(i)) for i in chosen},
        }

    @classmethod
    def unflatten(cls, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> FederationState:
        """The inverse of ``flatten``.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: the contents are not a state.
        """
        _require_numbers(rest)
        server = ServerState({}, {name: {} for name in rest["pooled"]}, frozenset(rest["kept"]))
        server.clients = {
            int(i): Known(seen["rounds_seen"], tuple(seen["expert_ids"]), seen["version"], seen.get("gated") is True)
            for i, seen in rest["clients"].items()
        }
        own: dict[int, dict[str, dict[str, Tensor]]] = {i: {"parameters": {}, "experts": {}} for i in server.clients}
        for name, tensor in tensors.items():
            where, _, place = name.partition("/")
            _PLACES[where](server, own, place, tensor)
        clients = {i: ClientState(**own[i], rounds_seen=known.rounds_seen) for i, known in server.clients.items()}
        state = cls(rest["round"], rest["num_clients"], server, clients)
        _require_one_kind(state)
        return state


class Watch:
    """Tells which clients' part of a server's state has changed since it was asked last."""

    def __init__(self) -> None:
        self._seen: list[tuple[Journal[int, Any], int]] = []

    def changed(self, server: ServerState) -> set[int] | None:
        """The clients, or None where that is not known: the first time, and of another server."""
        before, journals = self._seen, [server.clients, *server.pool.values()]
        self._seen = [(journal, journal.mark) for journal in journals if isinstance(journal, Journal)]
        if len(self._seen) < len(journals) or [id(seen) for seen, _ in before] != [id(now) for now in journals]:
            return None
        return set().union(*(journal.since(mark) for journal, mark in before))


@dataclass(frozen=True)
class _Tensors:
    """Tensors by name, in one piece."""

    named: Mapping[str, Tensor]

    def tensors(self) -> Mapping[str, Tensor]:
        return self.named


def _known(client: Known | None) -> dict[str, Any] | None:
    if client is None:
        return None
    return {
        "rounds_seen": client.rounds_seen,
        "expert_ids": list(client.expert_ids),
        "version": client.version,
        "gated": client.gated,
    }


def _to_pool(server: ServerState, own: Any, place: str, tensor: Tensor) -> None:
    client, _, name = place.partition("/")
    server.pool[name][int(client)] = tensor


def _to_client(server: ServerState, own: Any, place: str, tensor: Tensor) -> None:
    client, kind, name = place.split("/", 2)
    own[int(client)][kind][name] = tensor


_PLACES: Mapping[str, Any] = {
    "shared": lambda server, own, place, tensor: server.shared.update({place: tensor}),
    "extras": lambda server, own, place, tensor: server.extras.update({place: tensor}),
    "pool": _to_pool,
    "client": _to_client,
}


def _require_numbers(rest: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless there are clients, and what is known about them is possible."""
    count = rest["num_clients"]
    if type(count) is not int or not 0 < count <= _MOST_CLIENTS:
        raise ValueError(f"it has {count!r} clients")
    if type(rest["round"]) is not int:
        raise ValueError(f"it is of round {rest['round']!r}")
    for client, seen in rest["clients"].items():
        if not client.isdecimal() or int(client) >= count:
            raise ValueError(f"it names client {client!r} of {count}")
        if type(seen["rounds_seen"]) is not int or seen["rounds_seen"] < 1:
            raise ValueError(f"client {client} took part in {seen['rounds_seen']!r} rounds")
        if type(seen["version"]) is not int or not 1 <= seen["version"] <= rest["round"]:
            raise ValueError(f"client {client} last took part in round {seen['version']!r}")
        if not all(type(expert) is int and 0 <= expert < count for expert in seen["expert_ids"]):
            raise ValueError(f"client {client} has the experts {seen['expert_ids']!r}")


def _require_one_kind(state: FederationState) -> None:
    """Raise ``ValueError`` unless all values of a parameter have the same shape and dtype, and are finite."""
    server = state.server
    kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
    values = [("the server", name, tensor) for name, tensor in server.shared.items()]
    for name, entries in server.pool.items():
        values += [(f"the pool's client {i}", name, tensor) for i, tensor in entries.items()]
        if any(not 0 <= i < state.num_clients for i in entries):
            raise ValueError(f"the pool has the clients {sorted(entries)} of {state.num_clients}")
    for i, client in state.clients.items():
        values += [(f"client {i}", name, tensor) for name, tensor in client.parameters.items()]
        values += [(f"an expert of client {i}", name, t) for name, ts in client.experts.items() for t in ts[:1]]
    for holder, name, tensor in values:
        kind = (tensor.shape, tensor.dtype)
        if kinds.setdefault(name, kind) != kind:
            raise ValueError(f"{name} of {holder} is of shape {list(tensor.shape)}, others {list(kinds[name][0])}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} of {holder} is not finite")
