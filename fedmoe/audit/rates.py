"""How well scores tell members from non-members: ROC, AUC, true positive rates, with intervals.

Shape letters: n scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, rankdata, t

Interval = tuple[float, float]
LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """A share of members that are found at a share of false alarms, with its interval."""

    value: float
    interval: Interval


def clopper_pearson(hits: int, count: int, level: float = LEVEL) -> Interval:
    """The exact two-sided interval of a probability."""
    found = binomtest(hits, count).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """The probability that a member's score is above a non-member's, ties counted half; NaN without one of them."""
    inside, count = int(members.sum()), len(members)
    if not 0 < inside < count:
        return float("nan")
    ranks = rankdata(scores)[members].sum()
    return float((ranks - inside * (inside + 1) / 2) / (inside * (count - inside)))


def auc_interval(scores: np.ndarray, members: np.ndarray, clusters: np.ndarray) -> Interval:
    """The interval of the AUC where scores of one cluster, such as an owner's, are not independent: DeLong's variance,
    summed over clusters (Obuchowski, Biometrics 1997, 53(2), 567-578), with Student's t for their number; with a
    cluster for each score, the variance is DeLong's own (Biometrics 1988, 44(3), 837-845). 0 to 1 with too few."""
    inside, outside = int(members.sum()), int((~members).sum())
    names, place = np.unique(clusters, return_inverse=True)
    if not inside or not outside or len(names) < 2:
        return 0.0, 1.0
    area = auc(scores, members)
    ranks, within = rankdata(scores), np.empty(len(scores))
    for side in (members, ~members):
        within[side] = rankdata(scores[side])
    others = np.where(members, outside, inside)
    share = (ranks - within) / others  # of the other side that the score is above, ties counted half
    excess = np.where(members, share - area, (1 - share) - area)
    sums = [np.bincount(place, weights=np.where(side, excess, 0.0)) for side in (members, ~members)]
    counts = [len(np.unique(place[side])) for side in (members, ~members)]

    def spread(one: np.ndarray, other: np.ndarray, number: int) -> float:
        return number / (number - 1) * float((one * other).sum()) if number > 1 else 0.0

    variance = spread(sums[0], sums[0], counts[0]) / inside**2 + spread(sums[1], sums[1], counts[1]) / outside**2
    variance += 2 * spread(sums[0], sums[1], len(names)) / (inside * outside)
    half = float(t.ppf((1 + LEVEL) / 2, len(names) - 1)) * max(0.0, variance) ** 0.5
    return max(0.0, area - half), min(1.0, area + half)


def true_positive_rate(scores: np.ndarray, members: np.ndarray, false_positive_rate: float) -> Rate | None:
    """The share of members above the smallest threshold that at most this share of non-members is above, and its exact
    interval for that threshold. None with fewer non-members than one false alarm stands for."""
    outside = np.sort(scores[~members])[::-1]
    allowed = int(false_positive_rate * len(outside) + 1e-9)
    if allowed < 1 or not members.any():
        return None
    hits = int((scores[members] > outside[allowed]).sum()) if allowed < len(outside) else int(members.sum())
    return Rate(hits / int(members.sum()), clopper_pearson(hits, int(members.sum())))


def roc(scores: np.ndarray, members: np.ndarray, points: int = 200) -> Sequence[tuple[float, float]]:
    """The curve as (false, true) positive rates, at most so many points, dense at low rates."""
    order = np.argsort(-scores, kind="stable")
    ranked, inside = scores[order], members[order]
    ends = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # the last of equal scores
    true = np.cumsum(inside)[ends] / max(1, int(members.sum()))
    false = np.cumsum(~inside)[ends] / max(1, int((~members).sum()))
    if len(ends) > points:
        grid = np.unique(np.searchsorted(false, np.geomspace(max(false[false > 0].min(), 1e-9), 1, points)))
        kept = np.unique(np.append(grid.clip(max=len(ends) - 1), len(ends) - 1))
        false, true = false[kept], true[kept]
    return [(0.0, 0.0), *zip(false.tolist(), true.tolist(), strict=True)]
