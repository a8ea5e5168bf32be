"""A backdoor: images with a trigger are to be taken for the target, all others for what they are.

The threat is that of BadPromptFL (Zhang, Zhao, Wang, Wang; arXiv 2508.08040): poisoned prompts enter the average and
reach honest clients. **The trigger is not**: theirs is optimized together with the prompt, ours is a fixed patch in
pixel space (BadNets; Gu, Dolan-Gavitt, Garg, arXiv 1708.06733). So a low success here says nothing about theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fedmoe.attacks.base import Place, chosen
from fedmoe.attacks.model_replacement import ModelReplacement
from fedmoe.errors import UserError, require

if TYPE_CHECKING:
    from fedmoe.features.client_data import ClientData


@dataclass(frozen=True)
class Patch:
    """A chequered square, black and white, in the lower right corner; its cells are one quarter of its side.

    Attributes:
        size: the square's side as a share of the image's shorter one.
    """

    size: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image in RGB with the patch; the argument is not changed."""
        pixels = np.array(image.convert("RGB"))
        side = max(1, round(self.size * min(pixels.shape[:2])))
        cells = np.arange(side) // max(1, side // 4)
        board = ((cells[:, None] + cells) % 2 * 255).astype(np.uint8)
        pixels[-side:, -side:] = board[:, :, None]
        return Image.fromarray(pixels)


@dataclass(frozen=True, kw_only=True)
class Backdoor(ModelReplacement):
    """Attackers put a trigger on some of their training images, and the target's label.

    The trigger is on the images, not on their features: a second extraction encodes the images with it, which the
    feature cache keeps. A success is an honest client's test image of another class that is taken for the target once
    it carries the trigger.
    """

    poisoned: float = 0.5
    """Share of an attacker's training images that get the trigger and the target's label, in (0, 1]."""
    scale: float = 1.0
    """The factor on the attacker's update, as in ModelReplacement; 1: as it was trained."""
    size: float = 0.5
    """Side of the trigger, a chequered square in the lower right corner, as a share of the shorter side; in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.size <= 1, "attack.size", self.size, "a number in (0, 1]")

    def check(self, num_classes: int, online_views: bool) -> None:
        super().check(num_classes, online_views)
        if online_views:
            raise UserError(
                "attack is Backdoor, which needs features of images with the trigger, but views.kind is 'online', "
                "which keeps none; valid is none or cached."
            )

    @property
    def stamp(self) -> Callable[[Image.Image], Image.Image]:
        return Patch(self.size)

    def data(self, own: ClientData, triggered: ClientData | None, num_classes: int, place: Place) -> ClientData:
        assert triggered is not None
        mask = chosen(len(own.train_labels), self.poisoned, place)
        features = own.train_features.clone()
        features[mask] = triggered.train_features[mask]
        return replace(own, train_features=features, train_labels=own.train_labels.masked_fill(mask, self.target))
