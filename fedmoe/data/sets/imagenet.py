"""ImageNet, and its variants V2, Sketch, A and R, on which models trained elsewhere are tested; folders as in CoOp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedmoe.data.base import DataSet, PublishedFacts, RawData
from fedmoe.data.sets.image_files import file_split, files_key, find_folder
from fedmoe.data.sets.wordnet import folder_split, named, read_names, wnid_folders

CLASSES = 1000


@dataclass(frozen=True, eq=False, kw_only=True)
class _WordNetImages(DataSet):
    """What ImageNet and its variants share.

    Raises:
        UserError: on reading: files are missing or cannot be used.
    """

    root: str = "data"
    """Folder that holds the data set's folder."""

    repeats_names = True
    folder: ClassVar[str]
    images: ClassVar[str]
    """Folder of the images in the data set's folder."""

    @property
    def _folder(self) -> Path:
        what = f"{self.folder}/{self.images}/ and in it the images of {self.name}"
        find_folder(self.root, f"{self.folder}/{self.images}", what)
        return Path(self.root).expanduser() / self.folder

    @property
    def _names(self) -> Path:
        return self._folder / "classnames.txt"

    def _source_key(self) -> str:
        raw = self._raw
        return f"{self.name} {files_key(self._folder, raw.train.paths or (), raw.test.paths or ())}"


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageNet(_WordNetImages):
    """ImageNet: 1,000 classes, in ``<root>/imagenet/images/train/<WordNet id>/`` and ``.../val/<WordNet id>/``.

    Labels are the places of the sorted ids, and ``classnames.txt`` has a line ``<id> <name>`` for each. The images of
    val are the test images. CLIP gives a few classes the same name; they are kept apart all the same.
    """

    name = "imagenet"
    folder = "imagenet"
    images = "images"
    published = PublishedFacts(train=1281167, test=50000, classes=CLASSES, source="ILSVRC 2012")

    def _read(self) -> RawData:
        images = self._folder / self.images
        wnids = wnid_folders(images / "train")
        names = named(wnids, read_names(self._names), self._names)
        train, test = (folder_split([images / part / wnid for wnid in wnids]) for part in ("train", "val"))
        return RawData(names, (), train, test)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Variant(_WordNetImages):
    """A variant of ImageNet: test images only, in one folder for each class. Needs ImageNet's classnames.txt."""

    target_only = True

    def _read(self) -> RawData:
        images = self._folder / self.images
        folders, names = self._classes(images)
        return RawData(names, (), file_split([], []), folder_split([images / folder for folder in folders]))

    def _classes(self, images: Path) -> tuple[list[str], tuple[str, ...]]:
        """The folder and the name of each class, by label."""
        wnids = wnid_folders(images)
        return wnids, named(wnids, read_names(self._names), self._names)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageNetV2(_Variant):
    """ImageNet-V2: 1,000 classes, in ``<root>/imagenetv2/imagenetv2-matched-frequency-format-val/<label>/``.

    The folders are named 0 to 999, by ImageNet's labels; ``classnames.txt`` is a copy of ImageNet's. Test images only.
    """

    name = "imagenet_v2"
    folder = "imagenetv2"
    images = "imagenetv2-matched-frequency-format-val"
    published = PublishedFacts(train=0, test=10000, classes=CLASSES, source="its publication")

    def _classes(self, images: Path) -> tuple[list[str], tuple[str, ...]]:
        names = read_names(self._names, CLASSES)
        return [str(label) for label in range(CLASSES)], tuple(names.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageNetSketch(_Variant):
    """ImageNet-Sketch: 1,000 classes, in ``<root>/imagenet-sketch/images/<WordNet id>/``.

    ``classnames.txt`` is a copy of ImageNet's. Test images only.
    """

    name = "imagenet_sketch"
    folder = "imagenet-sketch"
    images = "images"
    published = PublishedFacts(train=0, test=50889, classes=CLASSES, source="its publication")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageNetA(_Variant):
    """ImageNet-A: 200 of ImageNet's classes, in ``<root>/imagenet-adversarial/imagenet-a/<WordNet id>/``.

    Labels are the places of the sorted ids, 0 to 199, other classes than ImageNet-R's; ``classnames.txt`` is a copy of
    ImageNet's. Test images only.
    """

    name = "imagenet_a"
    folder = "imagenet-adversarial"
    images = "imagenet-a"
    published = PublishedFacts(train=0, test=7500, classes=200, source="its publication")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageNetR(_Variant):
    """ImageNet-R: 200 of ImageNet's classes, in ``<root>/imagenet-rendition/imagenet-r/<WordNet id>/``.

    Labels are the places of the sorted ids, 0 to 199, other classes than ImageNet-A's; ``classnames.txt`` is a copy of
    ImageNet's. Test images only.
    """

    name = "imagenet_r"
    folder = "imagenet-rendition"
    images = "imagenet-r"
    published = PublishedFacts(train=0, test=30000, classes=200, source="its publication")
