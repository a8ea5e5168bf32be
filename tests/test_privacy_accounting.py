"""Noise, epsilon and sensitivity against Opacus, numerical integration and torch's own SGD."""

from __future__ import annotations

import math
import sys

import mpmath
import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis import gdp, rdp
from scipy.integrate import quad
from scipy.stats import norm

from fedmoe.privacy.accounting import (
    gaussian_delta,
    noise_multiplier,
    opacus_epsilon,
    sgd_sensitivity,
    total_epsilon,
)

BUDGETS = [(0.1, 0.05), (1.0, 1e-5), (8.0, 1e-5), (25.0, 0.05), (50.0, 0.05)]


@pytest.mark.parametrize(("epsilon", "delta"), BUDGETS)
def test_noise_meets_the_budget_exactly(epsilon: float, delta: float) -> None:
    mu = 1 / noise_multiplier(epsilon, delta)
    assert gdp.delta_eps_mu(eps=epsilon, mu=mu) == pytest.approx(delta, rel=1e-6)
    # From the definition: delta is the largest of P(S) - exp(epsilon) Q(S), P = N(mu, 1), Q = N(0, 1), which is reached
    # where the density of P is exp(epsilon) times that of Q, from x = epsilon / mu + mu / 2 on.
    edge = epsilon / mu + mu / 2
    found, _ = quad(lambda x: norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x), edge, edge + 40, epsabs=1e-14)
    assert found == pytest.approx(delta, rel=1e-6)


def precise_delta(epsilon: mpmath.mpf, mu: mpmath.mpf) -> mpmath.mpf:
    """Balle and Wang's theorem 8 as it is printed, in 60 digits."""
    with mpmath.workdps(60):
        epsilon, mu = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("epsilon", "delta"), [*BUDGETS, (1e-2, 1e-6), (1e-3, 1e-5), (1e-4, 1e-8)])
def test_noise_is_precise_where_it_is_large(epsilon: float, delta: float) -> None:
    mu = 1 / noise_multiplier(epsilon, delta)
    with mpmath.workdps(60):
        expected = mpmath.findroot(lambda mu: precise_delta(epsilon, mu) - delta, mu)
        assert abs(mu / expected - 1) < 2e-11


@pytest.mark.parametrize(("epsilon", "delta"), [(1e-6, 1e-9), (1e-5, 1e-9)])
def test_noise_of_a_million_times_the_sensitivity_has_eight_digits(epsilon: float, delta: float) -> None:
    mu = 1 / noise_multiplier(epsilon, delta)  # the delta itself is known to some nine digits here
    with mpmath.workdps(60):
        expected = mpmath.findroot(lambda mu: precise_delta(epsilon, mu) - delta, mu)
        assert abs(mu / expected - 1) < 1e-8


@pytest.mark.parametrize(
    ("multiplier", "delta"), [(1.0, 1e-5), (300.0, 1e-4), (1e3, 1e-6), (1e4, 1e-6), (1e4, 1e-5), (1e5, 1e-6)]
)
def test_a_total_is_precise_where_it_is_small(multiplier: float, delta: float) -> None:
    epsilon = total_epsilon(multiplier, 1, delta)
    with mpmath.workdps(60):
        expected = mpmath.findroot(lambda epsilon: precise_delta(epsilon, 1 / multiplier) - delta, epsilon)
        assert abs(epsilon / expected - 1) < 5e-11


def test_a_delta_is_never_negative() -> None:
    """Here rounding makes exp(epsilon) Phi(...) the larger of the two terms."""
    assert gaussian_delta(4.86881270476528e-11, 1.453056644298377e-12) >= 0


def test_the_classical_rule_asks_for_more_noise_up_to_epsilon_1() -> None:
    for epsilon in (0.1, 0.5, 1.0):
        assert noise_multiplier(epsilon, 1e-5) < math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon


def test_no_budget_asks_for_no_noise() -> None:
    assert noise_multiplier(math.inf, 0.05) == 0
    assert total_epsilon(0.0, 3, 0.05) == math.inf
    assert total_epsilon(0.0, 0, 0.05) == total_epsilon(1.0, 0, 0.05) == 0
    assert opacus_epsilon(0.0, 3, 0.05) == math.inf
    assert opacus_epsilon(0.0, 0, 0.05) == opacus_epsilon(1.0, 0, 0.05) == 0


@pytest.mark.parametrize(("multiplier", "releases", "delta"), [(1.0, 1, 1e-5), (4.0, 50, 1e-5), (0.5, 10, 0.05)])
def test_composition_is_that_of_gaussian_differential_privacy(multiplier: float, releases: int, delta: float) -> None:
    expected = gdp.eps_from_mu(mu=math.sqrt(releases) / multiplier, delta=delta)
    assert total_epsilon(multiplier, releases, delta) == pytest.approx(expected, rel=1e-8)


def test_large_totals_do_not_overflow() -> None:
    # Phi(mu / 2 - epsilon / mu) = delta where the second term is negligible: epsilon = mu^2 / 2 - mu Phi^-1(delta).
    mu = math.sqrt(1000) / 0.1
    assert total_epsilon(0.1, 1000, 0.05) == pytest.approx(mu * mu / 2 - mu * norm.ppf(0.05), rel=1e-4)
    assert gaussian_delta(0.0, 1e-9) == pytest.approx(1e-9 / math.sqrt(2 * math.pi), rel=1e-6)  # 2 Phi(mu / 2) - 1
    assert total_epsilon(1e6, 1, 0.05) == 0  # delta alone covers it
    assert total_epsilon(2.0, 1, gaussian_delta(0.0, 0.5)) == 0  # just so


@pytest.mark.parametrize(("multiplier", "releases", "delta"), [(0.1166, 10, 0.05), (4.0, 50, 1e-5), (30.0, 50, 1e-5)])
def test_the_accountant_of_opacus_bounds_the_total_from_above(multiplier: float, releases: int, delta: float) -> None:
    found = opacus_epsilon(multiplier, releases, delta)
    orders = np.geomspace(1e-3, 1e3, 3001) + 1
    curve = rdp.compute_rdp(q=1.0, noise_multiplier=multiplier, steps=releases, orders=orders)
    best, _ = rdp.get_privacy_spent(orders=orders, rdp=curve, delta=delta)
    assert found == pytest.approx(float(best), rel=1e-3)
    exact = total_epsilon(multiplier, releases, delta)
    assert found is not None and exact < found < 1.3 * exact


@pytest.mark.parametrize(("multiplier", "releases"), [(0.1166, 10), (4.0, 50), (30.0, 50)])
def test_the_accountant_of_opacus_gets_a_hundred_orders_a_decade(multiplier: float, releases: int) -> None:
    accountant = RDPAccountant()
    for _ in range(releases):
        accountant.step(noise_multiplier=multiplier, sample_rate=1.0)
    expected = accountant.get_epsilon(1e-5, alphas=list(1 + np.logspace(-4, 4, 801)))
    assert opacus_epsilon(multiplier, releases, 1e-5) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Optimal order is the")
def test_the_orders_reach_from_a_ten_thousandth_to_ten_thousand() -> None:
    """Where the best order a lies beyond either end, the end is taken.

    A Gaussian's Renyi divergence of order a is a mu^2 / 2 (Mironov, 2017). From there Opacus comes to
    epsilon = a mu^2 / 2 + ln((a - 1) / a) - (ln delta + ln a) / (a - 1).
    """
    for multiplier, order in ((1e-6, 1 + 1e-4), (1e6, 1 + 1e4)):
        expected = (
            order / multiplier**2 / 2 + math.log((order - 1) / order) - (math.log(1e-5) + math.log(order)) / (order - 1)
        )
        assert opacus_epsilon(multiplier, 1, 1e-5) == pytest.approx(expected, rel=1e-9)


def test_the_accountant_of_opacus_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)  # as Python does for a failed import
    assert opacus_epsilon(1.0, 1, 0.05) is None


SCHEDULES = {
    "constant": [0.02] * 25,
    "cosine": [0.02 * 0.5 * (1 + math.cos(math.pi * step / 25)) for step in range(25)],
    "overshooting": [1.5] * 12,  # the a_s change their signs
}


def by_torch(gradients: list[float], rates: list[float], momentum: float, weight_decay: float) -> float:
    """torch's SGD in float64 from 0.3 on, with these gradients and learning rates."""
    parameter = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([parameter], lr=0.0, momentum=momentum, weight_decay=weight_decay)
    for gradient, rate in zip(gradients, rates, strict=True):
        sgd.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        sgd.step()
    return parameter.item()


@pytest.mark.parametrize("rates", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 5e-4), (0.9, 0.8)])
def test_sensitivity_is_reached_and_never_passed(rates: list[float], momentum: float, weight_decay: float) -> None:
    clip, steps = 0.2, len(rates)
    still = by_torch([0.0] * steps, rates, momentum, weight_decay)
    impulses = [[float(s == at) for s in range(steps)] for at in range(steps)]
    effects = [by_torch(impulse, rates, momentum, weight_decay) - still for impulse in impulses]
    bound = sgd_sensitivity(rates, momentum, weight_decay, clip)
    assert bound == pytest.approx(2 * clip * sum(map(abs, effects)), rel=1e-9)
    worst = [math.copysign(clip, effect) for effect in effects]
    runs = [by_torch([sign * g for g in worst], rates, momentum, weight_decay) for sign in (1, -1)]
    assert abs(runs[0] - runs[1]) == pytest.approx(bound, rel=1e-9)
    draws = np.random.default_rng(0).uniform(-clip, clip, (20, 2, steps))
    for one, other in draws:
        distance = abs(
            by_torch(list(one), rates, momentum, weight_decay) - by_torch(list(other), rates, momentum, weight_decay)
        )
        assert distance < bound


def test_sensitivity_of_two_steps_by_hand() -> None:
    # v1 = g1, p1 = p0 - 0.1 g1; v2 = 0.5 g1 + g2 + 0.2 p1, p2 = p1 - 0.3 v2:
    # g1: -0.1 - 0.3 (0.5 - 0.02) = -0.244; g2: -0.3.
    assert sgd_sensitivity([0.1, 0.3], 0.5, 0.2, 1.0) == pytest.approx(2 * 0.544)
    assert sgd_sensitivity([], 0.9, 0.0, 1.0) == 0
