"""Data sets of several domains in plain folders: PACS, Office-Home and VLCS.

Shape letters: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from fedmoe.data.base import DataSet, PublishedFacts, RawData, Split
from fedmoe.data.sets.image_files import (
    check_fraction,
    file_split,
    files_key,
    find_folder,
    images_in,
    seeded_split,
)
from fedmoe.errors import UserError

_TRAIN_TENTHS = 8  # of ten images in a row, the first eight are training images (FedSEPT's code)


@dataclass(frozen=True, eq=False, kw_only=True)
class _DomainFolders(DataSet):
    """A data set of several domains, with a folder for each class in each domain.

    Raises:
        UserError: a setting is not valid; on reading: folders are missing or have no image.
    """

    root: str = "data"
    """Folder that holds the data set's folder."""
    split: Literal["tenths", "drawn"] = "tenths"
    """tenths: of a domain's images in the order of their paths, those whose place modulo 10 is 8 or 9 are test images,
    as in FedSEPT's code; drawn: a share of each class of each domain, by test_fraction and split_seed."""
    test_fraction: float = 0.2
    """With split drawn: share of each class of each domain that becomes test data, in (0, 1)."""
    split_seed: int = 0
    """With split drawn: its seed. It does not depend on the run's seed."""

    folder: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    domains: ClassVar[tuple[str, ...]]
    inner: ClassVar[str] = ""
    """Folder in a domain's folder that holds the classes' folders; "" for that folder itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.test_fraction)

    @property
    def _folder(self) -> Path:
        return find_folder(self.root, self.folder, f"{self.folder}/ and in it images in <domain>/<class>/")

    def _read(self) -> RawData:
        everything, places = self._all(self._folder)
        if self.split == "drawn":
            train, test = seeded_split(everything, self.test_fraction, self.split_seed)
        else:
            train, test = (
                everything.take(np.flatnonzero(part)) for part in (places < _TRAIN_TENTHS, places >= _TRAIN_TENTHS)
            )
        return RawData(self.classes, self.domains, train, test)

    def _all(self, folder: Path) -> tuple[Split, np.ndarray]:
        """All images, and the place of each in its domain modulo 10 [n]."""
        paths: list[str] = []
        labels: list[int] = []
        domains: list[int] = []
        places: list[int] = []
        for index, domain in enumerate(self.domains):
            place = 0
            for label, name in enumerate(self.classes):
                images = folder / domain / self.inner / name
                found = images_in(images)
                if not found:
                    raise UserError(
                        f"The folder {images} is missing or has no image; {self.name} has images of all "
                        f"{len(self.classes)} classes in all {len(self.domains)} domains."
                    )
                paths += found
                labels += [label] * len(found)
                domains += [index] * len(found)
                places += [(place + i) % 10 for i in range(len(found))]
                place += len(found)
        return file_split(paths, labels, domains), np.array(places)

    def _source_key(self) -> str:
        raw = self._raw
        return f"{self.name} {files_key(self._folder, raw.train.paths or (), raw.test.paths or ())}"


def _tenths(classes: int, *images: int) -> PublishedFacts:
    """The sizes that the split into tenths gives, for the published number of images of each domain."""
    test = sum(2 * (count // 10) + max(count % 10 - _TRAIN_TENTHS, 0) for count in images)
    return PublishedFacts(sum(images) - test, test, classes, "the published numbers of images, split into tenths")


@dataclass(frozen=True, eq=False, kw_only=True)
class PACS(_DomainFolders):
    """PACS: 7 classes in 4 domains, in ``<root>/PACS/<domain>/<class>/``."""

    name = "pacs"
    folder = "PACS"
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    domains = ("art_painting", "cartoon", "photo", "sketch")
    published = _tenths(7, 2048, 2344, 1670, 3929)


@dataclass(frozen=True, eq=False, kw_only=True)
class OfficeHome(_DomainFolders):
    """Office-Home: 65 classes in 4 domains, in ``<root>/Office-Home/<domain>/<class>/``."""

    name = "office_home"
    folder = "Office-Home"
    classes = (
        "Alarm_Clock", "Backpack", "Batteries", "Bed", "Bike", "Bottle", "Bucket", "Calculator", "Calendar", "Candles",
        "Chair", "Clipboards", "Computer", "Couch", "Curtains", "Desk_Lamp", "Drill", "Eraser", "Exit_Sign", "Fan",
        "File_Cabinet", "Flipflops", "Flowers", "Folder", "Fork", "Glasses", "Hammer", "Helmet", "Kettle", "Keyboard",
        "Knives", "Lamp_Shade", "Laptop", "Marker", "Monitor", "Mop", "Mouse", "Mug", "Notebook", "Oven", "Pan",
        "Paper_Clip", "Pen", "Pencil", "Postit_Notes", "Printer", "Push_Pin", "Radio", "Refrigerator", "Ruler",
        "Scissors", "Screwdriver", "Shelf", "Sink", "Sneakers", "Soda", "Speaker", "Spoon", "TV", "Table", "Telephone",
        "ToothBrush", "Toys", "Trash_Can", "Webcam",
    )  # fmt: skip
    domains = ("Art", "Clipart", "Product", "Real World")
    published = _tenths(65, 2427, 4365, 4439, 4357)


@dataclass(frozen=True, eq=False, kw_only=True)
class VLCS(_DomainFolders):
    """VLCS: 5 classes in 4 domains, in ``<root>/VLCS/<domain>/full/<class>/``."""

    name = "vlcs"
    folder = "VLCS"
    inner = "full"
    classes = ("bird", "car", "chair", "dog", "person")
    domains = ("CALTECH", "LABELME", "PASCAL", "SUN")
    published = _tenths(5, 1415, 2656, 3376, 3282)
