"""Partitions that cannot be made: minima out of reach, wrong settings, and a class of the user's own that is faulty."""

from __future__ import annotations

import numpy as np
import pytest
from partition_helpers import Fixed, Labels, split_of

from fedmoe.data import IID, Digits, Dirichlet, Pathological, partition_dataset
from fedmoe.data.partition import dirichlet_split
from fedmoe.data.shares import MinimumNotReached
from fedmoe.errors import UserError


@pytest.mark.parametrize(
    ("min_size", "sentence"),
    [
        (
            10,
            "partition.min_size is 10, but in 1000 draws of Dir(0.001) over 2 clients and 20 training examples the "
            "smallest client never had more than 0; valid is a larger partition.alpha, or fewer federation.clients.",
        ),
        (
            11,
            "partition.min_size is 11, but 20 training examples cannot give 2 clients 11 each; valid is at most 10, "
            "or federation.clients of at most 1.",
        ),
    ],
)
def test_the_whole_sentence_of_an_unreachable_minimum(min_size, sentence):
    with pytest.raises(UserError) as error:
        Dirichlet(0.001, min_size).split(split_of([0] * 20), split_of([]), 1, 2, seed=0)
    assert str(error.value) == sentence


def test_a_minimum_of_all_examples_can_be_kept():
    (client,) = Dirichlet(0.5, min_size=20).split(split_of([0] * 20), split_of([]), 1, 1, seed=0)
    assert client.train.tolist() == list(range(20))


def test_as_many_clients_as_examples_can_have_one_each():
    with pytest.raises(UserError) as error:
        Dirichlet(1.0, min_size=2).split(split_of([0] * 5), split_of([]), 1, 5, seed=0)
    assert str(error.value) == (
        "partition.min_size is 2, but 5 training examples cannot give 5 clients 2 each; valid is at most 1, or "
        "federation.clients of at most 2."
    )


def test_an_unreachable_minimum_says_how_far_the_draws_came():
    one_class = np.zeros(20, dtype=np.int64)
    with pytest.raises(MinimumNotReached) as caught:
        dirichlet_split(one_class, one_class[:0], 1, 2, 0.001, 10, seed=0)
    assert caught.value.best == 0
    assert caught.value.args == (0,)
    with pytest.raises(MinimumNotReached) as caught:  # nothing is drawn
        dirichlet_split(one_class, one_class[:0], 1, 3, 1.0, 7, seed=0)
    assert caught.value.best == 0


@pytest.mark.parametrize(
    ("make", "clients", "sentence"),
    [
        (lambda: Dirichlet(alpha=0), 2, "partition.alpha is 0; valid is a finite number above 0."),
        (lambda: Dirichlet(alpha=float("nan")), 2, "partition.alpha is nan; valid"),
        (lambda: Dirichlet(min_size=0), 2, "partition.min_size is 0; valid is an integer of at least 1."),
        (
            lambda: Dirichlet(min_size=100),
            20,
            "1258 training examples cannot give 20 clients 100 each; valid is at most 62",
        ),
        (lambda: Dirichlet(min_size=10), 2000, "valid is federation.clients of at most 125."),
        (lambda: Dirichlet(0.001, 10), 20, "a larger partition.alpha, or fewer federation.clients."),
        (Pathological, 11, "federation.clients is 11, but the pathological partition"),
        (IID, 1259, "federation.clients is 1259, but there are 1258 training examples; valid is 1 to 1258."),
    ],
)
def test_what_cannot_be_is_one_sentence(make, clients, sentence):
    with pytest.raises(UserError) as error:
        partition_dataset(Digits(), make(), clients, seed=0)
    assert sentence in str(error.value)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_failed_minimum_names_one_that_works():
    with pytest.raises(UserError) as error:
        partition_dataset(Digits(), Dirichlet(0.5, min_size=50), 20, seed=0)
    reached = int(str(error.value).split("valid is at most ")[1].split(",")[0])
    clients = partition_dataset(Digits(), Dirichlet(0.5, min_size=reached), 20, seed=0)
    assert min(len(client.train) for client in clients) == reached < 50


@pytest.mark.parametrize(
    ("clients", "sentence"),
    [
        ([([0, 1], []), ([1], [])], "gave a train example to more than one client"),
        ([([0], [0]), ([1], [0])], "gave a test example to more than one client"),
        ([([0], []), ([4], [])], "gave out train examples that do not exist; there are 4"),
        ([([0], []), ([-1], [])], "gave out train examples that do not exist"),
        ([([0], [])], "made 1 clients, but federation.clients is 2"),
        ([([0, 1], [0]), ([], [1])], "1 of 2 clients have no training examples (the first is client 1)"),
    ],
)
def test_a_faulty_partition_class_is_found(clients, sentence):
    with pytest.raises(UserError) as error:
        partition_dataset(Labels([0, 1, 2, 3], [0, 1]), Fixed(clients), 2, seed=0)
    assert sentence in str(error.value)
    assert str(error.value).startswith(("The partition Fixed ", "Under the partition Fixed, "))


def test_pathological_client_whose_classes_have_no_examples():
    with pytest.raises(UserError, match="have no training examples"):
        partition_dataset(Labels([0, 1, 2], [0]), Pathological(), 4, seed=0)
