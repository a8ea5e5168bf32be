"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels. Real, and on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.data.base import DataSet, RawData, Split
from fedmoe.errors import UserError
from fedmoe.seeds import numpy_generator

if TYPE_CHECKING:
    from PIL import Image

_WHITE = 16.0  # the data set's intensities run from 0 to 16
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, eq=False)
class Digits(DataSet):
    """scikit-learn's handwritten digits (10 classes, 1,797 images of 8 x 8), enlarged, white on black.

    The split into train and test is drawn class by class from ``seed``, so both have the same class proportions. It
    does not depend on the run's seed: all runs share one test set unless told otherwise.
    """

    test_fraction: float = 0.3
    """Share of each class that becomes test data, in (0, 1)."""
    size: int = 32
    """Width and height of the enlarged images in pixels (bicubic)."""
    seed: int = 0
    """Seed of the split into train and test."""

    name = "digits"
    template = "a photo of the digit {class}."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction is {self.test_fraction!r}; valid is a number between 0 and 1.")
        if self.size < 8:
            raise UserError(f"data.size is {self.size!r}; valid is an integer of at least 8, the size of the digits.")

    @cached_property
    def _pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """All images [1797, 8, 8] uint8 in 0..255, and their labels [1797]."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        return np.rint(raw.images * (255 / _WHITE)).astype(np.uint8), raw.target.astype(np.int64)

    @cached_property
    def _indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Train and test indices, ascending: of each class a random share of the size nearest to test_fraction."""
        labels = self._pixels[1]
        train, test = [], []
        for label in range(len(_NAMES)):
            members = numpy_generator(self.seed, "digits", label).permutation(np.flatnonzero(labels == label))
            cut = min(max(round(self.test_fraction * len(members)), 1), len(members) - 1)
            test.append(members[:cut])
            train.append(members[cut:])
        return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))

    def _read(self) -> RawData:
        train, test = (self._split(indices) for indices in self._indices)
        return RawData(_NAMES, (), train, test)

    def _split(self, indices: np.ndarray) -> Split:
        images, labels = self._pixels
        return Split(labels[indices], _Enlarged(images[indices], self.size))

    def _source_key(self) -> str:
        digest = hashlib.blake2b(self._pixels[0].tobytes(), digest_size=8)
        for indices in self._indices:  # the indices themselves, so that a change of the splitting rule is seen too
            digest.update(indices.astype("<i8").tobytes())
        return f"digits size={self.size} bicubic rgb {digest.hexdigest()}"


@dataclass(frozen=True, eq=False)
class _Enlarged:
    """The image function of a split."""

    pixels: np.ndarray  # [n, 8, 8] uint8
    size: int

    def __call__(self, i: int) -> Image.Image:
        return enlarge(self.pixels[i], self.size)


def enlarge(pixels: np.ndarray, size: int) -> Image.Image:
    """A grey image [h, w] uint8 as an RGB image of ``size`` x ``size``, by bicubic interpolation."""
    from PIL import Image

    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
