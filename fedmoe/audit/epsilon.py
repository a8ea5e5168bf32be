"""Lower bounds on epsilon that an attack proves.

A bound above the epsilon that a mechanism claims, at the same delta, proves with the stated confidence that the claim
is wrong. A bound below it proves nothing: attacks are not the best possible.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from fedmoe.audit.rates import clopper_pearson


def one_run_p_value(coins: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability of so many correct guesses under any (epsilon, delta)-private mechanism (Steinke, Nasr,
    Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023, arXiv 2305.08846, appendix D).

    Args:
        coins: number m of examples, each of which a fair coin put in or out.
        guesses: number r of coins that were guessed, fixed beforehand.
        correct: number v of correct guesses.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    worst = 0.0
    if delta and correct:
        steps = np.arange(1, correct + 1)
        below = binom.sf(correct - 1 - steps, guesses, chance) - tail  # P[v - i <= Bin <= v - 1]
        worst = float((below / steps).max())
    return min(1.0, tail + 2 * coins * delta * worst)


def one_run_epsilon(coins: int, guesses: int, correct: int, delta: float, error: float = 0.05) -> float:
    """The largest epsilon that is refuted by the guesses with probability of error at most ``error``; 0: none is."""
    if not guesses or one_run_p_value(coins, guesses, correct, 0.0, delta) >= error:
        return 0.0
    high = 1.0
    while one_run_p_value(coins, guesses, correct, high, delta) < error:
        high *= 2
    return float(brentq(lambda e: one_run_p_value(coins, guesses, correct, e, delta) - error, 0.0, high, xtol=1e-6))


def rates_epsilon(hits: int, inside: int, alarms: int, outside: int, delta: float, error: float = 0.05) -> float:
    """The bound from one threshold's true and false positive counts, with Clopper-Pearson intervals that hold together
    with probability 1 - ``error``. The threshold must come from other data, and the examples be independent: those of
    one run are not."""
    level = 1 - error
    true, false = clopper_pearson(hits, inside, level)[0], clopper_pearson(alarms, outside, level)[1]
    bounds = [0.0]
    if true > delta:
        bounds.append(math.log((true - delta) / false))
    if 1 - false > delta and true < 1:
        bounds.append(math.log((1 - false - delta) / (1 - true)))
    return max(bounds)
