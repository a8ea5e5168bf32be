"""The game that every number of an audit is about.

1. The partition gives each client its training images. Within a client and a class, images are paired at random; both
   of a pair are targets. Who is paired with whom is public; a left-over image is always in.
2. For each pair, a fair coin says which of the two the client trains on. So of all targets half are in, label counts
   and the number n_i of a client's examples are the same whatever the coins say, and replacing one of a pair by the
   other is the adjacency of ``privacy.mechanism``.
3. The federation trains. Who attacks gets what a threat model says, the targets with their labels and owners, all
   settings, CLIP and the common start of the prompt; not the coins, the seeds of batches and noise, or test images.
4. For each target, it gives a score that rises with its belief that the target was in.

Shadows are further federations of the same game, with coins and seeds of their own and the same partition: the
attacker knows the coins of those. Test images play no part in it.

Shape letters: N clients, P pairs of all clients, X = 2 P targets, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.seeds import torch_generator


@dataclass(frozen=True, eq=False)
class Game:
    """The targets. Target 2 p and target 2 p + 1 are the two of pair p; pairs are ordered by client.

    Attributes:
        whole: every client's data, with both of each pair.
        pairs: for each client, the places [p, 2] of its pairs among its training examples.
        labels: for each client, the labels [p] that its pairs are trained with.
    """

    whole: FederatedData
    pairs: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    @property
    def num_pairs(self) -> int:
        return sum(len(own) for own in self.pairs)

    @property
    def owner(self) -> Tensor:
        """The owner of each target: [X]."""
        return torch.cat([torch.full((2 * len(own),), i) for i, own in enumerate(self.pairs)])

    @property
    def target_labels(self) -> Tensor:
        """[X]."""
        return torch.cat(self.labels).repeat_interleave(2)

    def features_of(self, client_id: int) -> Tensor:
        """The features [2 p, d] of a client's targets ([2 p, M, d] of spatial ones)."""
        return self.whole.client(client_id).train_features[self.pairs[client_id].flatten()]

    @property
    def features(self) -> Tensor:
        """The features of all targets: [X, d], or [X, M, d]."""
        return torch.cat([self.features_of(i) for i in range(len(self.pairs))])

    def coins(self, seed: int) -> Tensor:
        """Which of each pair is in: [P] of 0 and 1."""
        return torch.randint(2, (self.num_pairs,), generator=torch_generator(seed, "coins"))

    def data(self, coins: Tensor) -> FederatedData:
        """What the clients train on."""
        examples, labels = [], []
        for i, (own, side) in enumerate(zip(self.pairs, coins.split([len(p) for p in self.pairs]), strict=True)):
            named = self.whole.client(i).train_labels.clone()
            named[own] = self.labels[i].unsqueeze(1)
            inside = torch.ones(len(named), dtype=torch.bool)
            inside[own.gather(1, (1 - side).unsqueeze(1))] = False
            examples.append(inside.nonzero().squeeze(1))
            labels.append(named[inside])
        return self.whole.with_training(examples, labels)


def members(coins: Tensor) -> Tensor:
    """Which targets are in, bool: [P] -> [X]."""
    return torch.stack([coins == 0, coins == 1], dim=1).flatten()


def make_game(whole: FederatedData, share: float, mislabelled: bool, seed: int) -> Game:
    """Pair the clients' images.

    Args:
        share: of a class's images on a client that are targets, rounded down to pairs.
        mislabelled: whether each pair gets one wrong label, uniform over the other classes.
        seed: of the draws.

    Raises:
        UserError: no client has two images of a class, or there is only one class to mislabel.
    """
    pairs, labels = [], []
    if mislabelled and whole.num_classes < 2:
        raise UserError("audit.mislabelled is true, but the data has a single class; valid is false.")
    for i in range(whole.num_clients):
        own, generator, found = whole.client(i).train_labels, torch_generator(seed, "pairs", i), []
        for label in own.unique().tolist():
            places = (own == label).nonzero().squeeze(1)
            places = places[torch.randperm(len(places), generator=generator)]
            found.append(places[: 2 * int(share * len(places) / 2)].view(-1, 2))
        pairs.append(torch.cat(found))
        truth = own[pairs[-1][:, 0]]
        if mislabelled:
            truth = (truth + torch.randint(1, whole.num_classes, truth.shape, generator=generator)) % whole.num_classes
        labels.append(truth)
    game = Game(whole, tuple(pairs), tuple(labels))
    if not game.num_pairs:
        raise UserError("An audit needs a client with two training images of one class, and there is none.")
    return game
