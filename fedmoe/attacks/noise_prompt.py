"""Noise in place of what was trained (the Gaussian attack of Blanchard et al., NeurIPS 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedmoe.attacks.base import Attack, Place
from fedmoe.errors import require
from fedmoe.protocol.records import Downlink, Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoisePrompt(Attack):
    """Attackers upload noise: each value P becomes ``factor`` z |P| / |z|, with z from N(0, 1) and l2 norms."""

    factor: float = 1.0
    """The noise's norm, in units of the norm of what it replaces; above 0."""
    measured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.factor < float("inf"), "attack.factor", self.factor, "a number above 0")

    def upload(self, update: Update, downlink: Downlink, place: Place) -> Update:
        import torch

        generator = place.generator()

        def noise(name: str, value: Tensor) -> Tensor:
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return (drawn * (self.factor * value.double().norm() / drawn.norm())).to(value.dtype)

        return update.with_values(noise)
