"""Tiny-ImageNet: 200 of ImageNet's classes, 64 x 64 pixels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import DataSet, PublishedFacts, RawData, Split
from fedmoe.data.sets.coop_images import read_lines
from fedmoe.data.sets.image_files import file_split, files_key, find_folder
from fedmoe.data.sets.wordnet import folder_split, named, read_names, wnid_folders
from fedmoe.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False, kw_only=True)
class TinyImageNet(DataSet):
    """Tiny-ImageNet: 200 classes, in ``<root>/tiny-imagenet-200/`` as it is published.

    ``train/<WordNet id>/images/`` holds the training images and ``val/images/``, with ``val/val_annotations.txt``, the
    test images; the labels of test/ are not public. Labels are the places of the sorted ids. Their names come from
    ``classnames.txt`` (lines ``<id> <name>``) where there is one, else the first of ``words.txt``.

    Raises:
        UserError: on reading: files are missing or cannot be used.
    """

    root: str = "data"
    """Folder that holds the data set's folder."""

    name = "tiny_imagenet"
    repeats_names = True
    published = PublishedFacts(train=100000, test=10000, classes=200, source="its publication")

    @property
    def _folder(self) -> Path:
        root = Path(self.root).expanduser()
        for name in ("tiny-imagenet-200", "tiny-imagenet"):
            if os.path.isdir(root / name / "train"):
                return root / name
        what = "tiny-imagenet-200/train/ and in it the images of tiny_imagenet"
        return find_folder(self.root, "tiny-imagenet-200/train", what).parent

    def _read(self) -> RawData:
        folder = self._folder
        wnids = wnid_folders(folder / "train")
        path = folder / "classnames.txt"
        if not path.exists():
            path = folder / "words.txt"
        names = {wnid: name.split(",")[0].strip() for wnid, name in read_names(path).items()}
        train = folder_split([folder / "train" / wnid / "images" for wnid in wnids])
        return RawData(named(wnids, names, path), (), train, _read_test(folder / "val", wnids))

    def _source_key(self) -> str:
        raw = self._raw
        return f"{self.name} {files_key(self._folder, raw.train.paths or (), raw.test.paths or ())}"


def _read_test(folder: Path, wnids: list[str]) -> Split:
    """The images that val_annotations.txt lists, in lines of an image's name, an id, and the object's place."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    paths, found = [], []
    annotations = folder / "val_annotations.txt"
    for number, line in read_lines(annotations, "the classes of the test images"):
        image, wnid = (*line.split("\t"), "", "")[:2]
        if not re.fullmatch(r"\w[\w.-]*", image) or wnid not in labels:
            near = did_you_mean(wnid, labels) or "; valid is an image's name and an id that train/ has a folder of."
            raise UserError(f"{annotations}, line {number}, is {line[:80]!r}{near}")
        paths.append(str(folder / "images" / image))
        found.append(labels[wnid])
    return file_split(paths, found)
