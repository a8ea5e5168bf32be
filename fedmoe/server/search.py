"""Which prompts of a pool are nearest to one of them, exactly, without computing every distance in float64.

The order is defined by sums of squared differences in float64, ties by client id (``nearest_experts``). The
search keeps the pool's prompts as rows of one float32 matrix, takes |x|^2 + |y|^2 - 2 x y from one product with it, and
computes in float64 only those distances that the rounding of that product leaves in question.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.server.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 64  # entries up to which every distance is computed
_BLOCK = 64  # clients at a time whose products are taken, where it is known who is asked about next
_ROUNDING = 2.0**-24  # half the distance from 1 to the next float32
_UNDERFLOW = 1e-37  # absolute; above what a float32 that is too small for its full precision loses
_SLACK = 1e-9  # relative; far above the rounding of float64 in sums of a million terms


def nearest_experts(pool: Mapping[int, Tensor], client_id: int, count: int) -> list[int]:
    """The K prompts nearest in l2 to the client's own pool entry, without itself; nearest first, ties by client id.

    Fewer if the pool has fewer (Algorithm 1, step 3). Distances are sums of squared differences in float64.
    """
    return _by_distance(pool, client_id)[:count]


def farthest_experts(pool: Mapping[int, Tensor], client_id: int, count: int) -> list[int]:
    """The K prompts farthest in l2 from the client's own pool entry; farthest first, ties by client id."""
    return _by_distance(pool, client_id, descending=True)[:count]


def _by_distance(pool: Mapping[int, Tensor], client_id: int, descending: bool = False) -> list[int]:
    """All other clients, ordered by the distance of their prompts from the client's; ties by client id."""
    import torch

    others = sorted(other for other in pool if other != client_id)
    if not others:
        return []
    own = pool[client_id].double()
    distances = torch.stack([(pool[other].double() - own).square().sum() for other in others])
    order = torch.sort(distances, stable=True, descending=descending).indices
    return [others[i] for i in order.tolist()]


class PoolSearch:
    """Searches one pool again and again while some of its entries are replaced.

    An entry counts as replaced if it is another object: tensors of a pool are never written to in place. Of a
    ``Journal`` only what has changed is looked at. Memory: 4 bytes for each number of the pool, and half as much again
    while it grows, besides the pool itself.

    Args:
        scratch: a folder for an unnamed file that holds the rows, mapped into memory, so that the system can take that
            memory back; it ends with the process. None: they are in memory.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self._room = self._written = self._made = 0  # rows: there is space for, written since, and made by ``_build``
        self._entries: list[Tensor] = []  # what the rows were made of
        self._clients: list[int] = []  # the client of each row
        self._places: dict[int, int] = {}  # client -> row
        self._block: dict[int, Tensor] = {}  # row -> its products with all rows, until an entry is replaced
        self._pool: Mapping[int, Tensor] | None = None  # what the rows were made of, up to a mark in its journal
        self._mark = 0

    def nearest(self, pool: Mapping[int, Tensor], client_id: int, count: int, ahead: Sequence[int] = ()) -> list[int]:
        """As ``nearest_experts``, with the same result. ``ahead`` are the clients that will be asked about, in this
        order, before an entry is replaced."""
        found = self._candidates(pool, client_id, count, ahead, sign=1)
        return nearest_experts(pool if found is None else found, client_id, count)

    def farthest(self, pool: Mapping[int, Tensor], client_id: int, count: int, ahead: Sequence[int] = ()) -> list[int]:
        """As ``farthest_experts``, with the same result; ``ahead`` as in ``nearest``."""
        found = self._candidates(pool, client_id, count, ahead, sign=-1)
        return farthest_experts(pool if found is None else found, client_id, count)

    def _candidates(
        self, pool: Mapping[int, Tensor], client_id: int, count: int, ahead: Sequence[int], sign: int
    ) -> dict[int, Tensor] | None:
        """The client's own entry and all that may be among the ``count`` first; None: every entry has to be looked at.

        Distances are multiplied by ``sign``, so that the smallest are asked for.
        """
        import torch

        if not 0 < count < len(pool) - 1 or len(pool) <= _FEW:
            return None
        self._update(pool)
        place = self._places[client_id]
        own, others, norms = self._squares[place], self._squares[: len(pool)], self._norms[: len(pool)]
        squares = own + others - 2 * self._products(place, ahead).double()  # [N]
        # Of a dot product of D terms in float32, in whatever order, the error is below D u / (1 - D u) |x| |y|. A row
        # differs from the entry less the centre by u of its norm at most, so a distance by u (|x| + |y|).
        width = self._rows.shape[1]
        terms = width * _ROUNDING
        error = 2.02 * terms / (1 - terms) * norms[place] * norms + width * _UNDERFLOW
        error += _SLACK * (own + others)
        moved = 1.01 * _ROUNDING * (norms[place] + norms) + _UNDERFLOW
        error += 2 * moved * ((squares.clamp(min=0) + error).sqrt() + moved)
        if terms > 0.5 or not bool(torch.isfinite(error).all()):
            return None
        lowest, highest = sign * squares - error, sign * squares + error
        highest[place] = lowest[place] = torch.inf  # not its own expert
        limit = highest.kthvalue(count).values
        chosen = (lowest <= limit).nonzero().flatten().tolist()
        return {client_id: pool[client_id]} | {self._clients[i]: pool[self._clients[i]] for i in chosen}

    def _products(self, place: int, ahead: Sequence[int]) -> Tensor:
        """Products [N] of a row with all rows."""
        from fedmoe.models.packed import thin_product

        if place not in self._block:
            client = self._clients[place]
            first = ahead.index(client) if client in ahead else len(ahead)
            asked = [client, *ahead[first + 1 : first + _BLOCK]]
            places = [self._places[other] for other in asked if other in self._places]
            products = thin_product(self._rows[places], self._rows[: len(self._clients)])
            self._block = dict(zip(places, products, strict=True))
        return self._block[place]

    def _update(self, pool: Mapping[int, Tensor]) -> None:
        """Bring the rows up to date with the pool."""
        asked: Collection[int]
        if isinstance(pool, Journal) and pool is self._pool:
            asked, self._mark = pool.since(self._mark), pool.mark
            gone = any(i in self._places and i not in pool for i in asked)
        else:
            asked, gone = pool.keys(), not self._places.keys() <= pool.keys()
            self._pool, self._mark = pool, pool.mark if isinstance(pool, Journal) else 0
        changed = [i for i in asked if i in pool and not self._holds(i, pool[i])]
        self._written += len(changed)
        # If all have moved on, so has their middle, and rounding with it.
        if gone or len(pool) > self._room or self._written > self._made:
            self._build(pool)
            return
        for client in changed:
            if client not in self._places:
                self._places[client] = len(self._clients)
                self._clients.append(client)
                self._entries.append(pool[client])
            self._write(self._places[client], pool[client])
        if changed:
            self._block = {}

    def _holds(self, client: int, entry: Tensor) -> bool:
        return client in self._places and self._entries[self._places[client]] is entry

    def _build(self, pool: Mapping[int, Tensor]) -> None:
        import torch

        self._clients, self._entries = list(pool), list(pool.values())
        self._places = {client: place for place, client in enumerate(self._clients)}
        width = self._entries[0].numel()
        # Rows are taken from their mean: prompts that started from a common one differ by less than they measure.
        self._centre = torch.zeros(width, dtype=torch.float64)
        for entry in self._entries:
            self._centre += entry.reshape(-1).double().cpu() / len(self._entries)
        if len(pool) > self._room:
            room = len(pool) + len(pool) // 2
            self._rows, self._room = self._matrix(room, width), room
            self._squares = torch.empty(room, dtype=torch.float64)
            self._norms = torch.empty_like(self._squares)
        for place, entry in enumerate(self._entries):
            self._write(place, entry)
        self._made, self._written, self._block = len(pool), 0, {}

    def _matrix(self, rows: int, width: int) -> Tensor:
        """A float32 matrix for the rows.

        Raises:
            OSError: there is no room for it on disk.
        """
        import numpy as np
        import torch

        if self._scratch is None:
            return torch.empty(rows, width)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            for _ in range(rows):  # written, since a disk that is full later on would end the process without a word
                file.write(bytes(4 * width))
            file.flush()
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, width)))

    def _write(self, place: int, entry: Tensor) -> None:
        row = (entry.reshape(-1).double().cpu() - self._centre).float()
        self._entries[place], self._rows[place] = entry, row
        self._squares[place] = row.double().square().sum()
        self._norms[place] = self._squares[place].sqrt()
