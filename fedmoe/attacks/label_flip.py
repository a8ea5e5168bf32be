"""Label flipping (Tolpegin et al., ESORICS 2020, arXiv 2007.08432; in this form Fang et al., USENIX Security 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedmoe.attacks.base import Attack, Place

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.features.client_data import ClientData


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Attack):
    """Attackers train on flipped labels: class y becomes C - 1 - y.

    A success is an image that is taken for that class; the middle one of an odd number of classes does not count.
    """

    measured: ClassVar[bool] = True

    def data(self, own: ClientData, triggered: ClientData | None, num_classes: int, place: Place) -> ClientData:
        return replace(own, train_labels=num_classes - 1 - own.train_labels)

    def hits(self, predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        flipped = num_classes - 1 - labels
        return predicted == flipped, flipped != labels
