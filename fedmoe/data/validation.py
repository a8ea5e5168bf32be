"""A validation split: training examples of a client that are held out to choose settings by, never the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedmoe.data.partition import ClientIndices
from fedmoe.seeds import numpy_generator


def held_out(labels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Which of n examples are held out: round(share * n) of them, but never all, spread over the classes as they are.

    Each class gives its share rounded down; what is left over is taken one by one from the classes with the largest
    remainder, the lower class first where remainders are equal. Within a class, chance decides.

    Args:
        labels: [n].
        share: in [0, 1).
        generator: of the draws.

    Returns:
        [n], bool.
    """
    count = min(round(share * len(labels)), len(labels) - 1)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = share * sizes
    each = np.floor(exact).astype(int)
    order = np.lexsort((classes, -(exact - each)))  # by remainder, then by class
    left = count - each.sum()
    each[order[: max(left, 0)]] += 1
    for position in order[::-1][: max(-left, 0)]:  # a client of one example gives none
        each[position] -= 1
    mask = np.zeros(len(labels), dtype=bool)
    for label, number in zip(classes, each, strict=True):
        mask[generator.permutation(np.flatnonzero(labels == label))[:number]] = True
    return mask


def split_clients(
    clients: Sequence[ClientIndices], labels: np.ndarray, share: float, seed: int
) -> tuple[list[ClientIndices], list[np.ndarray]]:
    """Each client without the examples that are held out, and those: ascending indices into the training split.

    Args:
        labels: of the whole training split.
        share: of each client's training examples, in [0, 1).
        seed: the run's seed; a client's draw derives from (seed, client).
    """
    remaining, held = [], []
    for client_id, client in enumerate(clients):
        mask = held_out(labels[client.train], share, numpy_generator(seed, "validation", client_id))
        remaining.append(replace(client, train=client.train[~mask]))
        held.append(client.train[mask])
    return remaining, held
