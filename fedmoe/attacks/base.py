"""What an attack is: clients that do something else than the protocol says, on their own side of the line.

An attack may change an attacker's training data and what it uploads. It sees the attacker's own data, what the attacker
downloads and what it has trained; never the server's state, and never another client's. Attackers are drawn by the
run's seed, so that runs that differ in attack or defence have the same ones.

Shape letters: n examples of a client, b images, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.errors import require
from fedmoe.protocol.records import Downlink, Update
from fedmoe.seeds import numpy_generator
from fedmoe.server.sampling import share_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from PIL import Image
    from torch import Tensor

    from fedmoe.features.client_data import ClientData


@dataclass(frozen=True)
class Place:
    """Where an attack draws: a client in a round."""

    seed: int
    round: int
    client: int

    def generator(self) -> torch.Generator:
        """The draws of this attacker in this round."""
        from fedmoe.seeds import torch_generator

        return torch_generator(self.seed, "attack", self.round, self.client)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Base class of attacks: attackers that do what honest clients do. Override what differs.

    Raises:
        UserError: a setting is not valid.
    """

    share: float = 0.2
    """Share of the clients that attack, in (0, 1): max(1, floor(share N)) of those that take part in rounds, drawn by
    the run's seed."""
    clients: tuple[int, ...] | None = None
    """The attackers' numbers, in place of share; null: drawn."""
    from_round: int = 1
    """The first round in which attackers attack; before it they are honest. Beyond the last round, nobody ever attacks,
    but everything is measured as if: the control."""
    epochs: int | None = None
    """Number of passes over its data that an attacker makes in a round; null: as many as everyone. It need not obey."""

    @property
    @abstractmethod
    def measured(self) -> bool:
        """Whether ``hits`` says what a success is; otherwise it is others' loss of accuracy."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "attack.share", self.share, "a number above 0 and below 1")
        require(self.from_round >= 1, "attack.from_round", self.from_round, "an integer of at least 1")
        require(
            self.epochs is None or self.epochs >= 1, "attack.epochs", self.epochs, "null or an integer of at least 1"
        )
        if self.clients is not None:
            object.__setattr__(self, "clients", tuple(self.clients))
            distinct = len(set(self.clients)) == len(self.clients) > 0
            require(distinct, "attack.clients", list(self.clients), "null or a list of different clients' numbers")

    def check(self, num_classes: int, online_views: bool) -> None:
        """Check the settings against the data.

        Raises:
            UserError: they do not fit.
        """
        return None

    def attackers(self, participants: int, seed: int) -> frozenset[int]:
        """Who attacks, of clients 0 to ``participants`` - 1.

        Raises:
            UserError: there is no such client, or nobody would be left.
        """
        if self.clients is not None:
            inside = all(0 <= client < participants for client in self.clients)
            valid = f"clients of 0 to {participants - 1}, not all of them"
            require(inside and len(self.clients) < participants, "attack.clients", list(self.clients), valid)
            return frozenset(self.clients)
        count = share_of(participants, self.share)
        require(
            count < participants,
            "attack.share",
            self.share,
            f"a share that leaves one of {participants} clients honest",
        )
        drawn = numpy_generator(seed, "attackers").choice(participants, size=count, replace=False)
        return frozenset(int(client) for client in drawn)

    @property
    def stamp(self) -> Callable[[Image.Image], Image.Image] | None:
        """What puts the trigger on an image; None: the attack has no trigger in the images."""
        return None

    def data(self, own: ClientData, triggered: ClientData | None, num_classes: int, place: Place) -> ClientData:
        """What the attacker trains on, in place of its own data.

        Args:
            triggered: the same examples with the trigger on their images, if the attack has a ``stamp``.
        """
        return own

    def upload(self, update: Update, downlink: Downlink, place: Place) -> Update:
        """What the attacker uploads, in place of what it has trained; ``downlink`` is what it was sent."""
        return update

    def hits(self, predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Where the attack has succeeded, and where it could: two masks [b] of predicted and true classes [b].

        Images of a targeted attack carry the trigger, if it has one. Only called if ``measured``.
        """
        raise NotImplementedError


def chosen(count: int, share: float, place: Place) -> Tensor:
    """A mask [count] of round(share count) examples, at least one: the same ones in each round."""
    import torch

    number = max(1, round(share * count))
    drawn = numpy_generator(place.seed, "poisoned", place.client).choice(count, size=min(number, count), replace=False)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(drawn)] = True
    return mask
