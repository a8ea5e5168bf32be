"""Accuracy of every client on its own test split, and statistics over all clients.

Two different means are possible: over clients (each client counts once, as in the paper) and over test examples
(each image counts once). Everything here uses the first. To keep the two apart, counts are summed before anything is
divided, and a mean over clients is always taken over the clients themselves, never over domains or batches.

Shape letters: b images, C classes, N clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedmoe.errors import UserError


def summarize(accuracies: Sequence[float] | np.ndarray | Tensor) -> dict[str, float]:
    """Mean and spread over clients, in percent, of accuracies [N] in [0, 1]; nan stands for no test examples.

    ``mean``: each client with test examples counts once. ``std``: the population's standard deviation over these
    clients (divided by their number), since these are all clients and not a sample. ``min``, ``max``.
    ``worst_decile``: mean over the worst tenth of them, floor(n / 10) clients but at least one.

    Raises:
        UserError: no client has test examples.
        ValueError: a value is outside [0, 1], such as one already in percent.
    """
    values = np.sort(_percent(accuracies))
    values = values[~np.isnan(values)]
    if not values.size:
        raise UserError(
            "No client has test examples; valid is at least one client with a test split that is not empty."
        )
    worst = values[: max(1, values.size // 10)]
    return {
        "mean": _mean(values),
        "std": float(np.std(values, ddof=0)),
        "min": float(values[0]),
        "max": float(values[-1]),
        "worst_decile": _mean(worst),
    }


def standard_error(std: float, count: int, total: int) -> float:
    """Of the mean over ``count`` clients as an estimate of that over all ``total``, of which they are a simple random
    sample: s / sqrt(n) sqrt(1 - n / N) with the sample's own s^2 = n / (n - 1) std^2 (Cochran, Sampling Techniques,
    1977, theorem 2.2); 0 for a single client, which tells nothing of the spread.

    Args:
        std: the population's standard deviation of the ``count`` values, as in ``summarize``.
    """
    return std * math.sqrt((1 - count / total) / (count - 1)) if count > 1 else 0.0


def mean_per_domain(
    accuracies: Sequence[float] | np.ndarray | Tensor, domains: Sequence[str | None]
) -> dict[str, float]:
    """Mean accuracy in percent over the clients of each domain, in the order in which the domains first appear.

    The mean over these values is not the mean over clients, unless all domains have the same number of clients.

    Args:
        accuracies: [N] in [0, 1], nan for a client without test examples.
        domains: each client's domain; clients with None are left out. A domain without test examples is left out.
    """
    values = _percent(accuracies)
    if len(domains) != values.size:
        raise ValueError(f"{values.size} accuracies but {len(domains)} domains")
    members: dict[str, list[float]] = {}
    for value, domain in zip(values, domains, strict=True):
        if domain is not None and not np.isnan(value):
            members.setdefault(domain, []).append(value)
    return {domain: _mean(group) for domain, group in members.items()}


def quality(confusion: Tensor, calibration: Tensor) -> dict[str, float]:
    """What is said beside the mean over clients, over all test examples together, in percent.

    ``weighted``: each example counts once, so that clients with more of them weigh more. ``balanced``: mean over the
    classes that occur of the share of their examples that is found. ``ece``: expected calibration error, the mean over
    examples of the distance between confidence and accuracy in their bin (Guo et al., ICML 2017, arXiv 1706.04599).

    Args:
        confusion: [C, C], true classes in rows.
        calibration: [B, 3] of examples, sum of confidences and right ones, by bin.
    """
    found = [value for value in per_class(confusion.tolist()) if value is not None]
    total = float(confusion.sum())
    gaps = (calibration[:, 1] - calibration[:, 2]).abs()
    return {
        "weighted": 100 * float(confusion.trace()) / total,
        "balanced": _mean(found),
        "ece": 100 * float(gaps.sum()) / total,
    }


def per_class(confusion: Sequence[Sequence[int]]) -> list[float | None]:
    """The share in percent of each class's examples that is found, of a confusion [C, C]; None without examples."""
    return [100 * row[label] / sum(row) if sum(row) else None for label, row in enumerate(confusion)]


def _percent(accuracies: Sequence[float] | np.ndarray | Tensor) -> np.ndarray:
    values = np.asarray(accuracies.cpu() if isinstance(accuracies, Tensor) else accuracies, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"accuracies have shape {values.shape}; valid is [N]")
    if np.any((values < 0) | (values > 1)):
        raise ValueError("accuracies must be shares in [0, 1] or nan")
    return 100.0 * values


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return math.fsum(values) / len(values)  # correctly rounded, so the order of clients cannot matter
