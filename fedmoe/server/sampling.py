"""Who trains in a round."""

from __future__ import annotations

from fedmoe.seeds import numpy_generator


def share_of(count: int, share: float) -> int:
    """max(1, floor(share count)): how many of ``count`` clients a share of them is."""
    return max(1, int(share * count + 1e-9))  # 0.29 * 100 is 28.999...: still 29 clients


def sample_cohort(num_clients: int, participation: float, seed: int, round: int) -> tuple[int, ...]:
    """The cohort S_t: max(1, floor(r N)) clients drawn without replacement, in ascending order (Algorithm 1)."""
    size = share_of(num_clients, participation)
    drawn = numpy_generator(seed, "cohort", round).choice(num_clients, size=size, replace=False)
    return tuple(sorted(int(client) for client in drawn))
