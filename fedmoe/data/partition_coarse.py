"""A partition over coarse classes: clients differ first in coarse classes, then in the classes within these.

Cheap to import (no torch).

Shape letters: N clients, C classes, n examples of both splits together.
"""

from __future__ import annotations

import numpy as np

from fedmoe.seeds import numpy_generator

FINE_ALPHA = 10.0  # concentration within a coarse class


def coarse_split(
    train_labels: np.ndarray, test_labels: np.ndarray, coarse: np.ndarray, num_clients: int, alpha: float, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pachinko allocation (Li and McCallum, ICML 2006; Reddi et al., ICLR 2021, arXiv 2003.00295, appendix C.1).

    One client after the other draws Dir(alpha) over the coarse classes and Dir(10) over the classes within each, and
    then floor(n / N) examples, one by one, of training and test examples together: a coarse class, a class of it, and
    an example that nobody has. What is used up is left out from then on. So all clients have the same size, the share
    of test examples varies by chance, and the last clients take what is left. Up to N - 1 examples remain over.

    Args:
        train_labels, test_labels: of the splits.
        coarse: the coarse class of each class, [C].
        num_clients: N.
        alpha: concentration over the coarse classes.
        seed: of the draws.

    Returns:
        For each client ascending indices into the training and into the test split.
    """
    generator = numpy_generator(seed, "partition", "coarse")
    labels = np.concatenate([train_labels, test_labels])
    groups = np.unique(coarse, return_inverse=True)[1]  # [C], from 0
    waiting = [generator.permutation(np.flatnonzero(labels == label)).tolist() for label in range(len(coarse))]
    share, clients = len(labels) // num_clients, []
    for _ in range(num_clients):
        of_group = generator.dirichlet(np.full(groups.max() + 1, alpha))
        within = np.empty(len(groups))  # [C]
        for group in range(groups.max() + 1):
            members = groups == group
            within[members] = generator.dirichlet(np.full(np.count_nonzero(members), FINE_ALPHA))
        own: list[int] = []
        while len(own) < share:
            chances = _chances(of_group, within, groups, np.array([len(left) > 0 for left in waiting]))
            for label in generator.choice(len(groups), size=share - len(own), p=chances):
                own.append(waiting[label].pop())
                if not waiting[label]:
                    break  # the other classes' chances have changed
        taken = np.sort(np.array(own, dtype=np.int64))
        train = taken < len(train_labels)
        clients.append((taken[train], taken[~train] - len(train_labels)))
    return clients


def _chances(of_group: np.ndarray, within: np.ndarray, groups: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The chance of each class [C] to be drawn next, given which of them have examples ``left`` [C]."""
    within = np.where(left, within, 0.0)
    totals = np.bincount(groups, weights=within)  # of each group
    chances = of_group[groups] * within / np.where(totals > 0, totals, 1.0)[groups]
    if not chances.sum() > 0:  # all that is left had chances that are zero in floating point
        chances = left.astype(np.float64)
    return np.asarray(chances / chances.sum())
