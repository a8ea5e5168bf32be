"""Partitions in which every client belongs to one domain (tables 3 and 4 of the paper).

Cheap to import (no torch).

Shape letters: N clients, D domains, n examples of a split.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmoe.data.base import DataSet, Split
from fedmoe.data.partition import ClientIndices, Partition, SeededPartition, dirichlet_split
from fedmoe.data.shares import MinimumNotReached
from fedmoe.errors import UserError
from fedmoe.seeds import derive, numpy_generator


class DomainPartition(Partition):
    """A partition of each domain over clients of its own. Clients are numbered domain by domain."""

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        largest = [int(part.domains.max()) for part in (train, test) if part.domains is not None and len(part)]
        names = [str(domain) for domain in range(1 + max(largest, default=-1))]
        return self._split(train, test, num_classes, num_clients, seed, "the data", names)

    def split_dataset(self, dataset: DataSet, num_clients: int, seed: int) -> list[ClientIndices]:
        train, test, num_classes = dataset.train, dataset.test, len(dataset.class_names)
        where = f"the data set {dataset.name!r}"
        return self._split(train, test, num_classes, num_clients, seed, where, dataset.domain_names)

    @abstractmethod
    def _per_domain(self) -> tuple[int, str]:
        """How many clients share a domain, and the words for that setting."""

    @abstractmethod
    def _deal(
        self, train: np.ndarray, test: np.ndarray, num_classes: int, seed: int, domain: str
    ) -> list[ClientIndices]:
        """Deal one domain's labels [n] out to its clients, as indices into these labels."""

    def _split(
        self,
        train: Split,
        test: Split,
        num_classes: int,
        num_clients: int,
        seed: int,
        where: str,
        names: Sequence[str],
    ) -> list[ClientIndices]:
        name = type(self).__name__
        if train.domains is None or (len(test) and test.domains is None):
            raise UserError(
                f"partition is {name}, which deals out each domain by itself, but {where} has no domains; valid is "
                "data with domains (DomainNet, OfficeCaltech10, DigitDomains, or ImageFolder with layout domains), or "
                "the partition IID, Dirichlet or Pathological."
            )
        present = np.unique(train.domains)
        untrained = [] if test.domains is None else np.setdiff1d(test.domains, present).tolist()
        if untrained:
            raise UserError(
                f"The domain {names[untrained[0]]!r} of {where} has test examples but no training example, so {name} "
                "can give it to no client; every domain needs both."
            )
        each, setting = self._per_domain()
        if num_clients != each * len(present):
            raise UserError(
                f"federation.clients is {num_clients}, but {name} gives each of the {len(present)} domains of {where} "
                f"{setting}; valid is {each * len(present)}."
            )
        clients = []
        for domain in present.tolist():
            own_train = np.flatnonzero(train.domains == domain)
            own_test = np.flatnonzero(test.domains == domain) if test.domains is not None else np.empty(0, np.int64)
            dealt = self._deal(
                train.labels[own_train],
                test.labels[own_test],
                num_classes,
                derive(seed, "partition", "domain", domain),  # else all domains would draw the same shares
                names[domain],
            )
            clients += [ClientIndices(own_train[client.train], own_test[client.test], domain) for client in dealt]
        return clients


@dataclass(frozen=True)
class DomainDirichlet(DomainPartition, SeededPartition):
    """Dir(alpha) within each domain: its examples are dealt out to ``clients_per_domain`` clients as by Dirichlet.

    A client's training and test part have the same class proportions, up to rounding. federation.clients must be the
    number of domains times ``clients_per_domain``.
    """

    alpha: float = 0.3
    """Concentration: small values give clients few classes, large ones make the clients of a domain alike."""
    clients_per_domain: int = 5
    """Clients that share one domain."""
    min_size: int = 5
    """Training examples that every client has at least."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"partition.alpha is {self.alpha!r}; valid is a finite number above 0.")
        for key in ("clients_per_domain", "min_size"):
            if getattr(self, key) < 1:
                raise UserError(f"partition.{key} is {getattr(self, key)!r}; valid is an integer of at least 1.")

    def _split(
        self,
        train: Split,
        test: Split,
        num_classes: int,
        num_clients: int,
        seed: int,
        where: str,
        names: Sequence[str],
    ) -> list[ClientIndices]:
        return super()._split(train, test, num_classes, num_clients, self._seed(seed), where, names)

    def _per_domain(self) -> tuple[int, str]:
        count = self.clients_per_domain
        return count, f"{count} client{'s' * (count != 1)} (partition.clients_per_domain)"

    def _deal(
        self, train: np.ndarray, test: np.ndarray, num_classes: int, seed: int, domain: str
    ) -> list[ClientIndices]:
        count, total = self.clients_per_domain, len(train)
        try:
            return dirichlet_split(train, test, num_classes, count, self.alpha, self.min_size, seed)
        except MinimumNotReached as error:
            start = f"partition.min_size is {self.min_size}, but "
            if count * self.min_size > total:
                raise UserError(
                    f"{start}the domain {domain!r} has {total} training examples, too few for {count} clients of "
                    f"{self.min_size} each; valid is "
                    + (f"at most {total // count}, or " if total >= count else "")
                    + f"partition.clients_per_domain of at most {total // self.min_size}."
                ) from error
            raise UserError(
                f"{start}no draw of Dir({self.alpha:g}) over {count} clients gave each that many of the {total} "
                f"training examples of the domain {domain!r} (the best gave {error.best}); valid is "
                + (f"at most {error.best}, " if error.best else "")
                + "a larger partition.alpha, or fewer partition.clients_per_domain."
            ) from error


@dataclass(frozen=True)
class OneDomainPerClient(DomainPartition):
    """Each client owns one whole domain; federation.clients must be the number of domains."""

    def _per_domain(self) -> tuple[int, str]:
        return 1, "to one client"

    def _deal(
        self, train: np.ndarray, test: np.ndarray, num_classes: int, seed: int, domain: str
    ) -> list[ClientIndices]:
        return [ClientIndices(np.arange(len(train)), np.arange(len(test)))]


@dataclass(frozen=True)
class DomainClasses(DomainPartition):
    """Each client has some of the classes of its domain, and the clients of a domain have different ones.

    The classes of a domain are shuffled and laid on a circle. Its clients start at even distances on it and take
    ``classes_per_client`` classes in a row, so each class has the same number of holders, give or take one. The holders
    of a class share its training and test examples evenly. federation.clients must be the number of domains times
    ``clients_per_domain``.
    """

    classes_per_client: int = 5
    """Classes of each client."""
    clients_per_domain: int = 4
    """Clients that share one domain."""
    shots: int | None = None
    """Training examples of each of its classes that a client gets, drawn with the run's seed; the others are not used.
    null: its whole share."""

    def __post_init__(self) -> None:
        for key in ("classes_per_client", "clients_per_domain"):
            if getattr(self, key) < 1:
                raise UserError(f"partition.{key} is {getattr(self, key)!r}; valid is an integer of at least 1.")
        if self.shots is not None and self.shots < 1:
            raise UserError(f"partition.shots is {self.shots!r}; valid is null or an integer of at least 1.")

    def _per_domain(self) -> tuple[int, str]:
        count = self.clients_per_domain
        return count, f"{count} client{'s' * (count != 1)} (partition.clients_per_domain)"

    def _deal(
        self, train: np.ndarray, test: np.ndarray, num_classes: int, seed: int, domain: str
    ) -> list[ClientIndices]:
        if self.classes_per_client > num_classes:
            raise UserError(
                f"partition.classes_per_client is {self.classes_per_client}, but there are {num_classes} classes; "
                f"valid is 1 to {num_classes}."
            )
        held = _arcs(num_classes, self.clients_per_domain, self.classes_per_client, seed)
        parts: dict[str, list[list[np.ndarray]]] = {}
        for name, labels in (("train", train), ("test", test)):
            parts[name] = [[] for _ in held]
            for label in range(num_classes):
                holders = [j for j, own in enumerate(held) if label in own]
                generator = numpy_generator(seed, "partition", "classes", name, label)
                shares = np.array_split(generator.permutation(np.flatnonzero(labels == label)), len(holders) or 1)
                for j, share in zip(holders, shares, strict=False):
                    parts[name][j].append(self._kept(share, label, domain) if name == "train" else share)
        return [
            ClientIndices(np.sort(np.concatenate(own)), np.sort(np.concatenate(tested)))
            for own, tested in zip(parts["train"], parts["test"], strict=True)
        ]

    def _kept(self, share: np.ndarray, label: int, domain: str) -> np.ndarray:
        if self.shots is not None and len(share) < self.shots:
            raise UserError(
                f"partition.shots is {self.shots}, but of the class {label} in the domain {domain!r} some client has "
                f"only {len(share)} training examples; valid is null"
                + (f", or at most {len(share)}." if len(share) else ".")
            )
        return share[: self.shots]


def _arcs(num_classes: int, clients: int, each: int, seed: int) -> list[np.ndarray]:
    """Each client's classes: ``each`` in a row on a circle of all, in a random order, from evenly spaced starts."""
    order = numpy_generator(seed, "partition", "classes", "order").permutation(num_classes)
    starts = [client * num_classes // clients for client in range(clients)]
    return [order[(start + np.arange(each)) % num_classes] for start in starts]
