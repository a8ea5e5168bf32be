"""Server: cohort, weighted mean (eq. 6, 7), experts. Expected values are worked out by hand or by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import stream

from fedmoe.server.aggregation import weighted_mean, weighted_means
from fedmoe.server.experts import random_experts
from fedmoe.server.sampling import sample_cohort
from fedmoe.server.search import farthest_experts, nearest_experts
from fedmoe.server.state import Known, ServerState


@pytest.mark.parametrize(
    ("clients", "participation", "size"),
    [(100, 0.1, 10), (10, 1.0, 10), (30, 0.25, 7), (20, 0.5, 10), (100, 0.29, 29), (10, 0.05, 1), (1, 1.0, 1)],
)
def test_cohort_size_is_the_floor_but_at_least_one(clients: int, participation: float, size: int) -> None:
    cohort = sample_cohort(clients, participation, seed=0, round=1)
    assert len(cohort) == len(set(cohort)) == size
    assert all(0 <= client < clients for client in cohort)
    assert list(cohort) == sorted(cohort)


def test_cohorts_differ_between_rounds_and_seeds_and_reach_everybody() -> None:
    cohorts = [sample_cohort(20, 0.25, seed=3, round=t) for t in range(1, 61)]
    assert cohorts == [sample_cohort(20, 0.25, seed=3, round=t) for t in range(1, 61)]
    assert len(set(cohorts)) > 50
    assert cohorts[0] != sample_cohort(20, 0.25, seed=4, round=1)
    assert set().union(*cohorts) == set(range(20))


def test_a_cohort_is_drawn_from_its_own_stream() -> None:
    drawn = stream('[3,"cohort",7]').choice(20, size=5, replace=False)
    assert sample_cohort(20, 0.25, seed=3, round=7) == tuple(sorted(drawn.tolist()))


def test_weighted_mean_is_summed_in_float64() -> None:
    large = [torch.tensor([value]) for value in (1e8, 3.0, -1e8)]  # in float32, 1e8 + 3 is 1e8
    mean = weighted_mean(large, [1, 1, 1])
    assert mean.dtype == torch.float32
    assert mean.tolist() == [1.0]
    assert weighted_mean([prompt.double() for prompt in large], [1, 1, 1]).dtype == torch.float64


@pytest.mark.parametrize("weights", [[1], [1, 2, 3]])
def test_each_prompt_needs_one_weight(weights: list[int]) -> None:
    with pytest.raises(ValueError):
        weighted_mean([torch.zeros(1, 1), torch.ones(1, 1)], weights)


def test_weighted_mean_by_hand() -> None:
    prompts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -2.0]])]
    assert torch.equal(weighted_mean(prompts, [3, 1]), torch.tensor([[2.0, 1.0]]))  # (3*1+5)/4, (3*2-2)/4


def test_each_name_is_averaged_over_those_that_sent_it() -> None:
    one, two, three = {"prompt": torch.tensor([1.0])}, {"prompt": torch.tensor([5.0])}, {"prompt": torch.tensor([3.0])}
    gates = {"gate.a": torch.tensor([4.0, 0.0])}, {"gate.a": torch.tensor([1.0, 3.0])}
    means = weighted_means([one, two | gates[0], three | gates[1]], [3, 1, 2])
    assert list(means) == ["prompt", "gate.a"]
    assert means["prompt"].item() == pytest.approx((3 * 1 + 1 * 5 + 2 * 3) / 6, rel=1e-7)
    assert means["gate.a"].tolist() == [2.0, 2.0]  # (1 * 4 + 2 * 1) / 3, (1 * 0 + 2 * 3) / 3
    assert weighted_means([{}, {}], [1, 2]) == {}
    for weights in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError):
            weighted_means([one, two, three], weights)


def test_what_the_server_knows() -> None:
    known = Known(rounds_seen=1, expert_ids=(4,), version=3)
    entries = {1: torch.zeros(1)}
    server = ServerState({"prompt": torch.ones(1)}, {"prompt": entries}, frozenset({"prompt"}), {1: known})
    assert (server.known(1), server.known(2)) == (known, Known(0, (), 0))
    assert server.holds(1, "prompt")
    assert not server.holds(1, "gate") and not server.holds(2, "prompt")
    assert server.pooled("prompt") is server.pool["prompt"]
    assert server.pooled("prompt")[1] is entries[1]


def test_a_copy_of_the_server_is_its_own_and_shares_tensors() -> None:
    server = ServerState(
        {"prompt": torch.ones(1)},
        {"prompt": {1: torch.zeros(1)}},
        frozenset({"prompt"}),
        {1: Known(1)},
        {"mean": torch.ones(2)},
        {1: "sketch"},
    )
    copy = server.copy()
    assert copy.shared["prompt"] is server.shared["prompt"] and copy.shared.keys() == {"prompt"}
    assert copy.pool["prompt"][1] is server.pool["prompt"][1] and copy.pool.keys() == {"prompt"}
    assert copy.extras["mean"] is server.extras["mean"] and copy.extras.keys() == {"mean"}
    assert (copy.kept, copy.clients, copy.domains) == (server.kept, server.clients, server.domains)
    copy.shared.clear(), copy.pool["prompt"].clear(), copy.pool.clear(), copy.clients.clear(), copy.extras.clear()
    assert server.shared and server.pool["prompt"] and server.clients and server.extras


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 1000)), min_size=1, max_size=8))
def test_weighted_mean_equals_numpy_and_ignores_the_scale_of_weights(pairs: list[tuple[float, int]]) -> None:
    values, weights = zip(*pairs, strict=True)
    prompts = [torch.tensor([[value]]) for value in values]
    mean = weighted_mean(prompts, weights).item()
    assert mean == pytest.approx(
        np.average(np.array(values, np.float32).astype(float), weights=weights), rel=1e-6, abs=1e-6
    )
    assert mean == pytest.approx(weighted_mean(prompts, [7 * weight for weight in weights]).item(), rel=1e-6, abs=1e-6)
    assert min(values) - 1e-5 <= mean <= max(values) + 1e-5


def test_nearest_by_hand() -> None:
    pool = {
        client: torch.tensor([[position, 0.0]])
        for client, position in {4: 0.0, 1: 1.0, 7: -3.0, 2: 2.5, 9: 1.0}.items()
    }
    assert nearest_experts(pool, 4, 3) == [1, 9, 2]  # distances 1 and 1 (the tie goes by id), 2.5, 3
    assert nearest_experts(pool, 4, 99) == [1, 9, 2, 7]  # all there are, itself excluded
    assert nearest_experts(pool, 7, 1) == [4]
    assert nearest_experts({4: pool[4]}, 4, 3) == []
    assert farthest_experts(pool, 4, 3) == [7, 2, 1]
    assert farthest_experts(pool, 4, 99) == [7, 2, 1, 9]
    assert farthest_experts({4: pool[4]}, 4, 3) == []


def test_ties_among_many_go_by_id() -> None:
    pool = {client: torch.tensor([[float(client > 300)]]) for client in range(600)}
    assert nearest_experts(pool, 5, 599) == [*(i for i in range(301) if i != 5), *range(301, 600)]


@given(st.integers(2, 12), st.integers(0, 12), st.integers(0, 2**32))
def test_nearest_takes_the_smallest_distances(size: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(size, 3, 2)).astype(np.float32)
    pool = {client: torch.from_numpy(values[client]) for client in range(size)}
    chosen = nearest_experts(pool, 0, count)
    distances = np.linalg.norm((values - values[0]).reshape(size, -1).astype(float), axis=1)
    assert chosen == [int(i) for i in np.argsort(distances, kind="stable") if i != 0][:count]


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**32))
def test_random_experts_are_distinct_others(size: int, count: int, seed: int) -> None:
    pool = {client: torch.zeros(1, 1) for client in range(size)}
    chosen = random_experts(pool, 0, count, (seed,))
    assert len(set(chosen)) == len(chosen) == min(count, size - 1)
    assert set(chosen) <= set(range(1, size))
    assert chosen == random_experts(pool, 0, count, (seed,))


def test_random_experts_are_drawn_from_their_own_stream() -> None:
    pool = {client: torch.zeros(1, 1) for client in (9, 4, 7, 1, 3)}
    others = [1, 3, 7, 9]
    drawn = stream('[0,"experts",5,2,4]').choice(4, size=3, replace=False)
    assert random_experts(pool, 4, 3, (5, 2, 4)) == [others[i] for i in drawn]
    assert random_experts(pool, 4, 3) == random_experts(pool, 4, 3, (0,))


def test_random_experts_are_uniform() -> None:
    pool = {client: torch.zeros(1, 1) for client in range(6)}
    counts = np.bincount([i for t in range(3000) for i in random_experts(pool, 2, 2, (t,))], minlength=6)
    assert counts[2] == 0
    assert np.all(np.abs(counts[[0, 1, 3, 4, 5]] - 1200) < 6 * np.sqrt(3000 * 0.4 * 0.6))  # six standard deviations
