"""The server: cohort sampling, the prompt pool, the weighted mean, and the assignment of experts.

Pure functions of tensors and seeds; ``ServerState`` is the only thing that lasts between rounds.
Shape letters: l context tokens, w token width, M prompts, K experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedmoe.seeds import numpy_generator


@dataclass
class ServerState:
    """What the server keeps: the global prompt [l, w], the pool of last uploaded prompts, and a method's extras."""

    prompt: Tensor
    pool: dict[int, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)


def sample_cohort(num_clients: int, participation: float, seed: int, round: int) -> tuple[int, ...]:
    """The cohort S_t: max(1, floor(r N)) clients drawn without replacement, in ascending order (Algorithm 1)."""
    size = max(1, int(participation * num_clients + 1e-9))  # 0.29 * 100 is 28.999...: still 29 clients
    drawn = numpy_generator(seed, "cohort", round).choice(num_clients, size=size, replace=False)
    return tuple(sorted(int(client) for client in drawn))


def weighted_mean(prompts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of prompts weighted by n_i (eq. 6 and 7), summed in float64 in the order given.

    Args:
        prompts: tensors of one shape.
        weights: one positive number for each.
    """
    total = torch.zeros_like(prompts[0], dtype=torch.float64)
    for prompt, weight in zip(prompts, weights, strict=True):
        total += weight * prompt.double()
    return (total / sum(weights)).to(prompts[0].dtype)


Seeds = tuple[int | str, ...]  # the place of a draw: run seed, round, client


class Assignment(Protocol):
    """Chooses the experts of a client: (pool, client, K, seed) -> ids of at most K other clients."""

    def __call__(self, pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds) -> list[int]: ...


def nearest_experts(pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds = ()) -> list[int]:
    """The K prompts nearest in l2 to the client's own pool entry, itself excluded; nearest first, ties by client id.

    Fewer where the pool has fewer (Algorithm 1, step 3). Distances are sums of squared differences in float64.
    """
    others = sorted(other for other in pool if other != client_id)
    if not others or count == 0:
        return []
    own = pool[client_id].double()
    distances = torch.stack([(pool[other].double() - own).square().sum() for other in others])
    order = torch.sort(distances, stable=True).indices[:count]
    return [others[i] for i in order.tolist()]


def random_experts(pool: Mapping[int, Tensor], client_id: int, count: int, seed: Seeds = (0,)) -> list[int]:
    """K other clients of the pool, drawn uniformly without replacement (the released code's choice)."""
    others = sorted(other for other in pool if other != client_id)
    drawn = numpy_generator(0, "experts", *seed).choice(len(others), size=min(count, len(others)), replace=False)
    return [others[i] for i in drawn]
