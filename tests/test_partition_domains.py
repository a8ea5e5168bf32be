"""Partitions of data with domains: properties for random labels, expected errors, and the client's domain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_helpers import assert_disjoint_cover
from PIL import Image
from streams import derived

from fedmoe.data import IID, Digits, Dirichlet, Pathological, partition_dataset, partition_summary
from fedmoe.data.base import DataSet, RawData, Split
from fedmoe.data.partition_domains import DomainDirichlet, OneDomainPerClient
from fedmoe.data.subset import SubsetConfig
from fedmoe.errors import UserError


def split_of(labels, domains):
    return Split(
        np.array(labels, dtype=np.int64), lambda i: Image.new("RGB", (2, 2)), np.array(domains, dtype=np.int64)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Domains(DataSet):
    """Given (label, domain) pairs of train and test; classes a to j, domains sea, air and land."""

    train_pairs: list
    test_pairs: list
    name = "domains"

    def _read(self):
        splits = [
            split_of([a for a, _ in pairs], [b for _, b in pairs]) for pairs in (self.train_pairs, self.test_pairs)
        ]
        return RawData(tuple("abcdefghij"), ("sea", "air", "land"), *splits)

    def _source_key(self):
        return "domains"


@st.composite
def problems(draw):
    """(train, test, C, domains, clients per domain, seed): each domain has 2 training examples for each client."""
    num_classes, num_domains, each = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    label = st.integers(0, num_classes - 1)
    pairs = [
        (draw(st.lists(label, min_size=2 * each, max_size=40)), draw(st.lists(label, max_size=20)))
        for _ in range(num_domains)
    ]
    splits = []
    for part in (0, 1):
        flat = [(c, d) for d, parts in enumerate(pairs) for c in parts[part]]
        flat = draw(st.permutations(flat))
        splits.append(split_of([c for c, _ in flat], [d for _, d in flat]))
    return *splits, num_classes, num_domains, each, draw(st.integers(0, 2**40))


def assert_own_domain(clients, train, test):
    for client in clients:
        assert (train.domains[client.train] == client.domain).all()
        assert (test.domains[client.test] == client.domain).all()


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.3, 1.0, 100.0]))
def test_each_domain_is_dealt_out_to_clients_of_its_own(problem, alpha):
    train, test, num_classes, num_domains, each, seed = problem
    partition = DomainDirichlet(alpha=alpha, clients_per_domain=each, min_size=1)
    try:
        clients = partition.split(train, test, num_classes, num_domains * each, seed)
    except UserError as error:  # few examples under a small alpha: allowed to fail, but not silently
        assert "partition.min_size" in str(error)
        return
    assert [client.domain for client in clients] == [d for d in range(num_domains) for _ in range(each)]
    assert_disjoint_cover(clients, train, test)
    assert_own_domain(clients, train, test)
    assert min(len(client.train) for client in clients) >= 1
    for domain in range(num_domains):  # the same class proportions in train and test, up to one example each
        own = [client for client in clients if client.domain == domain]
        for c in range(num_classes):
            n_train = int(((train.labels == c) & (train.domains == domain)).sum())
            n_test = int(((test.labels == c) & (test.domains == domain)).sum())
            if n_train and n_test:
                for client in own:
                    a = (train.labels[client.train] == c).sum() / n_train
                    b = (test.labels[client.test] == c).sum() / n_test
                    assert abs(a - b) <= 1 / n_train + 1 / n_test + 1e-12


@settings(max_examples=30, deadline=None)
@given(problems())
def test_one_domain_per_client_gives_whole_domains(problem):
    train, test, num_classes, num_domains, _, seed = problem
    clients = OneDomainPerClient().split(train, test, num_classes, num_domains, seed)
    assert [client.domain for client in clients] == list(range(num_domains))
    assert_disjoint_cover(clients, train, test)
    assert_own_domain(clients, train, test)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 6), st.integers(1, 8))
def test_a_demanding_minimum_is_kept_in_every_domain(seed, each, min_size):
    train = split_of(np.arange(600) % 10, np.arange(600) // 10 % 3)
    test = split_of(np.arange(150) % 10, np.arange(150) // 10 % 3)
    clients = DomainDirichlet(alpha=1.0, clients_per_domain=each, min_size=min_size).split(
        train, test, 10, 3 * each, seed
    )
    assert min(len(client.train) for client in clients) >= min_size


@pytest.mark.parametrize("alpha", [0.1, 0.3, 3.0])
def test_shares_within_a_domain_have_the_distribution_s_variance(alpha):
    """Of Dir(alpha) over N: mean 1/N, variance (1/N)(1 - 1/N) / (N alpha + 1)."""
    num_classes, each, size = 500, 5, 200
    labels = np.tile(np.repeat(np.arange(num_classes), size), 2)
    train = split_of(labels, np.repeat([0, 1], num_classes * size))
    clients = DomainDirichlet(alpha=alpha, min_size=1).split(train, split_of([], []), num_classes, 2 * each, seed=1)
    shares = np.array([np.bincount(labels[c.train], minlength=num_classes) for c in clients]) / size  # [N, C]
    expected = (1 / each) * (1 - 1 / each) / (each * alpha + 1)
    for domain in (0, 1):
        assert shares[domain * each : (domain + 1) * each].var() == pytest.approx(expected, rel=0.15)
    # Domains draw shares of their own: no client of one has the shares of a client of the other.
    assert np.abs(np.corrcoef(shares[:each].ravel(), shares[each:].ravel())[0, 1]) < 0.1


def pairs(per_domain, count=30):
    return [(i % 10, domain) for domain in per_domain for i in range(count)]


@pytest.fixture
def data():
    return Domains(train_pairs=pairs([0, 1, 2]), test_pairs=pairs([0, 1, 2], 10))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40))
def test_the_paper_s_setting_works_on_domains_as_small_as_office_caltech_s(seed):
    """Table 4: Dir(0.3), 5 clients in each of 4 domains; sizes of 766, 898, 125 and 236 training examples."""
    train, test = (
        split_of(np.concatenate([np.arange(n) % 10 for n in sizes]), np.repeat(np.arange(4), sizes))
        for sizes in ([766, 898, 125, 236], [192, 225, 32, 59])
    )
    clients = DomainDirichlet().split(train, test, 10, 20, seed)
    assert_disjoint_cover(clients, train, test)
    assert_own_domain(clients, train, test)
    assert min(len(client.train) for client in clients) >= 5


def test_clients_carry_the_name_of_their_domain(data):
    clients = partition_dataset(data, DomainDirichlet(alpha=1.0, clients_per_domain=2, min_size=2), 6, seed=0)
    assert partition_summary(data, clients)["domains"] == ["sea", "sea", "air", "air", "land", "land"]


def test_the_seed_alone_decides(data):
    def counts(seed):
        clients = partition_dataset(data, DomainDirichlet(alpha=0.5, clients_per_domain=2, min_size=1), 6, seed)
        return [client.train.tolist() for client in clients]

    assert counts(3) == counts(3) != counts(4)


@pytest.mark.parametrize("partition", [Dirichlet(1.0, 1), Pathological(), IID()], ids=lambda p: type(p).__name__)
def test_partitions_that_know_no_domains_take_data_with_domains(data, partition):
    clients = partition_dataset(data, partition, 5, seed=0)
    assert_disjoint_cover(clients, data.train, data.test)
    assert partition_summary(data, clients)["domains"] is None


def test_a_domain_left_out_needs_no_clients():
    data = Domains(train_pairs=pairs([0, 2]), test_pairs=pairs([0, 2], 10))
    clients = partition_dataset(data, OneDomainPerClient(), 2, seed=0)
    assert partition_summary(data, clients)["domains"] == ["sea", "land"]


def test_fewer_classes_work_with_every_domain(data):
    small = Domains(train_pairs=data.train_pairs, test_pairs=data.test_pairs, subset=SubsetConfig(classes=2))
    clients = partition_dataset(small, DomainDirichlet(alpha=1.0, clients_per_domain=2, min_size=1), 6, seed=0)
    summary = partition_summary(small, clients)
    assert np.array(summary["counts_train"]).sum(axis=0).tolist() == [9, 9]  # 3 domains with 3 of each class


@pytest.mark.parametrize(
    ("make", "clients", "sentence"),
    [
        (lambda: DomainDirichlet(alpha=0), 15, "partition.alpha is 0; valid is a finite number above 0."),
        (lambda: DomainDirichlet(alpha=float("inf")), 15, "partition.alpha is inf; valid"),
        (lambda: DomainDirichlet(clients_per_domain=0), 15, "partition.clients_per_domain is 0; valid"),
        (lambda: DomainDirichlet(min_size=0), 15, "partition.min_size is 0; valid"),
        (
            DomainDirichlet,
            10,
            "federation.clients is 10, but DomainDirichlet gives each of the 3 domains of the data set 'domains' 5 "
            "clients (partition.clients_per_domain); valid is 15.",
        ),
        (
            OneDomainPerClient,
            10,
            "federation.clients is 10, but OneDomainPerClient gives each of the 3 domains of the data set 'domains' "
            "to one client; valid is 3.",
        ),
        (
            lambda: DomainDirichlet(min_size=7),
            15,
            "the domain 'sea' has 30 training examples, too few for 5 clients of 7 each; valid is at most 6, or "
            "partition.clients_per_domain of at most 4.",
        ),
        (lambda: DomainDirichlet(clients_per_domain=40), 120, "valid is partition.clients_per_domain of at most 6."),
    ],
)
def test_what_cannot_be_is_one_sentence(data, make, clients, sentence):
    with pytest.raises(UserError) as error:
        partition_dataset(data, make(), clients, seed=0)
    assert sentence in str(error.value)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize("partition", [DomainDirichlet(), OneDomainPerClient()], ids=lambda p: type(p).__name__)
def test_data_without_domains_are_refused(partition):
    with pytest.raises(UserError) as error:
        partition_dataset(Digits(), partition, 10, seed=0)
    assert "the data set 'digits' has no domains; valid is data with domains (DomainNet" in str(error.value)
    assert str(error.value).endswith("the partition IID, Dirichlet or Pathological.")


def test_a_domain_without_training_examples_is_named():
    data = Domains(train_pairs=pairs([0, 1]), test_pairs=pairs([0, 1, 2], 10))
    with pytest.raises(
        UserError, match="The domain 'land' of the data set 'domains' has test examples but no training"
    ):
        partition_dataset(data, OneDomainPerClient(), 2, seed=0)


def test_a_domain_that_no_draw_suits_is_named():
    """One class over five clients under a tiny alpha: one client gets all of it."""
    data = Domains(train_pairs=[(0, 1)] * 30, test_pairs=[])
    with pytest.raises(UserError) as error:
        partition_dataset(data, DomainDirichlet(alpha=1e-4, min_size=6), 5, seed=0)
    assert "of the 30 training examples of the domain 'air' (the best gave 0); valid is a larger" in str(error.value)
    assert "partition.clients_per_domain" in str(error.value)


@pytest.mark.parametrize(
    ("make", "per_domain", "sentence"),
    [
        (
            lambda: DomainDirichlet(clients_per_domain=1),
            2,
            "federation.clients is 2, but DomainDirichlet gives each of the 3 domains of the data set 'domains' 1 "
            "client (partition.clients_per_domain); valid is 3.",
        ),
        (
            lambda: DomainDirichlet(clients_per_domain=2),
            2,
            "federation.clients is 2, but DomainDirichlet gives each of the 3 domains of the data set 'domains' 2 "
            "clients (partition.clients_per_domain); valid is 6.",
        ),
        (
            lambda: DomainDirichlet(clients_per_domain=30, min_size=2),
            90,
            "partition.min_size is 2, but the domain 'sea' has 30 training examples, too few for 30 clients of 2 "
            "each; valid is at most 1, or partition.clients_per_domain of at most 15.",
        ),
        (
            lambda: DomainDirichlet(clients_per_domain=40, min_size=4),
            120,
            "partition.min_size is 4, but the domain 'sea' has 30 training examples, too few for 40 clients of 4 "
            "each; valid is partition.clients_per_domain of at most 7.",
        ),
    ],
)
def test_whole_sentences(data, make, per_domain, sentence):
    with pytest.raises(UserError) as error:
        partition_dataset(data, make(), per_domain, seed=0)
    assert str(error.value) == sentence


def test_a_minimum_that_was_nearly_reached_is_offered():
    """Five clients of 31 examples in a thousand draws of Dir(0.3): nobody will get just 6, or 7 one of them."""
    one_class = Domains(train_pairs=[(0, 1)] * 31, test_pairs=[])
    with pytest.raises(UserError) as error:
        partition_dataset(one_class, DomainDirichlet(alpha=0.3, clients_per_domain=5, min_size=6), 5, seed=0)
    message = str(error.value)
    reached = int(message.split("(the best gave ")[1].split(")")[0])
    assert 0 < reached < 6
    assert message == (
        "partition.min_size is 6, but no draw of Dir(0.3) over 5 clients gave each that many of the 31 training "
        f"examples of the domain 'air' (the best gave {reached}); valid is at most {reached}, a larger "
        "partition.alpha, or fewer partition.clients_per_domain."
    )
    offered = DomainDirichlet(alpha=0.3, clients_per_domain=5, min_size=reached)
    clients = partition_dataset(one_class, offered, 5, seed=0)
    assert min(len(client.train) for client in clients) == reached


def test_domains_without_names_go_by_their_numbers():
    with pytest.raises(UserError) as error:
        OneDomainPerClient().split(split_of([0, 1], [0, 1]), split_of([0, 0], [1, 2]), 2, 2, seed=0)
    assert str(error.value) == (
        "The domain '2' of the data has test examples but no training example, so OneDomainPerClient can give it to "
        "no client; every domain needs both."
    )


def test_without_examples_there_are_no_domains():
    assert OneDomainPerClient().split(split_of([], []), split_of([], []), 2, 0, seed=0) == []
    with pytest.raises(UserError) as error:
        OneDomainPerClient().split(split_of([], []), split_of([], []), 2, 1, seed=0)
    assert str(error.value) == (
        "federation.clients is 1, but OneDomainPerClient gives each of the 0 domains of the data to one client; valid "
        "is 0."
    )


def without_domains(labels):
    return Split(np.array(labels, dtype=np.int64), lambda i: Image.new("RGB", (2, 2)))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (without_domains([0, 1]), split_of([0], [0])),
        (split_of([0, 1], [0, 0]), without_domains([0])),
        (without_domains([0, 1]), without_domains([])),
    ],
)
def test_either_split_without_domains_is_refused(train, test):
    with pytest.raises(UserError, match="but the data has no domains; valid is data with domains"):
        OneDomainPerClient().split(train, test, 2, 1, seed=0)


@pytest.mark.parametrize(
    "partition", [OneDomainPerClient(), DomainDirichlet(1.0, 1, 1)], ids=lambda p: type(p).__name__
)
def test_an_empty_test_split_needs_no_domains(partition):
    clients = partition.split(split_of([0, 1, 1], [0, 1, 1]), without_domains([]), 2, 2, seed=0)
    assert [client.train.tolist() for client in clients] == [[0], [1, 2]]
    assert [client.test.tolist() for client in clients] == [[], []]
    assert all(client.test.dtype == np.int64 for client in clients)


def test_a_domain_is_dealt_out_as_dirichlet_does_with_the_domain_s_own_seed():
    train, test = (split_of(np.arange(n) % 4, np.arange(n) // 4 % 3) for n in (360, 120))
    clients = DomainDirichlet(alpha=0.7, clients_per_domain=3, min_size=2).split(train, test, 4, 9, seed=5)
    for domain in range(3):
        own = [np.flatnonzero(part.domains == domain) for part in (train, test)]
        own_train, own_test = (Split(part.labels[i], part.image) for part, i in zip((train, test), own, strict=True))
        expected = Dirichlet(0.7, 2).split(
            own_train, own_test, 4, 3, seed=derived(f'[5,"partition","domain",{domain}]')
        )
        for client, one in zip(clients[3 * domain : 3 * domain + 3], expected, strict=True):
            assert client.train.tolist() == own[0][one.train].tolist()
            assert client.test.tolist() == own[1][one.test].tolist()
