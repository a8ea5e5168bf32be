"""Image files in folders: which there are, opening them, and a seeded split of them. Cheap to import (no torch).

Shape letters: n examples.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.data.base import DataSet, Split
from fedmoe.data.subset import group_indices
from fedmoe.errors import UserError
from fedmoe.io import open_regular
from fedmoe.seeds import numpy_generator

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What such files are opened as, whatever their ending. Pillow knows more kinds, and has PostScript run by Ghostscript.
IMAGE_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image function of a split over files, in RGB. A class, not a closure, so that worker processes can get it."""

    paths: Sequence[str]

    def __call__(self, i: int) -> Image.Image:
        from PIL import Image

        with open_regular(self.paths[i]) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
            return image.convert("RGB")


def file_split(paths: Sequence[str], labels: Iterable[int], domains: Iterable[int] | None = None) -> Split:
    """A split over image files."""
    places = None if domains is None else np.fromiter(domains, dtype=np.int64)
    return Split(np.fromiter(labels, dtype=np.int64), ImageFiles(paths), places, paths)


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, without hidden ones."""
    names = (name for name in os.listdir(folder) if not name.startswith("."))
    return sorted(name for name in names if os.path.isdir(os.path.join(folder, name)))


def images_in(folder: Path) -> list[str]:
    """Sorted paths of the image files that lie directly in a folder, without hidden ones; none where it is missing."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = (os.path.join(folder, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    return sorted(path for path in paths if os.path.isfile(path))


def find_folder(root: str, below: str, what: str) -> Path:
    """The folder ``below`` in ``root`` ("" for the root itself).

    Raises:
        UserError: it is missing; the sentence says ``what`` it should hold and which folder on the way exists.
    """
    folder = Path(root).expanduser() / below
    if os.path.isdir(folder):  # unlike Path.is_dir, also says no to names that the system refuses
        return folder
    nearest = next((parent for parent in folder.parents if os.path.isdir(parent)), Path.cwd())
    raise UserError(
        f"data.root is {root!r}, but there is no folder {folder}; valid is a folder with {what} (the nearest folder "
        f"that exists is {nearest.resolve()})."
    )


def files_key(root: Path, *parts: Sequence[str]) -> str:
    """Hash of the files' paths below ``root`` in their order, of their sizes and of the times of their last change."""
    digest = hashlib.blake2b(digest_size=12)
    start = os.path.join(str(root), "")
    for part in parts:
        digest.update(f"{len(part)}\n".encode())
        for path in part:
            try:
                status = os.stat(path)
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "missing"  # named by `data check`, and when the image is read
            digest.update(f"{path.removeprefix(start)}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def seeded_split(split: Split, test_fraction: float, seed: int) -> tuple[Split, Split]:
    """Train and test part: of each class (in each domain) a random share nearest to ``test_fraction`` becomes test.

    Each class keeps at least 1 training example, and has at least 1 test example where it has 2 examples.
    """
    test = np.zeros(len(split), dtype=bool)
    for (label, domain), members in group_indices(split.labels, split.domains).items():
        count = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        order = numpy_generator(seed, "held out", label, domain).permutation(len(members))
        test[members[order[:count]]] = True
    return split.take(np.flatnonzero(~test)), split.take(np.flatnonzero(test))


def check_fraction(test_fraction: float) -> None:
    """Raise a UserError where data.test_fraction is no share."""
    if not 0 < test_fraction < 1:
        raise UserError(f"data.test_fraction is {test_fraction!r}; valid is a number between 0 and 1.")


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnImages(DataSet):
    """A user's own images, which may come without a test split and have any caption.

    Raises:
        UserError: a setting is not valid.
    """

    test_fraction: float = 0.2
    """Where there is no test split: share of each class (of each domain) that becomes test data, in (0, 1)."""
    split_seed: int = 0
    """Seed of that split. It does not depend on the run's seed."""
    template: str = "a photo of a {class}."  # type: ignore[misc]  # a setting here, a constant elsewhere
    """Caption of a class for zero-shot prediction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.test_fraction)
        if "{class}" not in self.template:
            example = "a photo of a {class}."
            raise UserError(f"data.template is {self.template!r}; valid is a text with {{class}}, such as {example!r}.")
