"""What the tests of partitions share: data sets of labels only, clients counted plainly, and who has each example."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from fedmoe.data import ClientIndices, DataSet, Partition, Split
from fedmoe.data.base import RawData


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


@dataclass
class Fixed(Partition):
    """A user's own partition, which may be wrong."""

    clients: list[tuple[list[int], list[int]]]

    def split(self, train, test, num_classes, num_clients, seed):
        return [ClientIndices(np.array(own, np.int64), np.array(test, np.int64)) for own, test in self.clients]
