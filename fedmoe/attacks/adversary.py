"""The attack of a run, as the clients' side carries it out.

Shape letters: b images, m test images of a client, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.attacks.base import Attack, Place
from fedmoe.features.client_data import ClientData, FederatedData
from fedmoe.protocol.records import Downlink, Update


@dataclass(frozen=True)
class Adversary:
    """An attack, and who carries it out.

    Attributes:
        attack: what attackers do.
        clients: who they are.
        seed: the run's seed.
        num_classes: C.
        triggered: every client's data with the trigger on its images, if the attack has one.
    """

    attack: Attack
    clients: frozenset[int]
    seed: int
    num_classes: int
    triggered: FederatedData | None = None

    def attacks(self, client_id: int, round: int) -> bool:
        """Whether the client attacks in the round."""
        return client_id in self.clients and round >= self.attack.from_round

    def data(self, own: ClientData, round: int) -> ClientData:
        """What the client trains on."""
        if not self.attacks(own.client_id, round):
            return own
        triggered = None if self.triggered is None else self.triggered.client(own.client_id)
        return self.attack.data(own, triggered, self.num_classes, Place(self.seed, round, own.client_id))

    def epochs(self, client_id: int, round: int, usual: int) -> int:
        """How many passes over its data the client makes."""
        return self.attack.epochs or usual if self.attacks(client_id, round) else usual

    def upload(self, update: Update, downlink: Downlink, round: int) -> Update:
        """What the client uploads."""
        if not self.attacks(update.client_id, round):
            return update
        return self.attack.upload(update, downlink, Place(self.seed, round, update.client_id))

    def test_features(self, own: ClientData) -> Tensor:
        """The client's test features [m, d] on which the attack's success is counted."""
        return own.test_features if self.triggered is None else self.triggered.client(own.client_id).test_features

    def success(self, features: Tensor, labels: Tensor, predict: Callable[[Tensor], Tensor], batch: int) -> Tensor:
        """On how many images the attack succeeds, and on how many it could: [2], int64; ``predict`` gives logits."""
        counts = torch.zeros(2, dtype=torch.int64)
        for part, truth in zip(features.split(batch), labels.split(batch), strict=True):
            hit, eligible = self.attack.hits(predict(part).argmax(dim=1), truth, self.num_classes)
            counts += torch.stack([(hit & eligible).sum(), eligible.sum()])
        return counts
