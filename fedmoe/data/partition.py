"""How examples are dealt out to clients: pure functions of the labels and a seed.

A partition draws from generators of its own, so the same seed gives the same split whatever ran before it. How many
examples of a class a client gets under Dirichlet and Pathological does not depend on the order of the examples in the
data set. Cheap to import (no torch).

Shape letters: N clients, C classes, n examples of a split.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from fedmoe.data.base import DataSet, Split, check_dataset
from fedmoe.data.partition_coarse import coarse_split
from fedmoe.data.shares import MAX_DRAWS, MinimumNotReached, class_counts, cut_points, dirichlet_shares
from fedmoe.errors import UserError
from fedmoe.seeds import numpy_generator


@dataclass(frozen=True, eq=False)
class ClientIndices:
    """The examples of one client: ascending indices into the data set's train and test split, and its domain.

    ``train_images`` and ``test_images`` are the indices of the images that go with these examples' labels; None: their
    own.
    """

    train: np.ndarray
    test: np.ndarray
    domain: int | None = None
    train_images: np.ndarray | None = None
    test_images: np.ndarray | None = None

    @property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices of the training and of the test images, in the order of ``train`` and ``test``."""
        train, test = self.train_images, self.test_images
        return self.train if train is None else train, self.test if test is None else test


class Partition(ABC):
    """A rule that gives examples to clients, none to more than one of them."""

    @abstractmethod
    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        """One ClientIndices for each of ``num_clients`` clients.

        Raises:
            UserError: the rule cannot be kept with this many clients, classes or examples.
        """

    def split_dataset(self, dataset: DataSet, num_clients: int, seed: int) -> list[ClientIndices]:
        """``split`` of a data set; a rule that names domains in its messages overrides it."""
        return self.split(dataset.train, dataset.test, len(dataset.class_names), num_clients, seed)


@dataclass(frozen=True, kw_only=True)
class SeededPartition(Partition):
    """A partition that draws."""

    seed: int | None = None
    """Seed of the draws, for the same clients whatever the run's seed; null: the run's seed."""

    def _seed(self, run: int) -> int:
        return run if self.seed is None else self.seed


@dataclass(frozen=True)
class Dirichlet(SeededPartition):
    """Dir(alpha): for each class, the clients' shares are one draw of a symmetric Dirichlet distribution.

    The same shares cut the training and the test examples, so a client's test labels are distributed as its training
    labels, up to rounding (by less than one example of a class). All shares are drawn anew until every client has
    ``min_size`` training and ``min_test`` test examples; with ``min_test`` 0, a client may be left without any.

    pFedMoAP's released code deals CIFAR-10 out with ``cap`` and ``min_test`` 10, and CIFAR-100 with ``over: coarse``
    and ``seed`` 12345. Its rules are followed, not its random numbers: the clients are others than there. How it caps
    is known of loaders of the same origin, as is what it does within a coarse class.
    """

    alpha: float = 0.5
    """Concentration: small values give clients few classes, large ones make clients alike."""
    min_size: int = 10
    """Training examples that every client has at least."""
    min_test: int = field(default=0, kw_only=True)
    """Test examples that every client has at least."""
    cap: bool = field(default=False, kw_only=True)
    """Whether a client that has reached the average number of training examples gets nothing of the classes that are
    dealt out after that."""
    over: Literal["classes", "coarse"] = field(default="classes", kw_only=True)
    """classes: shares of each class; coarse: each client draws Dir(alpha) over the coarse classes that the data set
    knows (20 of CIFAR-100), and Dir(10) within each; all clients then have the same number of examples."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"partition.alpha is {self.alpha!r}; valid is a finite number above 0.")
        if self.min_size < 1:
            raise UserError(f"partition.min_size is {self.min_size!r}; valid is an integer of at least 1.")
        if self.min_test < 0:
            raise UserError(f"partition.min_test is {self.min_test!r}; valid is an integer of at least 0.")
        if self.over not in ("classes", "coarse"):
            raise UserError(f"partition.over is {self.over!r}; valid is classes or coarse.")
        if self.cap and self.over == "coarse":
            raise UserError(
                "partition.cap is true, but with partition.over = coarse all sizes are equal; valid is false."
            )

    def split_dataset(self, dataset: DataSet, num_clients: int, seed: int) -> list[ClientIndices]:
        if self.over == "classes":
            return super().split_dataset(dataset, num_clients, seed)
        if dataset.coarse is None:
            raise UserError(
                f"partition.over is 'coarse', but the data set {dataset.name!r} knows no coarse classes; valid is "
                "classes, or the data set CIFAR100."
            )
        coarse = np.array(dataset.coarse[: len(dataset.class_names)])
        train, test = dataset.train.labels, dataset.test.labels
        dealt = coarse_split(train, test, coarse, num_clients, self.alpha, self._seed(seed))
        for key, part in (("min_size", 0), ("min_test", 1)):
            least = min(len(own[part]) for own in dealt)
            if least < getattr(self, key):
                raise UserError(
                    f"partition.{key} is {getattr(self, key)}, but with partition.over = coarse, of {num_clients} "
                    f"clients one gets {least} {('training', 'test')[part]} examples; valid is at most {least}, or "
                    "fewer federation.clients."
                )
        return [ClientIndices(*own) for own in dealt]

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        if self.over == "coarse":
            raise UserError("partition.over is 'coarse', which needs a data set that knows its coarse classes.")
        total = len(train)
        try:
            return dirichlet_split(
                *(train.labels, test.labels, num_classes, num_clients, self.alpha, self.min_size, self._seed(seed)),
                min_test=self.min_test,
                cap=self.cap,
            )
        except MinimumNotReached as error:
            if error.part == "test":
                raise UserError(
                    f"partition.min_test is {self.min_test}, but in {MAX_DRAWS} draws of Dir({self.alpha:g}) over "
                    f"{num_clients} clients and {len(test)} test examples one client never had more than {error.best}; "
                    f"valid is at most {error.best}, a larger partition.alpha, or fewer federation.clients."
                ) from error
            if num_clients * self.min_size > total:
                raise UserError(
                    f"partition.min_size is {self.min_size}, but {total} training examples cannot give {num_clients} "
                    f"clients {self.min_size} each; valid is "
                    + (f"at most {total // num_clients}, or " if total >= num_clients else "")
                    + f"federation.clients of at most {total // self.min_size}."
                ) from error
            raise UserError(
                f"partition.min_size is {self.min_size}, but in {MAX_DRAWS} draws of Dir({self.alpha:g}) over "
                f"{num_clients} clients and {total} training examples the smallest client never had more than "
                f"{error.best}; valid is "
                + (f"at most {error.best}, " if error.best else "")
                + "a larger partition.alpha, or fewer federation.clients."
            ) from error


@dataclass(frozen=True)
class Pathological(SeededPartition):
    """Each client owns random classes of its own, C / N of them (one more or less where N does not divide C)."""

    sizes: Literal["even", "rounded"] = "even"
    """Where N does not divide C: even, C / N rounded up or down; rounded: round(C / N) for each client, and what
    remains for the last one, as in pFedMoAP's released code, which also has the same classes for all seeds."""

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        if num_clients > num_classes:
            raise UserError(
                f"federation.clients is {num_clients}, but the pathological partition gives each client classes of "
                f"its own and there are {num_classes} classes; valid is 1 to {num_classes}."
            )
        order = numpy_generator(self._seed(seed), "partition", "pathological").permutation(num_classes)
        owned = np.array_split(order, num_clients)
        if self.sizes == "rounded":
            each = round(num_classes / num_clients)
            if each * (num_clients - 1) >= num_classes:
                raise UserError(
                    f"partition.sizes is 'rounded', but {num_clients - 1} clients with {each} of {num_classes} classes "
                    "each leave none for the last one; valid is even, or another number of federation.clients."
                )
            owned = np.split(order, [each * i for i in range(1, num_clients)])
        return [ClientIndices(_members(train.labels, own), _members(test.labels, own)) for own in owned]


@dataclass(frozen=True)
class IID(SeededPartition):
    """Examples are shuffled and dealt out evenly, without regard to their labels."""

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        if num_clients > len(train):
            raise UserError(
                f"federation.clients is {num_clients}, but there are {len(train)} training examples; "
                f"valid is 1 to {len(train)}."
            )
        orders = (
            numpy_generator(self._seed(seed), "partition", "iid", name).permutation(len(split))
            for name, split in (("train", train), ("test", test))
        )
        parts = ([np.sort(part) for part in np.array_split(order, num_clients)] for order in orders)
        return [ClientIndices(*client) for client in zip(*parts, strict=True)]


def partition_dataset(dataset: DataSet, partition: Partition, num_clients: int, seed: int) -> list[ClientIndices]:
    """Check the data set, split it, and check the result.

    Raises:
        UserError: labels without names; a rule that cannot be kept; a client without training examples; an example
            given to two clients, or one that does not exist (a faulty partition class).
    """
    check_dataset(dataset)
    clients = partition.split_dataset(dataset, num_clients, seed)
    name = type(partition).__name__
    if len(clients) != num_clients:
        raise UserError(f"The partition {name} made {len(clients)} clients, but federation.clients is {num_clients}.")
    for part, size in (("train", len(dataset.train)), ("test", len(dataset.test))):
        taken = np.concatenate([getattr(client, part) for client in clients])
        if len(taken) and (taken.min() < 0 or taken.max() >= size):
            raise UserError(f"The partition {name} gave out {part} examples that do not exist; there are {size}.")
        if len(np.unique(taken)) != len(taken):
            raise UserError(f"The partition {name} gave a {part} example to more than one client.")
    empty = [i for i, client in enumerate(clients) if not len(client.train)]
    if empty:
        raise UserError(
            f"Under the partition {name}, {len(empty)} of {num_clients} clients have no training examples (the first "
            f"is client {empty[0]}); every client needs at least 1: fewer federation.clients or another partition."
        )
    return [mispaired(dataset, client, i, seed) for i, client in enumerate(clients)] if dataset.mispairs else clients


def mispaired(dataset: DataSet, client: ClientIndices, client_id: int, seed: int) -> ClientIndices:
    """The client with other images for its labels: if it has n examples, these are the first n images of its domain (of
    the split, where there are no domains), in random order.

    The released loaders index a domain's labels by the client's list of examples, in random order, and its images not
    at all.
    """
    images = []
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        members = np.arange(len(split))
        if split.domains is not None and client.domain is not None:
            members = np.flatnonzero(split.domains == client.domain)
        first = members[: len(getattr(client, part))]
        images.append(numpy_generator(seed, "partition", "mispaired", part, client_id).permutation(first))
    return replace(client, train_images=images[0], test_images=images[1])


def partition_summary(dataset: DataSet, clients: Sequence[ClientIndices]) -> dict[str, Any]:
    """What partition.json holds: class names, class counts [N][C] of train and test, and the clients' domains."""
    domains = [client.domain for client in clients]
    counts = {
        f"counts_{part}": [
            class_counts(split.labels[getattr(client, part)], len(dataset.class_names)).tolist() for client in clients
        ]
        for part, split in (("train", dataset.train), ("test", dataset.test))
    }
    named = [None if domain is None else dataset.domain_names[domain] for domain in domains]
    return {"class_names": list(dataset.class_names), **counts, "domains": named if any(named) else None}


def dirichlet_split(
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    num_clients: int,
    alpha: float,
    min_size: int,
    seed: int,
    *,
    min_test: int = 0,
    cap: bool = False,
) -> list[ClientIndices]:
    """Deal training and test examples out by the same Dir(alpha) shares of each class.

    Raises:
        MinimumNotReached: in no draw did every client have ``min_size`` training and ``min_test`` test examples.
    """
    train, test = (class_counts(labels, num_classes) for labels in (train_labels, test_labels))
    shares = dirichlet_shares(train, test, num_clients, alpha, (min_size, min_test), cap, seed)
    parts = [
        _deal_classes(labels, shares, numpy_generator(seed, "partition", "dirichlet", name))
        for name, labels in (("train", train_labels), ("test", test_labels))
    ]
    return [ClientIndices(*client) for client in zip(*parts, strict=True)]


def _members(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Ascending indices of all examples of these classes."""
    return np.flatnonzero(np.isin(labels, classes))


def _deal_classes(labels: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Ascending example indices of each client: every class is shuffled, then cut by its shares [C, N]."""
    num_classes, num_clients = shares.shape
    cuts = cut_points(shares, class_counts(labels, num_classes))
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in range(num_classes):
        members = generator.permutation(np.flatnonzero(labels == label))
        for part, start, stop in zip(parts, cuts[label, :-1], cuts[label, 1:], strict=True):
            part.append(members[start:stop])
    return [np.sort(np.concatenate(part)) for part in parts]
