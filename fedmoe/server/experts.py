"""What a client receives as experts: other clients' prompts, or, as controls, something in their place.

Shape letters: l context tokens, w token width, K experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.seeds import derive, numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.server.state import ServerState

Seeds = tuple[int | str, ...]  # the place of a draw: run seed, round, client


@dataclass(frozen=True)
class Experts:
    """What is sent to a client as its experts."""

    prompts: Tensor  # [n, l, w]; n < K where the client makes copies itself, or there are no more
    ids: tuple[int, ...] = ()  # the clients whose prompts the experts are, in order; none if they are nobody's


Assignment = Callable[["ServerState", int, int, Seeds], Experts]
"""(server, client with an entry in the pool, K, place of the draw) -> experts."""


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


def _from_pool(choose: Callable[[ServerState, int, int, Seeds], list[int]]) -> Assignment:
    """The prompts of the clients that ``choose`` names."""

    def assign(server: ServerState, client_id: int, count: int, seed: Seeds) -> Experts:
        pool = server.pooled("prompt")
        ids = choose(server, client_id, count, seed)
        return Experts(_stack([pool[i] for i in ids], pool[client_id]), tuple(ids))

    return assign


def same_domain(server: ServerState, client_id: int, count: int, seed: Seeds) -> Experts:
    """K clients of the pool that have the client's domain, drawn uniformly without replacement.

    An oracle: only a simulation knows the clients' domains.
    """
    mine, pool = server.domains.get(client_id), server.pooled("prompt")
    alike = {other: prompt for other, prompt in pool.items() if server.domains.get(other) == mine}
    ids = random_experts(alike, client_id, count, seed)
    return Experts(_stack([pool[i] for i in ids], pool[client_id]), tuple(ids))


def own_copies(server: ServerState, client_id: int, count: int, seed: Seeds) -> Experts:
    """The client's own prompt K times. The client has it, so nothing is sent."""
    return Experts(_stack([], server.pooled("prompt")[client_id]), (client_id,) * count)


def global_copies(server: ServerState, client_id: int, count: int, seed: Seeds) -> Experts:
    """The global prompt, sent once; the client makes K experts of it."""
    prompt = server.shared["prompt"]
    return Experts(_stack([prompt][:count], prompt))


def noise(server: ServerState, client_id: int, count: int, seed: Seeds) -> Experts:
    """Noise in place of each prompt P that nearest would have given: z |P| / |z|, where z is drawn from N(0, 1) in each
    of the l w coordinates and | | is the l2 norm of all of them, computed in float64."""
    import torch

    pool = server.pooled("prompt")
    draws, prompts = numpy_generator(0, "noise", *seed), []
    for nearest in server.nearest("prompt", client_id, count):
        prompt = pool[nearest].double()
        drawn = torch.from_numpy(draws.standard_normal(tuple(prompt.shape))).to(prompt)
        prompts.append((drawn * (prompt.norm() / drawn.norm())).to(pool[nearest].dtype))
    return Experts(_stack(prompts, pool[client_id]))


def _stack(prompts: list[Tensor], like: Tensor) -> Tensor:
    """[n, *like.shape], also for n = 0."""
    import torch

    return torch.stack(prompts) if prompts else like.new_empty(0, *like.shape)


ASSIGNMENTS: Mapping[str, Assignment] = {
    "nearest": _from_pool(lambda server, client_id, count, seed: server.nearest("prompt", client_id, count)),
    "random": _from_pool(lambda server, *place: random_experts(server.pooled("prompt"), *place)),
    "shuffled": _from_pool(lambda server, *place: shuffled_experts(server.pooled("prompt"), *place)),
    "farthest": _from_pool(lambda server, client_id, count, seed: server.farthest("prompt", client_id, count)),
    "same_domain": same_domain,
    "own": own_copies,
    "global": global_copies,
    "noise": noise,
}
