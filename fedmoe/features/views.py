"""Augmented views of training images: random resized crop and horizontal flip, each drawn from a generator of its own.

A view is decided by the image's size and one seed, so neither the order of images, nor worker processes, nor an
interruption changes it. The draws are torchvision's (``RandomResizedCrop``, then ``RandomHorizontalFlip``) from the
generator in place of the global one. The crop is resized to the encoder's input size, so that of CLIP's preprocessing
only the normalization remains to do: its resize and central crop change nothing at that size.

Shape letters: b images of a batch, n of a client, V views, H and W height and width in pixels, d feature width.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedmoe.config import ViewsConfig
from fedmoe.seeds import torch_generator

RATIO = (3 / 4, 4 / 3)  # smallest and largest width / height of a crop, torchvision's default
_TRIES = 10
Transform = Callable[[Image.Image], Tensor]
Stamp = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class View:
    """A crop of an image in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def draw_view(width: int, height: int, scale: tuple[float, float], generator: torch.Generator) -> View:
    """Draw a view of a ``width`` x ``height`` image: the crop's share of the area uniform in ``scale``, its aspect
    ratio log-uniform in RATIO, its place uniform, and a flip with probability 1/2."""
    crop = _draw_crop(width, height, scale, generator)
    return View(*crop, flip=bool(torch.rand(1, generator=generator) < 0.5))


def _draw_crop(
    width: int, height: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    low, high = torch.log(torch.tensor(RATIO)).tolist()
    for _ in range(_TRIES):
        area = width * height * torch.empty(1).uniform_(*scale, generator=generator).item()
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return top, left, h, w
    # No crop of that size fits: the largest central one with a valid ratio.
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def apply_view(image: Image.Image, view: View, size: tuple[int, int]) -> Image.Image:
    """The view of an image, as RGB of ``size`` (height, width)."""
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    crop = image.convert("RGB").crop(box).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else crop


class Inputs(Protocol):
    """What the encoder gets of an image. Worker processes receive it; where they are spawned, it must be picklable."""

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        """The input of the ``index``-th image of its split."""

    def key(self) -> dict[str, Any]:
        """Plain values that differ whenever the inputs differ."""


@dataclass(frozen=True)
class PlainInputs:
    """Each image as it is: [3, H, W]."""

    transform: Transform
    name: str = "clip"  # DataSet.transform_key()

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        return self.transform(image)

    def key(self) -> dict[str, Any]:
        """The transform is known by what it does to a fixed test image as well as by its repr: a repr may hide
        settings, and the addresses in it change from run to run."""
        return {
            "transform": self.name,
            "preprocess": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.transform)),
            "probe": digest(self(_test_image(), 0)),
            "views": None,
        }


@dataclass(frozen=True)
class Stamped:
    """A transform of images on which something is put first, such as a backdoor's trigger."""

    transform: Transform
    stamp: Stamp

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(self.stamp(image))


@dataclass(frozen=True)
class ViewInputs:
    """V seeded views of each image: [V, 3, H, W]."""

    plain: PlainInputs
    config: ViewsConfig

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the encoder's input."""
        return input_size(self.plain.transform)

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        generators = (torch_generator(self.config.seed, "view", index, view) for view in range(self.config.count))
        return torch.stack([self.view(image, generator) for generator in generators])

    def view(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """One view, [3, H, W]."""
        drawn = draw_view(*image.size, self.config.scale, generator)
        return self.plain.transform(apply_view(image, drawn, self.size))

    def key(self) -> dict[str, Any]:
        """The plain key, and how views are drawn; the views of the test image also show a change of the code."""
        views = {"count": self.config.count, "scale": list(self.config.scale), "seed": self.config.seed}
        return {**self.plain.key(), "views": {**views, "probe": digest(self(_test_image(), 0))}}


@dataclass(frozen=True)
class ReadOnlyInputs:
    """Nothing of the image but that it can be read: [0]."""

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        return torch.zeros(0)

    def key(self) -> dict[str, Any]:
        return {"transform": "none", "views": None}


class OnlineViews:
    """Encodes a fresh view of each training image asked for.

    Args:
        image: the i-th image of the training split.
        inputs: how a view is made; ``count`` and ``seed`` of its settings are not used.
        encode: [b, 3, H, W] on ``device`` -> [b, d]; called without gradients.
        workers: threads that read and crop images; 0: none.
    """

    def __init__(
        self,
        image: Callable[[int], Image.Image],
        inputs: ViewInputs,
        encode: Callable[[Tensor], Tensor],
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self._image, self._inputs, self._encode, self._device = image, inputs, encode, device
        self._threads = ThreadPoolExecutor(workers) if workers else None

    @torch.no_grad()
    def __call__(self, indices: Tensor, seeds: Tensor) -> Tensor:
        """Features [b, d] float32 of the images ``indices`` [b], each in the view that its seed [b] decides."""
        drawn = zip(indices.tolist(), seeds.tolist(), strict=True)
        views = list((self._threads.map if self._threads else map)(self._view, drawn))
        return self._encode(torch.stack(views).to(self._device)).float()

    def _view(self, drawn: tuple[int, int]) -> Tensor:
        index, seed = drawn
        return self._inputs.view(self._image(index), torch.Generator().manual_seed(seed))


def digest(tensor: Tensor) -> str:
    """Hash of shape, number format and elements."""
    array = tensor.detach().cpu().contiguous().numpy()
    hashed = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    hashed.update(array.data if array.size else b"")
    return hashed.hexdigest()


def input_size(transform: Transform) -> tuple[int, int]:
    """Height and width that the transform brings every image to."""
    height, width = transform(_test_image()).shape[-2:]
    return int(height), int(width)


def _test_image() -> Image.Image:
    """A fixed RGB image of noise, not square, so that resizing, cropping and scaling all show."""
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
