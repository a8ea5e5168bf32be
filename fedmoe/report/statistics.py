"""Paired statistics of two groups of runs: test, interval and effect sizes.

A pair is (seed, client): both groups ran with that seed, so they scored the same client on the same test split. Pairs
of one seed share a partition and a training run, and are not independent of each other; one sample of all seeds and
clients would overstate the evidence. So the differences are averaged one way or the other first:

- over seeds (``by_seed``): one difference for each seed, the mean over its clients. Answers whether A would beat B
  again if the whole experiment were repeated with another seed.
- over clients (``by_client``): one difference for each client number, the mean over its seeds. Answers whether a
  typical client of these federations gains, or only a few do. Where the partition depends on the seed, a client number
  stands for another share of the data with each seed; the test then speaks of the population of clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

FEWEST = 6
"""Pairs below which there is no test: with five, the smallest two-sided p-value is 2 / 2^5 = 0.0625."""
RESAMPLES = 9999
_DECIMALS = 9  # differences equal to this many decimals are ties, and 0 is no difference: the rest is rounding

Scores = Mapping[tuple[int, int], float]  # (seed, client) -> accuracy in percent


@dataclass(frozen=True)
class Paired:
    """What n pairs say about A − B."""

    n: int
    difference: float  # mean of a - b
    p: float | None  # two-sided Wilcoxon signed-rank; None with fewer than ``FEWEST`` pairs, 1 without any difference
    interval: tuple[float, float] | None  # 95 %, of the mean difference; None with fewer than two pairs
    cohen_dz: float | None  # mean / sample standard deviation of the differences; None where they do not vary
    rank_biserial: float  # (R+ - R-) / (R+ + R-), in [-1, 1]; 0 without any difference


def paired(a: Sequence[float], b: Sequence[float], seed: int) -> Paired:
    """Compare two samples, pair by pair.

    The test is ``scipy.stats.wilcoxon``, two-sided. Zeros are treated as by its zero_method="wilcox": pairs without
    difference are left out before ranking (scipy could not compute an exact p-value with them).
    The interval is a percentile bootstrap over pairs; with a handful of pairs it is too narrow, as every bootstrap is.

    Args:
        a: [n], at least one value.
        b: [n], in the order of ``a``.
        seed: of the bootstrap's resampling.
    """
    differences = np.round(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), _DECIMALS)
    n, mean = len(differences), float(differences.mean())
    interval = None
    if n > 1:
        generator = np.random.default_rng(seed)
        # In batches: resamples x pairs numbers need not be in memory at once.
        found = stats.bootstrap(
            *((differences,), np.mean), n_resamples=RESAMPLES, batch=500, method="percentile", random_state=generator
        )
        interval = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return Paired(n, mean, _wilcoxon(differences), interval, _cohen_dz(differences), _rank_biserial(differences))


def by_seed(a: Scores, b: Scores) -> tuple[list[float], list[float]]:
    """For each seed that both have, in ascending order, the mean of each over the clients that both scored."""
    return _means(a, b, 0)


def by_client(a: Scores, b: Scores) -> tuple[list[float], list[float]]:
    """For each client that both scored, in ascending order, the mean of each over the seeds that both have."""
    return _means(a, b, 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: p-values that hold for the whole family at once; None is no member of it."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = highest
    return adjusted


def _means(a: Scores, b: Scores, unit: Literal[0, 1]) -> tuple[list[float], list[float]]:
    pairs = a.keys() & b.keys()
    units = sorted({pair[unit] for pair in pairs})
    members = [sorted(pair for pair in pairs if pair[unit] == name) for name in units]
    mean_a, mean_b = ([float(np.mean([scores[pair] for pair in own])) for own in members] for scores in (a, b))
    return mean_a, mean_b


def _wilcoxon(differences: np.ndarray) -> float | None:
    if len(differences) < FEWEST:
        return None
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences[differences != 0]).pvalue)  # exact up to 50 without ties


def _cohen_dz(differences: np.ndarray) -> float | None:
    if not differences.any():
        return 0.0
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    return float(differences.mean() / spread) if spread > 10.0**-_DECIMALS else None


def _rank_biserial(differences: np.ndarray) -> float:
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    return float((ranks * np.sign(nonzero)).sum() / ranks.sum())
