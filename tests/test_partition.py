"""Partitions by their properties.

N clients, C classes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from partition_helpers import Fixed, Labels, assert_disjoint_cover, matrix, problems, same, split_of
from streams import stream

from fedmoe.data import IID, Digits, Dirichlet, Pathological, partition_dataset, partition_summary
from fedmoe.errors import UserError


@given(problems(), st.sampled_from([0.3, 1.0, 5.0, 100.0]))
def test_dirichlet_gives_each_example_to_one_client_and_keeps_the_minimum(problem, alpha):
    train, test, num_classes, num_clients, seed = problem
    try:
        clients = Dirichlet(alpha, min_size=1).split(train, test, num_classes, num_clients, seed)
    except UserError as error:  # few examples over many clients: allowed to fail, but not silently
        assert "partition.min_size" in str(error)
        return
    assert len(clients) == num_clients
    assert_disjoint_cover(clients, train, test)
    assert min(len(client.train) for client in clients) >= 1


@given(st.integers(0, 2**40), st.integers(1, 12), st.integers(1, 15))
def test_dirichlet_keeps_a_demanding_minimum(seed, num_clients, min_size):
    train, test = split_of(np.arange(400) % 4), split_of(np.arange(100) % 4)
    clients = Dirichlet(1.0, min_size).split(train, test, 4, num_clients, seed)
    assert min(len(client.train) for client in clients) >= min_size


@given(problems(max_clients=4), st.sampled_from([0.3, 1.0, 10.0]))
def test_dirichlet_train_and_test_have_the_same_proportions(problem, alpha):
    train, test, num_classes, num_clients, seed = problem
    try:
        clients = Dirichlet(alpha, min_size=1).split(train, test, num_classes, num_clients, seed)
    except UserError:
        return
    per_train = matrix(clients, train, "train", num_classes)
    per_test = matrix(clients, test, "test", num_classes)
    for c in range(num_classes):
        n_train, n_test = per_train[:, c].sum(), per_test[:, c].sum()
        if n_train and n_test:  # each count lies within one example of the client's share
            difference = np.abs(per_train[:, c] / n_train - per_test[:, c] / n_test)
            assert (difference <= 1 / n_train + 1 / n_test + 1e-12).all()


@pytest.mark.parametrize("alpha", [0.1, 0.5, 3.0])
def test_dirichlet_shares_have_the_distribution_s_variance(alpha):
    """Of Dir(alpha) over N: mean 1/N, variance (1/N)(1 - 1/N) / (N alpha + 1)."""
    num_classes, num_clients, size = 1000, 5, 500
    train = split_of(np.repeat(np.arange(num_classes), size))
    clients = Dirichlet(alpha, min_size=1).split(train, split_of([]), num_classes, num_clients, seed=1)
    shares = matrix(clients, train, "train", num_classes) / size
    expected = (1 / num_clients) * (1 - 1 / num_clients) / (num_clients * alpha + 1)
    assert shares.var() == pytest.approx(expected, rel=0.1)
    assert shares.mean(axis=1) == pytest.approx(np.full(num_clients, 0.2), abs=5 * (expected / num_classes) ** 0.5)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e6])
def test_dirichlet_at_extreme_alphas(alpha):
    train, test = split_of(np.arange(1000) % 50), split_of(np.arange(100) % 50)
    clients = Dirichlet(alpha, min_size=1).split(train, test, 50, 3, seed=0)
    assert_disjoint_cover(clients, train, test)
    owners = np.count_nonzero(matrix(clients, train, "train", 50), axis=0)
    assert (owners == (3 if alpha > 1 else 1)).all()


@given(problems(), st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_the_order_of_examples(problem, random):
    train, test, num_classes, num_clients, seed = problem
    shuffled = [list(split.labels) for split in (train, test)]
    for labels in shuffled:
        random.shuffle(labels)
    others = split_of(shuffled[0]), split_of(shuffled[1])
    for partition in (Dirichlet(2.0, min_size=1), Pathological()):
        try:
            clients = partition.split(train, test, num_classes, num_clients, seed)
        except UserError:
            with pytest.raises(UserError):
                partition.split(*others, num_classes, num_clients, seed)
            continue
        again = partition.split(*others, num_classes, num_clients, seed)
        for part, a, b in (("train", train, others[0]), ("test", test, others[1])):
            assert (matrix(clients, a, part, num_classes) == matrix(again, b, part, num_classes)).all()


@given(problems())
def test_pathological_classes_are_disjoint_and_even(problem):
    train, test, num_classes, num_clients, seed = problem
    if num_clients > num_classes:
        with pytest.raises(UserError, match=f"valid is 1 to {num_classes}"):
            Pathological().split(train, test, num_classes, num_clients, seed)
        return
    every_class = split_of(np.repeat(np.arange(num_classes), 2))
    for a, b in ((train, test), (every_class, every_class)):
        clients = Pathological().split(a, b, num_classes, num_clients, seed)
        assert_disjoint_cover(clients, a, b)
        both = matrix(clients, a, "train", num_classes) + matrix(clients, b, "test", num_classes)
        assert (np.count_nonzero(both, axis=0) <= 1).all()  # a class has one owner, the same for train and test
    owned = np.count_nonzero(both, axis=1)
    assert owned.sum() == num_classes and owned.max() - owned.min() <= 1


def test_pathological_classes_are_random():
    every_class = split_of(np.arange(10))
    owned = {
        tuple(every_class.labels[Pathological().split(every_class, every_class, 10, 5, seed)[0].train])
        for seed in range(50)
    }
    assert len(owned) > 20  # of 45 possible pairs


@given(problems())
def test_iid_is_an_even_cover(problem):
    train, test, num_classes, num_clients, seed = problem
    clients = IID().split(train, test, num_classes, num_clients, seed)
    assert_disjoint_cover(clients, train, test)
    for part in ("train", "test"):
        sizes = [len(getattr(client, part)) for client in clients]
        assert max(sizes) - min(sizes) <= 1


PARTITIONS = [Dirichlet(0.5, 10), Pathological(), IID()]


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: type(p).__name__)
def test_the_seed_alone_decides(partition):
    data = Digits()
    first = partition_dataset(data, partition, 10, seed=3)
    np.random.seed(99)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    assert same(partition_dataset(Digits(), partition, 10, seed=3), first)
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()
    assert not same(partition_dataset(data, partition, 10, seed=4), first)


def test_another_process_gets_the_same_split_without_torch():
    script = (
        "import hashlib, sys; from fedmoe.data import *\n"
        "digest = hashlib.sha256()\n"
        "for p in (Dirichlet(), Pathological(), IID()):\n"
        "    for c in partition_dataset(Digits(), p, 10, 3): digest.update(c.train.tobytes() + c.test.tobytes())\n"
        "assert 'torch' not in sys.modules\n"
        "print(digest.hexdigest())"
    )
    command = [sys.executable, "-c", script]
    other = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    digest = hashlib.sha256()
    for partition in (Dirichlet(), Pathological(), IID()):
        for client in partition_dataset(Digits(), partition, 10, 3):
            digest.update(client.train.tobytes() + client.test.tobytes())
    assert other.stdout.strip() == digest.hexdigest()


def test_dirichlet_deals_by_running_sums_of_its_shares():
    """Worked out anew with lists, one class and one client after another, from the documented streams."""
    train, test, seed = np.arange(90) % 3, np.arange(45) % 3, 5
    shares = stream('[5,"partition","dirichlet","shares"]').dirichlet([2.0] * 4, size=3)  # the first draw is enough
    clients = Dirichlet(2.0, min_size=1).split(split_of(train), split_of(test), 3, 4, seed)
    for part, labels in (("train", train), ("test", test)):
        generator = stream(f'[5,"partition","dirichlet","{part}"]')
        expected: list[list[int]] = [[] for _ in range(4)]
        for label in range(3):
            members = generator.permutation([i for i in range(len(labels)) if labels[i] == label]).tolist()
            cuts = [round(len(members) * float(sum(shares[label, :i]))) for i in range(4)] + [len(members)]
            for i in range(4):
                expected[i] += members[cuts[i] : cuts[i + 1]]
        assert [getattr(client, part).tolist() for client in clients] == [sorted(part) for part in expected]


def test_pathological_classes_are_cut_from_one_permutation():
    every_class = split_of(np.arange(30) % 10)
    order = stream('[5,"partition","pathological"]').permutation(10).tolist()
    clients = Pathological().split(every_class, every_class, 10, 4, seed=5)
    # ten classes over four clients: 3, 3, 2, 2
    for client, owned in zip(clients, (order[:3], order[3:6], order[6:8], order[8:]), strict=True):
        expected = [i for i in range(30) if i % 10 in owned]
        assert client.train.tolist() == client.test.tolist() == expected


def test_iid_is_cut_from_one_permutation_for_each_split():
    train, test = split_of([0] * 10), split_of([0] * 7)
    clients = IID().split(train, test, 1, 3, seed=5)
    for part, sizes in (("train", (4, 3, 3)), ("test", (3, 2, 2))):
        order = stream(f'[5,"partition","iid","{part}"]').permutation(sum(sizes)).tolist()
        for client, size in zip(clients, sizes, strict=True):
            assert getattr(client, part).tolist() == sorted(order[:size])
            order = order[size:]


def test_iid_may_give_each_client_one_example():
    clients = IID().split(split_of([0, 1, 0]), split_of([]), 2, 3, seed=0)
    assert sorted(client.train.tolist() for client in clients) == [[0], [1], [2]]


def test_summary_counts():
    data = Labels([0, 0, 1, 3], [3, 1])
    clients = partition_dataset(data, Fixed([([0, 3], [0]), ([1, 2], [])]), 2, seed=0)
    assert partition_summary(data, clients) == {
        "class_names": ["a", "b", "c", "d"],
        "counts_train": [[1, 0, 0, 1], [1, 1, 0, 0]],
        "counts_test": [[0, 0, 0, 1], [0, 0, 0, 0]],
        "domains": None,
    }
