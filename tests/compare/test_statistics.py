"""Paired statistics by hand and by other routes: differences, intervals, p-values, effects, and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedmoe.report.statistics import by_client, by_seed, holm, paired


def against_zero(differences: list[float]):
    return paired(differences, [0.0] * len(differences), seed=0)


def test_signs_by_hand() -> None:
    # Ranks 1 to 6, of which only 6 is negative: R+ = 15, R- = 6. Of the 64 ways to set six signs, 14 give a sum of
    # negative ranks of at most 6 (1 + 1 + 1 + 2 + 2 + 3 + 4 subsets of 1..6 with sums 0 to 6): p = 2 * 14 / 64.
    found = against_zero([1, 2, 3, 4, 5, -6])
    assert found.p == pytest.approx(28 / 64)
    assert found.rank_biserial == pytest.approx((15 - 6) / 21)
    assert found.difference == 1.5
    assert found.cohen_dz == pytest.approx(1.5 / math.sqrt((91 - 6 * 1.5**2) / 5))
    assert found.n == 6
    every = against_zero([1, 2, 3, 4, 5, 6])
    assert (every.p, every.rank_biserial) == (pytest.approx(2 / 64), 1.0)


def test_pairs_without_difference_are_left_out_of_the_ranks_only() -> None:
    # Ranks 1 to 7, of which 7 is negative: 19 subsets of 1..7 have a sum of at most 7.
    found = against_zero([0, 1, 2, 3, 0, 4, 5, 6, -7, *[0] * 11])
    assert found.p == pytest.approx(2 * 19 / 128)
    assert found.rank_biserial == pytest.approx((21 - 7) / 28)
    assert (found.n, found.difference) == (20, pytest.approx(0.7))


def test_what_is_only_rounding_is_no_difference() -> None:
    found = paired([0.1 + 0.2] * 8, [0.3] * 8, seed=0)
    assert (found.difference, found.p, found.cohen_dz, found.rank_biserial) == (0.0, 1.0, 0.0, 0.0)


def test_no_difference_at_all() -> None:
    found = against_zero([0.0] * 7)
    assert (found.p, found.interval, found.cohen_dz, found.rank_biserial) == (1.0, (0.0, 0.0), 0.0, 0.0)


def test_three_pairs_have_an_effect_but_no_test() -> None:
    found = against_zero([1.0, 2.0, 6.0])
    assert found.p is None  # 2 / 8 is the smallest there is
    assert (found.difference, found.rank_biserial) == (3.0, 1.0)
    assert found.cohen_dz == pytest.approx(3 / math.sqrt((4 + 1 + 9) / 2))
    assert found.interval == (1.0, 6.0)  # all three draws the smallest, or the largest: 1 in 27 each, above 2.5 %
    assert against_zero([1.0] * 5).p is None
    assert against_zero([1.0] * 6).p is not None


def test_one_pair_and_pairs_that_do_not_vary() -> None:
    one = against_zero([2.0])
    assert (one.n, one.difference, one.interval, one.cohen_dz, one.rank_biserial) == (1, 2.0, None, None, 1.0)
    same = against_zero([2.0, 2.0])
    assert (same.interval, same.cohen_dz) == ((2.0, 2.0), None)


def test_a_large_sample_agrees_with_other_routes_to_the_same() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(1.0, 4.0, 400), generator.normal(0.5, 4.0, 400)
    one, other, d = a.tolist(), b.tolist(), a - b
    found = paired(one, other, seed=0)
    half = 1.96 * d.std(ddof=1) / math.sqrt(400)
    assert found.interval == pytest.approx((d.mean() - half, d.mean() + half), abs=0.06 * half)
    assert found.p == pytest.approx(stats.wilcoxon(a, b, zero_method="wilcox").pvalue)
    assert found.cohen_dz == pytest.approx(stats.ttest_rel(a, b).statistic / math.sqrt(400))
    positive = sum((x + y > 0) for i, x in enumerate(d) for y in d[i:])  # Walsh averages: R+ by another definition
    assert found.rank_biserial == pytest.approx(2 * positive / (400 * 401 / 2) - 1)
    assert paired(one, other, seed=0) == found
    assert paired(one, other, seed=1).interval != found.interval


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=12))
def test_swapping_the_two_flips_every_sign(pairs: list[tuple[int, int]]) -> None:
    a, b = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    one, other = paired(a, b, seed=5), paired(b, a, seed=5)
    assert other.difference == pytest.approx(-one.difference)
    assert other.rank_biserial == pytest.approx(-one.rank_biserial)
    assert other.p == (one.p and pytest.approx(one.p))
    assert (other.cohen_dz is None) == (one.cohen_dz is None)
    assert other.cohen_dz is None or other.cohen_dz == pytest.approx(-(one.cohen_dz or 0.0))
    assert one.interval and other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert one.interval[0] <= one.difference + 1e-9 and one.difference <= one.interval[1] + 1e-9


def test_pairs_are_averaged_over_what_both_have() -> None:
    a = {(0, 0): 10.0, (0, 1): 20.0, (1, 0): 30.0, (1, 1): 60.0, (2, 0): 99.0}  # seed 2 only here
    b = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (0, 7): 99.0}  # and (1, 1) only in a
    assert by_seed(a, b) == ([15.0, 30.0], [2.0, 5.0])
    assert by_client(a, b) == ([20.0, 20.0], [3.0, 3.0])
    assert by_seed(a, {(5, 0): 1.0}) == ([], [])


def test_holm_by_hand() -> None:
    # 0.01 * 3; 0.03 * 2; 0.04 * 1, which must not be below the one before it; None is not in the family.
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
