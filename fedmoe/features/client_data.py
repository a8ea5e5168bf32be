"""Features and labels of all clients in memory, and the batches of one client.

Shape letters: b images of a batch, n examples, N clients, C classes, V views, d feature width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedmoe.config import FeatureConfig, FederationConfig, ViewsConfig
from fedmoe.data.base import DataSet
from fedmoe.data.partition import ClientIndices, Partition, partition_dataset, partition_summary
from fedmoe.data.validation import split_clients
from fedmoe.errors import UserError
from fedmoe.features.encoders import clip_encoder, extract_dataset, plain_inputs
from fedmoe.features.extraction import Encoder
from fedmoe.features.views import OnlineViews, Stamp, ViewInputs

if TYPE_CHECKING:
    from fedmoe.models.clip import FrozenCLIP


@dataclass(frozen=True, eq=False)
class ClientData:
    """What one client owns. The tensors are views that clients share memory through: never write to them."""

    client_id: int
    train_features: Tensor  # [n, d] float32, l2-normalized; [n, V, d] of cached views; [n] image indices where online
    train_labels: Tensor  # [n] int64
    test_features: Tensor  # [m, d]; m may be 0
    test_labels: Tensor  # [m]
    domain: str | None = None
    views: bool = False  # whether train_features are of cached views
    online: OnlineViews | None = None  # encodes training images, where no training features are kept
    validation_features: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # [v, d], held out of training
    validation_labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # [v]; v may be 0

    def training_batches(self, batch_size: int, generator: torch.Generator, drop_last: bool = False) -> FeatureBatches:
        """Batches (features [b, d], labels [b]) for a Trainer; each pass draws order and views from ``generator``.

        With ``drop_last``, a pass leaves its last batch out if that is incomplete, unless it is the only one."""
        views = self.views if self.online is None else self.online
        drop_last = drop_last and len(self.train_labels) >= batch_size
        return FeatureBatches(
            self.train_features, self.train_labels, batch_size, generator, views=views, drop_last=drop_last
        )


class FederatedData:
    """The features and labels of every client.

    Features are stored once, ordered by client, so that a client's data are slices and cost nothing to take.

    Args:
        dataset: gives class names, domain names and labels.
        clients: which examples each client owns; one that owns no test examples is left out of evaluation.
        train_features, test_features: [n, d] float32 in the order of the data set's splits; training features may be
            [n, V, d], of V views of each image, or what encodes training images online.
        held_out: for each client, the indices of the training examples that are its validation split, and are none of
            ``clients``; None: nobody has one.
        plain_features: [n, d], of the training images without augmentation, for validation; None: ``train_features``.
        damaged: names of the training and of the test images that cannot be read, by index. Their examples are left
            out: the other examples belong to the same clients as if nothing were damaged.

    Raises:
        UserError: a client has no training examples.
        ValueError: features do not fit the splits.
    """

    def __init__(
        self,
        dataset: DataSet,
        clients: Sequence[ClientIndices],
        train_features: Tensor | OnlineViews,
        test_features: Tensor,
        damaged: tuple[Mapping[int, str], Mapping[int, str]] = ({}, {}),
        *,
        held_out: Sequence[np.ndarray] | None = None,
        plain_features: Tensor | None = None,
    ) -> None:
        self.name = dataset.name
        self.class_names = dataset.class_names
        self.domain_names = dataset.domain_names
        self.template = dataset.template
        used = [_readable(client, damaged) for client in clients]
        for client_id, (client, before) in enumerate(zip(used, clients, strict=True)):
            if not len(client.train):
                why = f": all {len(before.train)} of its images cannot be read" if len(before.train) else ""
                raise UserError(f"Client {client_id} has no training examples{why}; every client needs at least 1.")
        self._summary = partition_summary(dataset, used)
        if any(damaged):
            names = {part: list(found.values()) for part, found in zip(("train", "test"), damaged, strict=True)}
            self._summary["left_out"] = names
        self._domains: list[str | None] = self._summary["domains"] or [None] * len(clients)
        self._online = train_features if isinstance(train_features, OnlineViews) else None
        given = torch.arange(len(dataset.train)) if isinstance(train_features, OnlineViews) else train_features
        self._views = given.ndim == test_features.ndim + 1
        self.feature_dim = test_features.shape[-1]
        images = [client.images for client in used]
        self._train = _by_client(given, dataset.train.labels, [c.train for c in used], [own for own, _ in images])
        self._test = _by_client(test_features, dataset.test.labels, [c.test for c in used], [own for _, own in images])
        self._test_of: dict[str | None, tuple[Tensor, Tensor]] = {}  # of all clients of a domain, made when asked for
        self._validation = [(test_features[:0], self._test[0][1][:0])] * len(used)
        if held_out is not None:
            indices = [_without(own, damaged[0]) for own in held_out]
            source = given if plain_features is None else plain_features
            self._validation = _by_client(source, dataset.train.labels, indices, indices)
            count = len(dataset.class_names)
            counts = [np.bincount(dataset.train.labels[own], minlength=count).tolist() for own in indices]
            self._summary["counts_validation"] = counts

    @property
    def num_clients(self) -> int:
        return len(self._train)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def client(self, client_id: int) -> ClientData:
        """The data of one client, 0 to N - 1."""
        if not 0 <= client_id < self.num_clients:
            raise IndexError(f"client {client_id} of {self.num_clients}")
        held_out_features, held_out_labels = self._validation[client_id]
        return ClientData(
            client_id,
            *self._train[client_id],
            *self._test[client_id],
            domain=self._domains[client_id],
            views=self._views,
            online=self._online,
            validation_features=held_out_features,
            validation_labels=held_out_labels,
        )

    def others_test(self, client_id: int) -> tuple[Tensor, Tensor]:
        """Test images of classes that the client has no training images of, and their labels: [m, d] and [m].

        They are all clients', or, where the data has domains, those of all clients of the client's domain.
        """
        domain = self._domains[client_id]
        if domain not in self._test_of:
            members = [own for own, where in zip(self._test, self._domains, strict=True) if where == domain]
            features, labels = zip(*members, strict=True)
            self._test_of[domain] = (torch.cat(features), torch.cat(labels))
        features_of, labels_of = self._test_of[domain]
        unknown = ~torch.isin(labels_of, self._train[client_id][1])
        return features_of[unknown], labels_of[unknown]

    def with_training(self, examples: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> FederatedData:
        """The same clients, each of which trains on some of its training examples only; nothing else changes.

        Args:
            examples: for each client, at least one place [k] among its training examples.
            labels: for each client, the labels [k] that go with them; None: their own.
        """
        own = [(f[chosen], y[chosen]) for (f, y), chosen in zip(self._train, examples, strict=True)]
        if labels is not None:
            own = [(f, given) for (f, _), given in zip(own, labels, strict=True)]
        counts = [torch.bincount(y, minlength=self.num_classes).tolist() for _, y in own]
        other = copy.copy(self)
        other._train, other._summary = own, {**self._summary, "counts_train": counts}
        return other

    def summary(self) -> dict[str, Any]:
        """The contents of partition.json: class_names, counts_train [N][C], counts_test [N][C], domains [N] or null.

        With a validation split, counts_validation [N][C] too. Counts are of the examples in use; where images cannot be
        read, left_out names them: {train: [], test: []}.
        """
        return self._summary


class FeatureBatches:
    """Batches (features [b, d], labels [b]) of one client, for a Trainer: it has ``__len__`` and ``__iter__``.

    Each pass draws a new order from ``generator``; without one, the order is that of the data. The last batch may be
    smaller. It is not a DataLoader, whose workers and checks cost more than the training step on cached features.

    Args:
        drop_last: leave the last batch out if it is incomplete.
        views: True: ``features`` are [n, V, d], and each pass also draws a view of each image. An ``OnlineViews``:
            they are image indices [n], and each pass encodes a new view of each image. All draws of a pass are made at
            its start, so they do not depend on how far it is read.

    Raises:
        ValueError: features, labels and settings do not fit each other.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        views: bool | OnlineViews = False,
        drop_last: bool = False,
    ) -> None:
        if len(features) != len(labels):
            raise ValueError(f"{len(features)} features, but {len(labels)} labels")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if views is True and (features.ndim < 3 or generator is None):
            raise ValueError(f"views need features [n, V, d], not {tuple(features.shape)}, and a generator")
        self.features, self.labels, self.batch_size, self.generator = features, labels, batch_size, generator
        self.views, self.drop_last = views, drop_last

    def __len__(self) -> int:
        count = len(self.labels)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, order, drawn = len(self.labels), None, None
        if self.generator is not None:
            order = torch.randperm(count, generator=self.generator)
        if self.views:
            choices = self.features.shape[1] if self.views is True else 2**63 - 1  # the views, or seeds of new ones
            drawn = torch.randint(choices, (count,), generator=self.generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            chosen = batch if order is None else order[batch]
            if drawn is None:
                features = self.features[chosen]
            elif isinstance(self.views, OnlineViews):
                features = self.views(self.features[chosen], drawn[batch])
            else:
                features = self.features[chosen, drawn[batch]]
            yield features, self.labels[chosen]


def prepare(
    dataset: DataSet,
    partition: Partition,
    clip: FrozenCLIP,
    federation: FederationConfig,
    features: FeatureConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    views: ViewsConfig | None = None,
    encoder: Encoder | None = None,
    stamp: Stamp | None = None,
) -> FederatedData:
    """Partition the data set, then extract the features of both splits or read them from the cache.

    ``progress(done, total)`` counts the images of both splits together. ``views`` are of the training images; none is
    the default. ``encoder`` makes another kind of features than CLIP's pooled ones. ``stamp`` is put on the
    images of both splits. Mistakes in the settings are told before any image is encoded.

    Raises:
        UserError: as ``partition_dataset`` and ``extract_features``.
    """
    views, encoder = views or ViewsConfig(), encoder or clip_encoder(clip)
    clients = partition_dataset(dataset, partition, federation.clients, seed)
    held = None
    if federation.validation:
        if dataset.mispairs:
            raise UserError(
                f"federation.validation is {federation.validation}, but data.labels is 'released', where labels are "
                "other images' and nothing can be chosen by them; valid is 0."
            )
        clients, held = split_clients(clients, dataset.train.labels, federation.validation, seed)
    train, test = extract_dataset(dataset, clip, features, views, progress, encoder, stamp)
    plain = None
    if held is not None and views.kind != "none":  # validation images, like test images, have no augmentation
        plain = extract_dataset(dataset, clip, features, None, progress, encoder)[0].values
    given: Tensor | OnlineViews = train.values
    if views.kind == "online":
        inputs = ViewInputs(plain_inputs(dataset, clip), views)
        given = OnlineViews(dataset.train.image, inputs, encoder.encode, encoder.device, features.workers)
    damaged = (train.damaged, test.damaged)
    return FederatedData(dataset, clients, given, test.values, damaged, held_out=held, plain_features=plain)


def _without(indices: np.ndarray, damaged: Collection[int]) -> np.ndarray:
    """The indices of the examples whose image can be read."""
    return indices[~np.isin(indices, list(damaged))] if damaged else indices


def _readable(client: ClientIndices, damaged: tuple[Mapping[int, str], Mapping[int, str]]) -> ClientIndices:
    """The client without the examples whose image cannot be read."""
    train, test = (~np.isin(own, list(bad)) for own, bad in zip(client.images, damaged, strict=True))
    return replace(
        client,
        train=client.train[train],
        test=client.test[test],
        train_images=None if client.train_images is None else client.train_images[train],
        test_images=None if client.test_images is None else client.test_images[test],
    )


def _by_client(features: Tensor, labels: Any, indices: list[Any], images: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """Features of these images and labels of these examples, by client, as slices of one tensor ordered by client."""
    if len(features) != len(labels):
        raise ValueError(f"features of shape {tuple(features.shape)} do not fit {len(labels)} labels")
    sizes = [len(part) for part in indices]
    pictures, examples = (torch.from_numpy(np.concatenate(parts)) for parts in (images, indices))
    return list(zip(features[pictures].split(sizes), torch.from_numpy(labels)[examples].split(sizes), strict=True))
