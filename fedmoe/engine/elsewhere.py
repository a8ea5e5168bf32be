"""Data that are not all in one place: a server without any, and a site with its own alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedmoe.data.base import DataSet, Split
from fedmoe.data.partition import ClientIndices, Partition
from fedmoe.features.client_data import ClientData, FederatedData


class NoData:
    """In place of ``FederatedData`` on a server: the names of classes, and for the rehearsal one example of zeros.

    Args:
        shape: of an image's features.
    """

    def __init__(self, dataset: DataSet, shape: Sequence[int]) -> None:
        self.name, self.class_names, self.template = dataset.name, dataset.class_names, dataset.template
        self.domain_names = dataset.domain_names
        self._features, self._label = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)

    def client(self, client_id: int) -> ClientData:
        return ClientData(client_id, self._features, self._label, self._features, self._label)

    def summary(self) -> dict[str, Any]:
        """Nothing: the clients say it."""
        return {}


@dataclass(frozen=True)
class Whole(Partition):
    """A single client has everything."""

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        return [ClientIndices(np.arange(len(train)), np.arange(len(test)))]


class OwnData:
    """All data of a machine, as those of one client."""

    def __init__(self, data: FederatedData, client_id: int) -> None:
        self._data, self._client_id = data, client_id
        self.name, self.class_names, self.template = data.name, data.class_names, data.template

    def client(self, client_id: int) -> ClientData:
        return replace(self._data.client(0), client_id=self._client_id)

    def summary(self) -> dict[str, Any]:
        whole = self._data.summary()
        counts = {name: whole[name] * (self._client_id + 1) for name in ("counts_train", "counts_test")}
        return {**whole, **counts}
