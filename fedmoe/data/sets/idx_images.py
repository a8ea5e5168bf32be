"""MNIST and its relatives in IDX files: handwritten digits, clothes, Japanese characters, letters.

Shape letters: n examples.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedmoe.data.base import DataSet, PublishedFacts, RawData, Split
from fedmoe.data.sets.image_files import find_folder
from fedmoe.errors import UserError
from fedmoe.readers.idx import read_idx

if TYPE_CHECKING:
    from PIL import Image

SIDE = 28
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CASED = "abdefghnqrt"  # letters whose two cases are two classes in EMNIST's bymerge and balanced


@dataclass(frozen=True, eq=False, kw_only=True)
class _IdxImages(DataSet):
    """What the data sets in IDX files share.

    Raises:
        UserError: on reading: files are missing or cannot be used.
    """

    root: str = "data"
    """Folder that holds the data set's folder."""

    folders: ClassVar[tuple[str, ...]]
    """The data set's folder below ``root``, the usual ones."""

    @property
    def _classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        raise NotImplementedError

    @property
    def _prefixes(self) -> tuple[str, str]:
        """What the names of the files of training and of test data begin with."""
        return "train", "t10k"

    @property
    def _sizes(self) -> PublishedFacts:
        assert self.published is not None
        return self.published

    _first_label: ClassVar[int] = 0

    @property
    def _folder(self) -> Path:
        root = Path(self.root).expanduser()
        for name in self.folders:
            if any(_find(root / name, prefix, "images", 3) for prefix in self._prefixes):
                return root / name
        return find_folder(self.root, self.folders[0], f"{self.folders[0]}/ and in it the IDX files of {self.name}")

    def _read(self) -> RawData:
        folder, facts = self._folder, self._sizes
        train, test = (
            self._split(folder, prefix, most)
            for prefix, most in zip(self._prefixes, (facts.train, facts.test), strict=True)
        )
        return RawData(self._classes, (), train, test)

    def _split(self, folder: Path, prefix: str, most: int) -> Split:
        paths = {}
        for what, axes in (("images", 3), ("labels", 1)):
            found = _find(folder, prefix, what, axes)
            if found is None:
                raise UserError(
                    f"{folder} has no file {f'{prefix}-{what}-idx{axes}-ubyte'!r}, with or without '.gz'; valid are "
                    f"the four IDX files of {self.name}."
                )
            paths[what] = found
        images = read_idx(paths["images"], 3, most * SIDE * SIDE)  # [n, 28, 28]
        if images.shape[1:] != (SIDE, SIDE):
            raise UserError(
                f"{paths['images']} holds images of {images.shape[1]} x {images.shape[2]} pixels; valid is 28 x 28."
            )
        labels = read_idx(paths["labels"], 1, most).astype(np.int64) - self._first_label
        if len(labels) != len(images):
            raise UserError(
                f"{paths['labels']} holds {len(labels)} labels, but {paths['images'].name} {len(images)} images; valid "
                "is one label for each."
            )
        return Split(labels, _Pixels(self._turned(images)))

    def _turned(self, images: np.ndarray) -> np.ndarray:
        """The images [n, 28, 28] upright."""
        return images

    def _source_key(self) -> str:
        digest = hashlib.blake2b(digest_size=12)
        for split in (self._raw.train, self._raw.test):
            assert isinstance(split.image, _Pixels)
            digest.update(f"{len(split)}\n".encode())
            digest.update(np.ascontiguousarray(split.image.pixels).data)
        return f"{self.name} {digest.hexdigest()}"


def _find(folder: Path, prefix: str, what: str, axes: int) -> Path | None:
    """A file of the data set, unpacked or not, under the names that are in use."""
    for middle in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{prefix}-{what}{middle}idx{axes}-ubyte{suffix}"
            if os.path.isfile(path):
                return path
    return None


@dataclass(frozen=True, eq=False)
class _Pixels:
    """The image function of a split. A class, not a closure, so that worker processes can get it."""

    pixels: np.ndarray  # [n, 28, 28] uint8

    def __call__(self, i: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self.pixels[i])).convert("RGB")


@dataclass(frozen=True, eq=False, kw_only=True)
class MNIST(_IdxImages):
    """MNIST: 10 handwritten digits, 28 x 28 pixels, IDX files in ``<root>/mnist/`` or ``<root>/MNIST/raw/``."""

    name = "mnist"
    folders = ("mnist", "MNIST/raw")
    template = "a photo of the digit {class}."
    published = PublishedFacts(train=60000, test=10000, classes=10, source="its publication")

    @property
    def _classes(self) -> tuple[str, ...]:
        return DIGITS


@dataclass(frozen=True, eq=False, kw_only=True)
class FashionMNIST(_IdxImages):
    """Fashion-MNIST: 10 kinds of clothes, IDX files in ``<root>/fashion-mnist/`` or ``<root>/FashionMNIST/raw/``.

    Debian's package dataset-fashion-mnist has them: root is the folder of its folder fashion-mnist.
    """

    name = "fashion_mnist"
    folders = ("fashion-mnist", "FashionMNIST/raw")
    published = PublishedFacts(train=60000, test=10000, classes=10, source="its publication")

    @property
    def _classes(self) -> tuple[str, ...]:
        return (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class KMNIST(_IdxImages):
    """KMNIST: 10 hiragana characters in old handwriting, IDX files in ``<root>/kmnist/`` or ``<root>/KMNIST/raw/``."""

    name = "kmnist"
    folders = ("kmnist", "KMNIST/raw")
    template = "a photo of the hiragana character {class}."
    published = PublishedFacts(train=60000, test=10000, classes=10, source="its publication")

    @property
    def _classes(self) -> tuple[str, ...]:
        return ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


_EMNIST_SIZES = {
    "byclass": (697932, 116323),
    "bymerge": (697932, 116323),
    "balanced": (112800, 18800),
    "letters": (124800, 20800),
    "digits": (240000, 40000),
    "mnist": (60000, 10000),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class EMNIST(_IdxImages):
    """EMNIST: handwritten letters and digits, IDX files in ``<root>/emnist/`` or ``<root>/EMNIST/raw/``.

    CLIP reads capital and small letters alike, so the class names say which: "capital letter A", "small letter a".
    """

    part: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "balanced"
    """byclass: 62 classes, digits, capital and small letters; bymerge and balanced: 47, both cases of 15 letters are
    one class; letters: 26, both cases are one class; digits and mnist: 10."""

    name = "emnist"
    folders = ("emnist", "EMNIST/raw", "gzip")
    template = "a photo of the {class}."

    @property
    def published(self) -> PublishedFacts:  # type: ignore[override]  # it depends on the part
        return PublishedFacts(*_EMNIST_SIZES[self.part], len(self._classes), "its publication")

    @property
    def _prefixes(self) -> tuple[str, str]:
        return f"emnist-{self.part}-train", f"emnist-{self.part}-test"

    @property
    def _first_label(self) -> int:  # type: ignore[override]  # the labels of the letters start at 1
        return int(self.part == "letters")

    @property
    def _classes(self) -> tuple[str, ...]:
        digits = tuple(f"digit {name}" for name in DIGITS)
        if self.part in ("digits", "mnist"):
            return digits
        if self.part == "letters":
            return tuple(f"letter {letter}" for letter in ascii_lowercase)
        cased = ascii_lowercase if self.part == "byclass" else _CASED
        large = (f"capital letter {x}" if x.lower() in cased else f"letter {x.lower()}" for x in ascii_uppercase)
        return (*digits, *large, *(f"small letter {letter}" for letter in cased))

    def _turned(self, images: np.ndarray) -> np.ndarray:
        return images.transpose(0, 2, 1)  # the files hold columns where MNIST's hold rows
