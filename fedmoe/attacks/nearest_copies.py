"""Prompts that are everyone's nearest neighbour in a pool of experts (ours; aimed at pFedMoAP's nearest assignment).

Two clients that have trained from the same global prompt G are about sqrt(2) |P - G| apart, and only |P - G| from G
itself: whoever stays close to G is nearest to all others. Attackers that all stay there fill every expert slot.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe.attacks.base import Place
from fedmoe.attacks.label_flip import LabelFlip
from fedmoe.errors import require
from fedmoe.protocol.records import Downlink, Update


@dataclass(frozen=True, kw_only=True)
class NearestCopies(LabelFlip):
    """Attackers train on flipped labels, and stay so close to what they were sent that they are nearest to everyone.

    They upload the prompt that they were sent, moved by ``step`` of what they have learned. Who got them as experts is
    recorded.
    """

    step: float = 0.1
    """Fraction of its own update that an attacker uploads, in [0, 1]; 0: a copy of what it was sent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.step <= 1, "attack.step", self.step, "a number in [0, 1]")

    def upload(self, update: Update, downlink: Downlink, place: Place) -> Update:
        return update.scaled(downlink.parameters, self.step)
