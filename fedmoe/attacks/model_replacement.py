"""Model replacement (Bagdasaryan, Veit, Hua, Estrin, Shmatikov; AISTATS 2020, arXiv 1807.00459)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedmoe.attacks.base import Attack, Place, chosen
from fedmoe.errors import require
from fedmoe.protocol.records import Downlink, Update

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.features.client_data import ClientData


@dataclass(frozen=True, kw_only=True)
class ModelReplacement(Attack):
    """Attackers train X towards one class from what they were sent, G, and upload G + ``scale`` (X - G).

    With a scale of n / (the attackers in the cohort), the mean of n equal weights becomes X, once the others' updates
    cancel out (section 4.2). A success is an image of another class that is taken for the target.
    """

    target: int = 0
    """The class, by its number, that other classes' images are to be taken for."""
    poisoned: float = 1.0
    """Share of an attacker's training images that get the target's label, in (0, 1]."""
    scale: float = 5.0
    """The factor on the attacker's update, gamma in the paper."""
    measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.poisoned <= 1, "attack.poisoned", self.poisoned, "a number in (0, 1]")
        require(math.isfinite(self.scale), "attack.scale", self.scale, "a finite number")

    def check(self, num_classes: int, online_views: bool) -> None:
        require(
            0 <= self.target < num_classes, "attack.target", self.target, f"0 to {num_classes - 1}, the data's classes"
        )

    def data(self, own: ClientData, triggered: ClientData | None, num_classes: int, place: Place) -> ClientData:
        mask = chosen(len(own.train_labels), self.poisoned, place)
        return replace(own, train_labels=own.train_labels.masked_fill(mask, self.target))

    def upload(self, update: Update, downlink: Downlink, place: Place) -> Update:
        return update.scaled(downlink.parameters, self.scale)

    def hits(self, predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        return predicted == self.target, labels != self.target
