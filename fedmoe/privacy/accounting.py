"""Differential privacy in numbers: the Gaussian mechanism, its composition, and the sensitivity of local training.

A mechanism is (epsilon, delta)-differentially private if for all adjacent data sets D, D' and all sets S of outputs
P[M(D) in S] <= exp(epsilon) P[M(D') in S] + delta. The Gaussian mechanism adds N(0, sigma^2) to each coordinate of a
vector whose l2 distance between adjacent data sets, its sensitivity, is at most Delta. Only mu = Delta / sigma matters;
the noise multiplier z is 1 / mu.

The delta of a given epsilon is exact here, and so are the noise and the epsilon found from it, by the analytic
Gaussian mechanism (Balle and Wang, ICML 2018, arXiv 1805.06530, theorem 8). The classical rule
z = sqrt(2 ln(1.25 / delta)) / epsilon is proven for epsilon <= 1 only.

k Gaussian mechanisms with the noise multiplier z, each of which may depend on the outputs of the previous ones, are
together exactly as private as one with z / sqrt(k) (Dong, Roth and Su, JRSS B 2022, arXiv 1905.02383, corollary 3.3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

from scipy.optimize import brentq
from scipy.special import log_ndtr

_TOLERANCE = 1e-12  # relative tolerance of root finding


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The smallest delta for which a Gaussian mechanism is (epsilon, delta)-differentially private.

    Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu), in logarithms, so that no epsilon overflows.

    Args:
        epsilon: at least 0.
        mu: sensitivity over standard deviation, above 0.
    """
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - first
    return math.exp(first) * -math.expm1(min(ratio, 0.0))


def noise_multiplier(epsilon: float, delta: float) -> float:
    """The smallest standard deviation, in units of the sensitivity, that gives (epsilon, delta).

    Args:
        epsilon: above 0; infinity means no privacy and gives 0.
        delta: in (0, 1).
    """
    if math.isinf(epsilon):
        return 0.0
    return 1 / _root(lambda mu: gaussian_delta(epsilon, mu) - delta)


def total_epsilon(multiplier: float, releases: int, delta: float) -> float:
    """The smallest epsilon at ``delta`` of that many Gaussian mechanisms together.

    Args:
        multiplier: noise multiplier z of each; 0 means no noise.
        releases: their number k.
        delta: in (0, 1).
    """
    if releases == 0:
        return 0.0
    if multiplier == 0:
        return math.inf
    mu = math.sqrt(releases) / multiplier
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return _root(lambda epsilon: delta - gaussian_delta(epsilon, mu))


def _root(excess: Callable[[float], float]) -> float:
    """Where a function that rises with its argument, and begins below 0 at 0, passes 0."""
    low = high = 1.0
    while excess(low) > 0:
        low /= 2
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, low, high, xtol=_TOLERANCE * low, rtol=_TOLERANCE))


def opacus_epsilon(multiplier: float, releases: int, delta: float) -> float | None:
    """An upper bound on the same total by the Renyi accountant of Opacus; None if Opacus is not installed.

    Sampling rate 1: no amplification by subsampling is claimed.
    """
    if releases == 0:
        return 0.0
    if multiplier == 0:
        return math.inf
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.accountants import RDPAccountant
    except ImportError:
        return None
    accountant = RDPAccountant()
    accountant.history = [(multiplier, 1.0, releases)]
    orders = [1 + 10 ** (i / 100) for i in range(-400, 401)]  # its own begin at 1.1, too high for a large epsilon
    return float(accountant.get_epsilon(delta, alphas=orders))


def sgd_sensitivity(rates: Sequence[float], momentum: float, weight_decay: float, clip: float) -> float:
    """Largest l2 distance between the results of two SGD runs from the same start with gradients of norm <= ``clip``.

    torch's SGD: v_s = m v_{s-1} + g_s + lambda p_{s-1}, p_s = p_{s-1} - eta_s v_s. The result is linear in the start
    and in the gradients, p_S = A p_0 - sum_s a_s g_s, and two gradients differ by at most 2 clip, so the distance is
    at most 2 clip sum_s |a_s|. It reaches that value if all gradients are collinear and have opposite signs in the two
    runs. The a_s are computed backwards from the last step.

    Args:
        rates: the learning rate eta_s of each step.
        momentum: m, with buffers that start empty.
        weight_decay: lambda, coupled: it enters the gradient, after clipping.
        clip: l2 bound of a step's gradient.
    """
    by_prompt, by_buffer, total = 1.0, 0.0, 0.0  # derivatives of p_S by p_s and v_s
    for rate in reversed(rates):
        step = by_buffer - rate * by_prompt  # by v_s as step s forms it, and so by g_s: -a_s
        total += abs(step)
        by_prompt, by_buffer = by_prompt + weight_decay * step, momentum * step
    return 2 * clip * total
