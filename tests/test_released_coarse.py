"""Partitions over CIFAR-100's coarse classes, whose labels are the published ones, as in pFedMoAP's released code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cifar_helpers import write_cifar
from partition_helpers import same

from fedmoe.data import CIFAR10, CIFAR100, Dirichlet, SubsetConfig, partition_dataset
from fedmoe.data.partition_coarse import coarse_split
from fedmoe.errors import UserError

COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip


def test_coarse_classes_are_the_published_ones() -> None:
    assert CIFAR100.coarse == tuple(COARSE)
    assert Counter(CIFAR100.coarse) == dict.fromkeys(range(20), 5)
    assert CIFAR10.coarse is None


GROUPS = np.arange(20) // 4  # 20 classes in 5 coarse ones
TRAIN, TEST = np.repeat(np.arange(20), 50), np.repeat(np.arange(20), 10)


@pytest.mark.parametrize(("clients", "alpha"), [(10, 0.5), (7, 0.05), (1, 0.5), (1200, 0.5)])
def test_coarse_clients_are_equally_large_and_disjoint(clients: int, alpha: float) -> None:
    dealt = coarse_split(TRAIN, TEST, GROUPS, clients, alpha, seed=3)
    assert [len(train) + len(test) for train, test in dealt] == [1200 // clients] * clients
    for part, size in ((0, len(TRAIN)), (1, len(TEST))):
        given = np.concatenate([own[part] for own in dealt])
        assert len(set(given.tolist())) == len(given) and set(given.tolist()) <= set(range(size))
        assert all(own[part].tolist() == sorted(own[part].tolist()) for own in dealt)
    again = coarse_split(TRAIN, TEST, GROUPS, clients, alpha, seed=3)
    assert all(np.array_equal(x, y) for a, b in zip(dealt, again, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_coarse_shares_have_the_distributions_variance(alpha: float) -> None:
    """Of the first client, who still has all classes to draw from: Dir(alpha) over the coarse ones, Dir(10) within."""
    train, test = np.repeat(np.arange(20), 600), np.repeat(np.arange(20), 60)
    first = [coarse_split(train, test, GROUPS, 40, alpha, seed)[0] for seed in range(300)]
    counts = np.stack([np.bincount(train[a], minlength=20) + np.bincount(test[b], minlength=20) for a, b in first])
    coarse = counts.reshape(-1, 5, 4).sum(axis=2)  # [seeds, 5]
    drawn = 13200 // 40
    shares = coarse / drawn
    variance = 0.2 * 0.8 / (5 * alpha + 1)
    expected = variance + (0.2 * 0.8 - variance) / drawn  # with the multinomial's
    assert shares.var() == pytest.approx(expected, rel=0.15)
    inside = (counts.reshape(-1, 5, 4) / np.maximum(coarse, 1)[..., None])[coarse > 60]  # [, 4]
    within = 0.25 * 0.75 / (4 * 10 + 1)
    assert within < inside.var() < within + 0.25 * 0.75 / 60 and inside.mean() == pytest.approx(0.25)
    of_test = np.mean([len(b) for _, b in first]) / drawn
    assert of_test == pytest.approx(60 / 660, rel=0.05)  # training and test examples come from one heap


def test_the_last_coarse_client_takes_what_is_left() -> None:
    """Two clients: the first one's draw is one of the first coarse class alone, until that is used up."""
    train, test, groups = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 2]), np.array([0, 0, 1])
    for seed in range(20):
        (a, c), (b, d) = coarse_split(train, test, groups, 2, 1e-6, seed)
        labels = sorted([*train[a], *test[c]])
        assert labels in (
            [0, 0, 0, 1, 1],
            [0, 0, 1, 1, 1],
            [0, 0, 0, 0, 1],
            [0, 1, 2, 2, 2],
            [0, 0, 2, 2, 2],
            [1, 1, 2, 2, 2],
        )
        assert sorted([*train[a], *test[c], *train[b], *test[d]]) == sorted([*train, *test])


def test_coarse_is_an_option_of_the_partition(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR100, each=500)
    data = CIFAR100(root=str(tmp_path))
    clients = partition_dataset(data, Dirichlet(0.1, over="coarse", seed=12345), 5, seed=1)
    assert [len(client.train) + len(client.test) for client in clients] == [200] * 5
    coarse = [np.bincount(np.array(COARSE)[data.train.labels[client.train]], minlength=20) for client in clients]
    assert (
        max(np.sort(own)[-2:].sum() / own.sum() for own in coarse) > 0.4
    )  # two of 20 coarse classes have a tenth else
    fine = partition_dataset(data, Dirichlet(0.1, 2, seed=12345), 5, seed=1)
    assert not same(clients, fine)
    few = CIFAR100(root=str(tmp_path), subset=SubsetConfig(classes=10))  # of nine coarse classes
    assert sorted(np.concatenate([c.train for c in partition_dataset(few, Dirichlet(min_size=1, over="coarse"), 2, 0)]))


def test_a_coarse_minimum_that_is_not_reached(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR100, each=500)
    for settings, key, part in (({"min_size": 150}, "min_size", "training"), ({"min_test": 150}, "min_test", "test")):
        with pytest.raises(UserError) as caught:
            partition_dataset(CIFAR100(root=str(tmp_path)), Dirichlet(over="coarse", **settings), 5, seed=0)  # type: ignore[arg-type]
        assert str(caught.value).startswith(
            f"partition.{key} is 150, but with partition.over = coarse, of 5 clients one"
        )
        assert f" {part} examples; valid is at most " in str(caught.value)
