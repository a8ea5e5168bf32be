"""Defences as functions of uploads: expected values are worked out by hand, or scipy's; bounds hold for any numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedmoe.config import FederationConfig, PrivacyConfig
from fedmoe.defences import (
    Aggregation,
    Groups,
    Krum,
    LowRank,
    Median,
    MinimumSize,
    Noise,
    NormClipping,
    OutlierTest,
    Quantized,
    Reputation,
    Serving,
    TrimmedMean,
)
from fedmoe.defences.base import Report
from fedmoe.defences.guard import Defences
from fedmoe.defences.krum import krum_scores
from fedmoe.defences.outliers import modified_z
from fedmoe.errors import UserError
from fedmoe.protocol.records import Update
from fedmoe.server.aggregation import weighted_means
from fedmoe.server.state import ServerState

START = {"prompt": torch.zeros(2)}


def upload(client: int, values: Sequence[float], examples: int = 1, **others: Sequence[float]) -> Update:
    parameters = {name: torch.tensor(v, dtype=torch.float32) for name, v in {"prompt": values, **others}.items()}
    return Update(client, parameters, examples)


def uploads(rows: Sequence[Sequence[float]], examples: Sequence[int] | None = None) -> list[Update]:
    return [upload(i, row, examples[i] if examples else 1) for i, row in enumerate(rows)]


def mean_of(defence: Aggregation, updates: Sequence[Update], start: dict[str, Tensor] = START) -> dict[str, Tensor]:
    """What a method that averages makes of the defended uploads."""
    found = defence.combine(start, updates)
    return weighted_means([update.parameters for update in found], [update.num_examples for update in found])


def test_median_by_hand() -> None:
    odd = uploads([[1, 9], [5, 7], [2, -100]], examples=[1000, 1, 1])
    assert mean_of(Median(), odd)["prompt"].tolist() == [2, 7]  # n_i do not matter
    even = uploads([[1, 0], [5, 1], [2, 2], [10, 30]])
    assert mean_of(Median(), even)["prompt"].tolist() == [3.5, 1.5]


def test_median_of_a_parameter_that_not_all_send() -> None:
    found = mean_of(Median(), [upload(0, [1, 1], gate=[4]), upload(1, [2, 2]), upload(2, [9, 9], gate=[8])])
    assert found["prompt"].tolist() == [2, 2]
    assert found["gate"].tolist() == [6]


@pytest.mark.parametrize(
    ("trim", "values", "expected"),
    [
        (0.2, [4, 1, 100, 3, 2], 3.0),  # ceil(0.2 * 5) = 1 at each end: (2 + 3 + 4) / 3
        (0.2, [1, 2, 3, 100], 2.5),  # ceil(0.8) = 1
        (0.4, [1, 2, 60], 2.0),  # ceil(1.2) = 2 would leave none: 1
        (0.0, [1, 2, 60], 21.0),
        (0.3, list(range(10)), 4.5),  # 0.3 * 10 is above 3 in floating point, and still 3: (3 + ... + 6) / 4
    ],
)
def test_trimmed_mean_by_hand(trim: float, values: list[float], expected: float) -> None:
    found = mean_of(TrimmedMean(trim=trim), uploads([[v, v] for v in values]))
    assert found["prompt"].tolist() == [expected, expected]


def test_krum_by_hand() -> None:
    points = [0.0, 1.0, 2.0, 3.0, 10.0]
    rows = torch.tensor([[point] for point in points], dtype=torch.float64)
    # n - f - 2 = 2 nearest others: 1 + 4, 1 + 1, 1 + 1, 1 + 4, 49 + 64.
    assert krum_scores(rows, 1).tolist() == [5, 2, 2, 5, 113]
    sent = uploads([[point, 0] for point in points], examples=[1, 1, 3, 1, 1])
    assert mean_of(Krum(attackers=1), sent)["prompt"].tolist() == [1, 0]  # of equal scores, the lower client id
    assert mean_of(Krum(attackers=1), sent[::-1])["prompt"].tolist() == [1, 0]
    assert mean_of(Krum(attackers=1, keep=2), sent)["prompt"].tolist() == [1.75, 0]  # (1 * 1 + 3 * 2) / 4


def test_krum_with_few_uploads() -> None:
    assert mean_of(Krum(attackers=1), uploads([[7, 7]]))["prompt"].tolist() == [7, 7]
    # Of three, n - f - 2 = 0: the single nearest other decides.
    assert mean_of(Krum(attackers=1), uploads([[0, 0], [9, 0], [10, 0]]))["prompt"].tolist() == [9, 0]


def test_norm_clipping_by_hand() -> None:
    start = {"prompt": torch.tensor([1.0, 1.0]), "gate": torch.tensor([1.0])}
    long, short = upload(0, [4, 1], gate=[5]), upload(1, [1, 1.5], gate=[1])  # norms 5 and 0.5
    found = NormClipping(bound=2.5).combine(start, [long, short])
    assert found[0].parameters["prompt"].tolist() == [2.5, 1]
    assert found[0].parameters["gate"].tolist() == [3]
    assert found[1] is short
    rows = [[3, 4], [1, 0], [0, 7]]  # norms 5, 1, 7: the median is 5
    clipped = NormClipping().combine(START, uploads(rows))
    assert [update.parameters["prompt"].tolist() for update in clipped] == [[3, 4], [1, 0], [0, 5]]
    torch.testing.assert_close(mean_of(NormClipping(), uploads(rows))["prompt"], torch.tensor([4 / 3, 3.0]))


def test_modified_z_by_hand_and_against_scipy() -> None:
    # Median 3, deviations -2, -1, 0, 1, 97, of which the median without sign is 1.
    found = modified_z(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0], dtype=torch.float64)).tolist()
    assert found == pytest.approx([-1.349, -0.6745, 0, 0.6745, 0.6745 * 97])
    values = np.random.default_rng(0).gamma(2.0, size=40)
    expected = 0.6745 * (values - np.median(values)) / stats.median_abs_deviation(values)
    np.testing.assert_allclose(modified_z(torch.from_numpy(values)).numpy(), expected, rtol=1e-12)
    assert modified_z(torch.tensor([2.0, 2.0, 2.0, 5.0, 1.0])).tolist() == [0, 0, 0, np.inf, -np.inf]


def server(pool: dict[int, list[float]]) -> ServerState:
    prompts = {client: torch.tensor(values, dtype=torch.float32) for client, values in pool.items()}
    return ServerState({"prompt": torch.zeros(2)}, {"prompt": prompts})


RING = {0: [3.0, 0.1], 1: [-3.2, 0.0], 2: [0.0, 2.9], 3: [0.0, -3.1], 4: [3.4, 0.0], 5: [-2.8, 0.0]}


def test_outliers_are_those_far_away_and_those_in_the_middle() -> None:
    assert OutlierTest().trusted(server(RING)) == {0, 1, 2, 3, 4, 5}
    assert OutlierTest().trusted(server({**RING, 6: [40.0, 0.0]})) == {0, 1, 2, 3, 4, 5}
    assert OutlierTest().trusted(server({**RING, 6: [0.05, 0.0]})) == {0, 1, 2, 3, 4, 5}
    assert OutlierTest(threshold=1000).trusted(server({**RING, 6: [40.0, 0.0]})) == {0, 1, 2, 3, 4, 5, 6}


def test_the_norm_does_not_see_where_a_prompt_points() -> None:
    # Six prompts around (10, 0) have norms of 7 to 13.4, and so has one at (-10, 0).
    shifted = {client: [x + 10, y] for client, (x, y) in RING.items()}
    far = {**shifted, 6: [-10.0, 0.0]}
    assert 6 in OutlierTest(measure="norm").trusted(server(far))
    assert 6 not in OutlierTest(measure="distance").trusted(server(far))


def test_a_pool_of_two_is_served() -> None:
    assert OutlierTest().trusted(server({3: [0.0, 0.0], 8: [1e6, 0.0]})) == {3, 8}


def report(client: int, experts: Sequence[int], weights: Sequence[float]) -> Report:
    return Report(client, tuple(experts), torch.tensor(weights))


def test_reputation_by_hand() -> None:
    state, screening = server({i: [0.0, 0.0] for i in range(4)}), Reputation(least=0.5)
    assert screening.trusted(state) == {0, 1, 2, 3}
    # Shares of the experts' weight, times K = 2: 1.5 and 0.5. Reputations (1 + 1.5) / 2 and (1 + 0.5) / 2.
    screening.learn(state, [report(0, [1, 2], [0.6, 0.3, 0.1])])
    assert state.extras["reputation.sums"].tolist() == pytest.approx([0, 1.5, 0.5])
    assert screening.trusted(state) == {0, 1, 2, 3}
    # Client 2 gets nothing twice: (1 + 0.5 + 0 + 0) / 4 = 0.375. Client 1's share counts as 2 at most.
    screening.learn(state, [report(0, [1, 3, 2], [0.2, 0.8, 0.0, 0.0]), report(3, [1, 2], [0.5, 0.5, 0.0])])
    assert state.extras["reputation.sums"].tolist() == pytest.approx([0, 5.5, 0.5, 0])
    assert state.extras["reputation.counts"].tolist() == [0, 3, 3, 1]
    assert screening.trusted(state) == {0, 1, 3}  # client 3: (1 + 0) / 2
    served = Defences(None, screening).served(state)
    assert set(served.to(0).pool["prompt"]) == {0, 1, 3}
    assert set(served.to(2).pool["prompt"]) == {0, 1, 2, 3}  # a client always has its own
    assert set(state.pool["prompt"]) == {0, 1, 2, 3}  # the pool itself is kept whole


def test_reports_about_oneself_or_about_nobody_do_not_count() -> None:
    state = server({0: [0.0, 0.0], 1: [0.0, 0.0]})
    Reputation().learn(state, [report(0, [0, 0], [0.5, 0.25, 0.25]), report(1, [], [0.5, 0.5]), report(1, [0], [1, 0])])
    assert state.extras == {}


numbers = st.floats(-1000, 1000, width=32)
several = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=9)
ROBUST = [Median(), TrimmedMean(trim=0.34), Krum(attackers=1), Krum(attackers=1, keep=2), NormClipping()]


@settings(max_examples=40, deadline=None)
@given(several, st.randoms(use_true_random=False))
@pytest.mark.parametrize("defence", ROBUST, ids=repr)
def test_the_order_of_uploads_does_not_matter(defence: Aggregation, rows: list, random) -> None:
    sent = uploads(rows, examples=[1 + i for i in range(len(rows))])
    shuffled = random.sample(sent, len(sent))
    torch.testing.assert_close(mean_of(defence, sent), mean_of(defence, shuffled), rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(several, st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), numbers))
@pytest.mark.parametrize("defence", [Median(), TrimmedMean(trim=0.34)], ids=repr)
def test_one_upload_cannot_leave_the_range_of_the_honest_ones(defence: Aggregation, rows: list, bad: tuple) -> None:
    found = mean_of(defence, uploads([*rows, bad]))["prompt"].double()
    honest = torch.tensor(rows, dtype=torch.float32).double()
    slack = 1e-6 * (1 + honest.abs().max())
    assert bool((found >= honest.min(dim=0).values - slack).all())
    assert bool((found <= honest.max(dim=0).values + slack).all())


def test_without_a_defence_one_upload_decides() -> None:
    """The control of the property above."""
    rows = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [1e6, 0.0]]
    plain = weighted_means([update.parameters for update in uploads(rows)], [1, 1, 1, 1])
    assert float(plain["prompt"][0]) > 1e5


def test_a_bad_direction_stays_within_the_bound() -> None:
    rows = [[0.1, 0.0], [0.0, 0.1], [1e6, 1e6]]
    found = mean_of(NormClipping(bound=0.1), uploads(rows))["prompt"]
    assert float(found.norm()) <= 0.1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TrimmedMean(trim=0.5), "aggregation.trim is 0.5; valid is a number in [0, 0.5)."),
        (lambda: NormClipping(bound=0.0), "aggregation.bound is 0.0; valid is null or a finite number above 0."),
        (lambda: Krum(keep=0), "aggregation.keep is 0; valid is an integer of at least 1."),
        (
            lambda: Krum(attackers=2).check(FederationConfig(clients=12, participation=0.5)),
            "aggregation.attackers is 2; valid is 0 to 1 with cohorts of 6 clients.",
        ),
        (
            lambda: Krum(attackers=1, keep=6).check(FederationConfig(clients=6)),
            "aggregation.keep is 6; valid is 1 to 5, the honest ones of 6 clients.",
        ),
        (lambda: OutlierTest(threshold=0.0), "screening.threshold is 0.0; valid is a number above 0."),
        (lambda: Reputation(least=1.0), "screening.least is 1.0; valid is a number in [0, 1)."),
        (
            lambda: Reputation().check(FederationConfig(), PrivacyConfig(mechanism="upload")),
            "screening is Reputation, but privacy.mechanism is 'upload', which does not protect the weights that "
            "clients would upload; valid is another screening, or privacy.mechanism = none.",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(make, sentence: str) -> None:
    with pytest.raises(UserError) as found:
        make()
    assert str(found.value) == sentence


def shown_to(serving: Serving, client: int, values: dict[int, list], shared: list | None = None) -> dict[int, Tensor]:
    """What a client sees of the pool, through the round loop's own view."""
    state = ServerState(
        {} if shared is None else {"prompt": torch.tensor(shared)},
        {"prompt": {i: torch.tensor(value) for i, value in values.items()}},
    )
    return dict(Defences(serving=serving).served(state).to(client).pool["prompt"])


def test_noise_is_for_others_and_the_same_each_time() -> None:
    values = {i: torch.full((50, 40), float(i)).tolist() for i in range(3)}
    to_one, to_two = (shown_to(Noise(std=0.1), i, values) for i in (1, 2))
    assert torch.equal(to_one[1], torch.full((50, 40), 1.0))  # its own is as it is
    assert torch.equal(to_one[0], to_two[0])
    added = to_one[0], to_one[2] - 2
    for noise in added:
        assert abs(float(noise.mean())) < 0.01 and float(noise.std()) == pytest.approx(0.1, rel=0.05)
    assert abs(float((added[0] * added[1]).mean())) < 0.001  # each upload has its own


def test_quantized_by_hand() -> None:
    values = {0: [[1.0, 1.4, 1.6, 4.0]], 1: [[5.0, 5.0, 5.0, 5.0]]}
    found = shown_to(Quantized(bits=2), 2, values)  # 1, 2, 3, 4
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 1.0, 2.0, 4.0]]))
    torch.testing.assert_close(found[1], torch.tensor([[5.0, 5.0, 5.0, 5.0]]))
    found = shown_to(Quantized(bits=1), 1, values, shared=[[1.0, 1.0, 0.0, 0.0]])  # P - G: 0, 0.4, 1.6, 4
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 1.0, 0.0, 4.0]]))
    assert found[1].tolist() == values[1]  # its own


def test_low_rank_by_hand() -> None:
    values = {0: [[4.0, 1.0], [1.0, 3.0]]}  # minus G: diag(3, 2)
    found = shown_to(LowRank(rank=1), 9, values, shared=[[1.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(found[0], torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(shown_to(LowRank(rank=2), 9, values)[0], torch.tensor(values[0]))


def test_groups_by_hand() -> None:
    values = {0: [0.0], 1: [10.0], 2: [1.0], 3: [12.0], 4: [20.0]}
    found = shown_to(Groups(size=2), 3, values)  # 0 with 2; 1 with 3, and 4, which is left over
    assert {i: found[i].item() for i in found} == {0: 0.5, 2: 0.5, 1: 14.0, 3: 12.0, 4: 14.0}
    assert {i: v.item() for i, v in shown_to(Groups(size=6), 3, values).items()} == {3: 12.0}  # too few: its own alone


def test_only_large_owners_are_served() -> None:
    state, screening = server({i: [float(i), 0.0] for i in range(4)}), MinimumSize(least=10)
    guard = Defences(None, screening)
    assert sorted(guard.served(state).to(2).pool["prompt"]) == [2]  # nobody's size is known yet
    guard.learn(state, [upload(3, [0, 0], 10), upload(1, [0, 0], 9)], {})
    guard.learn(state, [upload(0, [0, 0], 40)], {})
    assert sorted(guard.served(state).to(1).pool["prompt"]) == [0, 1, 3]
    both = Defences(None, screening, Groups(size=2)).served(state).to(1).pool["prompt"]
    assert {i: v.tolist() for i, v in both.items()} == {0: [1.5, 0], 3: [1.5, 0], 1: [1, 0]}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Noise(std=0.0), "serving.std is 0.0; valid is a finite number above 0."),
        (lambda: Quantized(bits=17), "serving.bits is 17; valid is an integer from 1 to 16."),
        (lambda: LowRank(rank=0), "serving.rank is 0; valid is an integer of at least 1."),
        (lambda: Groups(size=1), "serving.size is 1; valid is an integer of at least 2."),
        (lambda: MinimumSize(least=0), "screening.least is 0; valid is an integer of at least 1."),
    ],
)
def test_a_serving_that_does_not_fit_is_one_sentence(make, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == sentence
