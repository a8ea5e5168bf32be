"""The clients' shares of each class under a Dirichlet distribution, and where they cut the examples.

Cheap to import (no torch).

Shape letters: N clients, C classes.
"""

from __future__ import annotations

import numpy as np

from fedmoe.seeds import numpy_generator

MAX_DRAWS = 1000  # of Dirichlet proportions, until every client has its minimum


class MinimumNotReached(Exception):
    """No draw of the Dirichlet shares gave every client its minimum; ``best`` is the largest minimum that was seen, of
    the examples of ``part``."""

    def __init__(self, best: int, part: str = "train") -> None:
        super().__init__(best)
        self.best, self.part = best, part


def dirichlet_shares(
    train: np.ndarray,
    test: np.ndarray,
    num_clients: int,
    alpha: float,
    least: tuple[int, int],
    cap: bool,
    seed: int,
) -> np.ndarray:
    """The clients' shares of each class, [C, N] with rows that sum to 1, for the counts of training and test examples
    [C], of which each client gets at least that many."""
    if num_clients * least[0] > train.sum():
        raise MinimumNotReached(0)
    generator = numpy_generator(seed, "partition", "dirichlet", "shares")
    best = [0, -1]  # the second one is of the draws that reach the first minimum
    for _ in range(MAX_DRAWS):
        shares = generator.dirichlet(np.full(num_clients, alpha), size=len(train))  # [C, N]
        shares = capped(shares, train) if cap else shares
        smallest = [int(_sizes(shares, counts).min()) for counts in (train, test)]
        if smallest[0] >= least[0]:
            if smallest[1] >= least[1]:
                return shares
            best[1] = max(best[1], smallest[1])
        best[0] = max(best[0], smallest[0])
    raise MinimumNotReached(best[0]) if best[1] < 0 else MinimumNotReached(best[1], "test")


def capped(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The shares [C, N] of classes of these sizes [C], dealt out one by one, if a client that has the average number of
    examples gets nothing more: the others have its share in proportion to theirs."""
    average = counts.sum() / shares.shape[1]
    sizes, rows = np.zeros(shares.shape[1]), []
    for row, count in zip(shares, counts, strict=True):
        below = sizes < average
        remaining = np.where(below, row, 0.0)
        if not remaining.sum() > 0:  # too small for floating point, or nobody is below, and nothing is left to deal
            remaining = below.astype(np.float64) if below.any() else row
        rows.append(remaining / remaining.sum())
        sizes += _sizes(rows[-1][None], np.array([count]))
    return np.stack(rows)


def _sizes(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many examples each client gets, [N], of shares [C, N] and class sizes [C]."""
    return np.asarray(np.diff(cut_points(shares, counts), axis=1).sum(axis=0))


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of examples of each class, [C]."""
    return np.bincount(labels, minlength=num_classes)


def cut_points(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Where the examples of each class are cut for shares [C, N] and class sizes [C]: [C, N + 1], from 0 to the size.

    Rounding the running sum, not each share, keeps every client within one example of its share and loses none.
    """
    inner = np.rint(np.cumsum(shares, axis=1)[:, :-1].clip(max=1.0) * counts[:, None]).astype(np.int64)
    return np.concatenate([np.zeros_like(counts)[:, None], inner, counts[:, None]], axis=1)
