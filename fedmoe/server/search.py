"""Which prompts of a pool are nearest to one of them, exactly, without computing every distance in float64.

The order is defined by sums of squared differences in float64, ties by client id (``nearest_experts``). The
search keeps the pool's prompts as rows of one float32 matrix, takes |x|^2 + |y|^2 - 2 x y from one product with it, and
computes in float64 only those distances that the rounding of that product leaves in question.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 64  # entries up to which every distance is computed
_BLOCK = 64  # products for as many clients at a time, where they are asked for one after the other
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

    An entry counts as replaced if it is another object: tensors of a pool are never written to in place. Memory: 4
    bytes for each number of the pool, besides the pool itself.
    """

    def __init__(self) -> None:
        self._entries: list[Tensor] = []  # what the rows were made of
        self._clients: list[int] = []  # ascending; the client of each row
        self._places: dict[int, int] = {}  # client -> row
        self._block: dict[int, Tensor] = {}  # row -> its products with all rows, until an entry is replaced
        self._last = -1  # the row that was asked for last

    def nearest(self, pool: Mapping[int, Tensor], client_id: int, count: int) -> list[int]:
        """As ``nearest_experts``, with the same result."""
        found = self._candidates(pool, client_id, count, sign=1)
        return nearest_experts(pool if found is None else found, client_id, count)

    def farthest(self, pool: Mapping[int, Tensor], client_id: int, count: int) -> list[int]:
        """As ``farthest_experts``, with the same result."""
        found = self._candidates(pool, client_id, count, sign=-1)
        return farthest_experts(pool if found is None else found, client_id, count)

    def _candidates(
        self, pool: Mapping[int, Tensor], client_id: int, count: int, sign: int
    ) -> dict[int, Tensor] | None:
        """The client's own entry and all that may be among the ``count`` first; None: every entry has to be looked at.

        Distances are multiplied by ``sign``, so that the smallest are asked for.
        """
        import torch

        if not 0 < count < len(pool) - 1 or len(pool) <= _FEW:
            return None
        self._update(pool)
        place = self._places[client_id]
        squares = self._squares[place] + self._squares - 2 * self._products(place).double()  # [N]
        # Of a dot product of D terms in float32, in whatever order, the error is below D u / (1 - D u) |x| |y|. A row
        # differs from the entry less the centre by u of its norm at most, so a distance by u (|x| + |y|).
        width, norms = self._rows.shape[1], self._squares.sqrt()
        terms = width * _ROUNDING
        error = 2.02 * terms / (1 - terms) * norms[place] * norms + width * _UNDERFLOW
        error += _SLACK * (self._squares[place] + self._squares)
        moved = 1.01 * _ROUNDING * (norms[place] + norms) + _UNDERFLOW
        error += 2 * moved * ((squares.clamp(min=0) + error).sqrt() + moved)
        if terms > 0.5 or not bool(torch.isfinite(error).all()):
            return None
        lowest, highest = sign * squares - error, sign * squares + error
        highest[place] = lowest[place] = torch.inf  # not its own expert
        limit = highest.kthvalue(count).values
        chosen = (lowest <= limit).nonzero().flatten().tolist()
        return {client_id: pool[client_id]} | {self._clients[i]: pool[self._clients[i]] for i in chosen}

    def _products(self, place: int) -> Tensor:
        """Products [N] of a row with all rows."""
        if place not in self._block:
            # Whoever evaluates many clients goes through them in ascending order.
            ahead = _BLOCK if place == self._last + 1 else 1
            block = self._rows[place : place + ahead]
            self._block = dict(enumerate(block @ self._rows.T, start=place))
        self._last = place
        return self._block[place]

    def _update(self, pool: Mapping[int, Tensor]) -> None:
        """Bring the rows up to date with the pool."""
        entries = [*map(pool.get, self._clients)]
        if len(pool) != len(entries) or any(entry is None for entry in entries):
            self._build(pool)
            return
        if all(map(is_, self._entries, entries)):
            return
        changed = [place for place, entry in enumerate(entries) if self._entries[place] is not entry]
        self._written += len(changed)
        if self._written > len(self._clients):  # all have moved on: so has their middle, and rounding with it
            self._build(pool)
            return
        for place in changed:
            self._write(place, pool[self._clients[place]])
        self._block = {}

    def _build(self, pool: Mapping[int, Tensor]) -> None:
        import torch

        self._clients = sorted(pool)
        self._places = {client: place for place, client in enumerate(self._clients)}
        self._entries = [pool[client] for client in self._clients]
        width = self._entries[0].numel()
        # Rows are taken from their mean: prompts that started from a common one differ by less than they measure.
        self._centre = torch.zeros(width, dtype=torch.float64)
        for entry in self._entries:
            self._centre += entry.reshape(-1).double().cpu() / len(self._entries)
        self._rows = torch.empty(len(self._clients), width)
        self._squares = torch.empty(len(self._clients), dtype=torch.float64)
        for place, entry in enumerate(self._entries):
            self._write(place, entry)
        self._written, self._block = 0, {}

    def _write(self, place: int, entry: Tensor) -> None:
        row = (entry.reshape(-1).double().cpu() - self._centre).float()
        self._entries[place], self._rows[place] = entry, row
        self._squares[place] = row.double().square().sum()
