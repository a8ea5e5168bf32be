"""Partitions by their properties, and seeds.

N clients, C classes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from streams import stream

from fedmoe.data import (
    IID,
    ClientIndices,
    DataSet,
    Digits,
    Dirichlet,
    Partition,
    Pathological,
    Split,
    partition_dataset,
    partition_summary,
)
from fedmoe.data.base import RawData
from fedmoe.data.partition import dirichlet_split
from fedmoe.data.shares import MinimumNotReached
from fedmoe.errors import UserError
from fedmoe.report.partition_view import show_partition
from fedmoe.seeds import derive, numpy_generator, torch_generator


def no_image(i: int) -> Image.Image:
    raise AssertionError("a partition looks at no image")


def split_of(labels) -> Split:
    return Split(np.asarray(labels, dtype=np.int64), no_image)


@dataclass(frozen=True)
class Labels(DataSet):
    """A data set of labels only."""

    train_labels: list[int]
    test_labels: list[int]
    names: tuple[str, ...] = ("a", "b", "c", "d")
    name = "labels"

    def _read(self) -> RawData:
        return RawData(self.names, (), split_of(self.train_labels), split_of(self.test_labels))

    def _source_key(self) -> str:
        return "labels"


@st.composite
def problems(draw, max_clients=8):
    """(train, test, C, N, seed) with at least 2 N training examples."""
    num_classes, num_clients = draw(st.integers(1, 8)), draw(st.integers(1, max_clients))
    label = st.integers(0, num_classes - 1)
    train = draw(st.lists(label, min_size=2 * num_clients, max_size=120))
    test = draw(st.lists(label, max_size=60))
    return split_of(train), split_of(test), num_classes, num_clients, draw(st.integers(0, 2**40))


def matrix(clients, split, part, num_classes):
    """Class counts by plain counting, [N][C]."""
    counted = [Counter(split.labels[getattr(client, part)].tolist()) for client in clients]
    return np.array([[counter[c] for c in range(num_classes)] for counter in counted])


def assert_disjoint_cover(clients, train, test):
    for part, size in (("train", len(train)), ("test", len(test))):
        given_out = [i for client in clients for i in getattr(client, part).tolist()]
        assert sorted(given_out) == list(range(size))
        assert all(getattr(client, part).tolist() == sorted(getattr(client, part).tolist()) for client in clients)


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x.train, y.train) and np.array_equal(x.test, y.test) for x, y in zip(a, b, strict=True)
    )


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


@dataclass
class Fixed(Partition):
    """A user's own partition, which may be wrong."""

    clients: list[tuple[list[int], list[int]]]

    def split(self, train, test, num_classes, num_clients, seed):
        return [ClientIndices(np.array(own, np.int64), np.array(test, np.int64)) for own, test in self.clients]


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


def test_summary_counts():
    data = Labels([0, 0, 1, 3], [3, 1])
    clients = partition_dataset(data, Fixed([([0, 3], [0]), ([1, 2], [])]), 2, seed=0)
    assert partition_summary(data, clients) == {
        "class_names": ["a", "b", "c", "d"],
        "counts_train": [[1, 0, 0, 1], [1, 1, 0, 0]],
        "counts_test": [[0, 0, 0, 1], [0, 0, 0, 0]],
        "domains": None,
    }


def test_text_of_a_small_partition(tmp_path):
    summary = {
        "class_names": ["cat", "dog"],
        "counts_train": [[5, 0], [7, 11]],
        "counts_test": [[2, 0], [0, 0]],
        "domains": ["real", "sketch"],
    }
    text = show_partition(summary, tmp_path / "plots" / "partition.png")
    rows = [line.split() for line in text.splitlines()]
    assert ["client", "domain", "train", "test", "classes", "cat", "dog"] in rows
    assert ["0", "real", "5", "2", "1", "5", "·"] in rows
    assert ["1", "sketch", "18", "0", "2", "7", "11"] in rows
    assert "2 clients, 2 classes, 23 training and 2 test examples" in text
    assert "left out of evaluation: 1 clients (1)" in text
    assert not any(line.endswith(" ") for line in text.splitlines())
    with Image.open(tmp_path / "plots" / "partition.png") as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.format == "PNG" and min(image.size) > 300
    assert (pixels == (255, 255, 255)).all(axis=2).mean() < 0.97  # something is drawn


def test_text_and_picture_of_a_large_partition(tmp_path):
    counts = np.zeros((60, 100), dtype=int)
    counts[:, 7], counts[0, 3] = 3, 1
    summary = {
        "class_names": [f"class {c}" for c in range(100)],
        "counts_train": counts.tolist(),
        "counts_test": counts.tolist(),
        "domains": None,
    }
    text = show_partition(summary, tmp_path / "partition.png", max_rows=5)
    assert "class 7 75 %, class 3 25 %" in text and "class 7 100 %" in text
    assert "... and 55 more clients" in text and len(text.splitlines()) < 20
    with Image.open(tmp_path / "partition.png") as image:
        image.load()
        assert max(image.size) < 3000


@pytest.mark.parametrize(
    ("path", "digest"),  # of the JSON text, by coreutils: printf '[7,"local",3,12]' | b2sum -l 64
    [
        ((0,), 0xAC00623085BF099C),
        ((7, "local", 3, 12), 0x2A470007BCB67F89),
        ((-1, "1"), 0xC654B67E1B4FD1B3),
        ((-1, 1), 0x2350E433644B56B9),
    ],
)
def test_derived_seed(path, digest):
    assert derive(*path) == digest >> 1


@settings(max_examples=50)
@given(st.lists(st.one_of(st.integers(0, 30), st.text(max_size=3)), max_size=4))
def test_derived_seeds_fit_both_generators(keys):
    seed = derive(5, *keys)
    assert 0 <= seed < 2**63
    assert seed != derive(6, *keys) and seed != derive(5, *keys, 0)
    assert torch_generator(5, *keys).initial_seed() == seed
    assert numpy_generator(5, *keys).integers(2**62) == np.random.Generator(np.random.PCG64(seed)).integers(2**62)


def test_derive_takes_numpy_integers_and_nothing_fractional():
    assert derive(np.int64(3), np.int32(4)) == derive(3, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive(3, 1.0)  # type: ignore[arg-type]


def test_generators_touch_no_global_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(1, "a"))
    assert torch.equal(torch.get_rng_state(), before)
