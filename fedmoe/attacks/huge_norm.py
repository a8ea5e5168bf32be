"""A prompt of huge norm: the crudest way for one upload to decide the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedmoe.attacks.base import Attack, Place
from fedmoe.errors import require
from fedmoe.protocol.records import Downlink, Update


@dataclass(frozen=True, kw_only=True)
class HugeNorm(Attack):
    """Attackers upload ``factor`` times what they have trained, for everything that they upload."""

    factor: float = 100.0
    """The factor; above 0. Negative directions are ``ModelReplacement``'s with a negative scale."""
    measured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.factor < float("inf"), "attack.factor", self.factor, "a number above 0")

    def upload(self, update: Update, downlink: Downlink, place: Place) -> Update:
        return update.with_values(lambda name, value: self.factor * value)
