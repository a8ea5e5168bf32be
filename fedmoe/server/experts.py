"""Which other clients' prompts a client receives as experts.

Shape letters: l context tokens, w token width, K experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from fedmoe.seeds import derive, numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

Seeds = tuple[int | str, ...]  # the place of a draw: run seed, round, client


class Assignment(Protocol):
    """Chooses the experts of a client: (pool, client, K, seed) -> ids of at most K other clients."""

    def __call__(self, pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds) -> list[int]: ...


def nearest_experts(pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds = ()) -> list[int]:
    """The K prompts nearest in l2 to the client's own pool entry, without itself; nearest first, ties by client id.

    Fewer if the pool has fewer (Algorithm 1, step 3). Distances are sums of squared differences in float64.
    """
    import torch

    others = sorted(other for other in pool if other != client_id)
    if not others or count == 0:
        return []
    own = pool[client_id].double()
    distances = torch.stack([(pool[other].double() - own).square().sum() for other in others])
    order = torch.sort(distances, stable=True).indices[:count]
    return [others[i] for i in order.tolist()]


def random_experts(pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds = (0,)) -> list[int]:
    """K other clients of the pool, drawn uniformly without replacement, anew for each place."""
    others = sorted(other for other in pool if other != client_id)
    drawn = numpy_generator(0, "experts", *seed).choice(len(others), size=min(count, len(others)), replace=False)
    return [others[i] for i in drawn]


def shuffled_experts(pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds = (0,)) -> list[int]:
    """The first K other clients of the pool in one shuffle of all clients, which the run's seed alone decides: nearly
    all clients get the same experts in every round (the released code's choice)."""
    run_seed = int(seed[0])
    others = (other for other in pool if other != client_id)
    return sorted(others, key=lambda other: derive(run_seed, "experts", "shuffle", other))[:count]
