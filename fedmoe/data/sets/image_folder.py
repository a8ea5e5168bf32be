"""A user's own images in folders, with or without domains.

Shape letters: n examples, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmoe.data.base import RawData, Split
from fedmoe.data.sets.image_files import (
    IMAGE_SUFFIXES,
    OwnImages,
    file_split,
    files_key,
    find_folder,
    images_in,
    seeded_split,
    subfolders,
)
from fedmoe.errors import UserError, did_you_mean

_TREES = {
    "classes": "<class>/<image>",
    "split": "<train or test>/<class>/<image>",
    "domains": "<domain>/<class>/<image>",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFolder(OwnImages):
    """Images in folders. The folders' names are the names of the classes, and of the domains.

    Classes and domains are numbered in the alphabetical order of their names. Hidden files and folders, and files that
    are no images by their ending, are left out.

    Raises:
        UserError: a setting is not valid; on reading: the folders do not have the layout.
    """

    root: str = "data"
    """Folder that holds the images' folders."""
    layout: Literal["classes", "split", "domains"] = "classes"
    """classes: <root>/<class>/*, with a seeded split into train and test; split: <root>/train/<class>/* and
    <root>/test/<class>/*; domains: <root>/<domain>/<class>/*, with a seeded split."""
    train_folder: str = "train"
    """With layout split: name of the folder of the training images."""
    test_folder: str = "test"
    """With layout split: name of the folder of the test images."""

    name = "image_folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_folder == self.test_folder:
            raise UserError(
                f"data.train_folder and data.test_folder are both {self.train_folder!r}; valid are two folders."
            )

    @property
    def _folder(self) -> Path:
        return find_folder(self.root, "", f"images in {_TREES[self.layout]}")

    def _read(self) -> RawData:
        folder = self._folder
        if self.layout == "classes":
            groups = {"": self._classes_of(folder)}
        elif self.layout == "split":
            parts = {part: folder / name for part, name in (("train", self.train_folder), ("test", self.test_folder))}
            for part, path in parts.items():
                if not os.path.isdir(path):
                    near = did_you_mean(path.name, subfolders(folder)) or "."
                    raise UserError(
                        f"data.{part}_folder is {path.name!r}, but there is no folder {path}; valid is the folder of "
                        f"the {part} images{near}"
                    )
            groups = {part: self._classes_of(path) for part, path in parts.items()}
        else:
            domains = subfolders(folder)
            if not domains:
                raise self._wrong_layout(folder, "has no folders")
            groups = {domain: self._classes_of(folder / domain) for domain in domains}
        names = sorted(set().union(*groups.values()))
        if self.layout == "split":
            self._require_trained(groups["train"], groups["test"])
            train, test = (_collect([groups[part]], names) for part in ("train", "test"))
            return RawData(tuple(names), (), train, test)
        with_domains = self.layout == "domains"
        everything = _collect(list(groups.values()), names, with_domains)
        train, test = seeded_split(everything, self.test_fraction, self.split_seed)
        return RawData(tuple(names), tuple(groups) if with_domains else (), train, test)

    def _classes_of(self, folder: Path) -> dict[str, list[str]]:
        """The sorted images of each class folder in ``folder``; empty class folders are left out."""
        found = {name: images_in(folder / name) for name in subfolders(folder)}
        found = {name: images for name, images in found.items() if images}
        if not found:
            raise self._wrong_layout(folder, "has no folder with images")
        return found

    def _wrong_layout(self, folder: Path, problem: str) -> UserError:
        fitting = [layout for layout in _TREES if layout != self.layout and _looks_like(self._folder, layout)]
        hint = f"; did you mean data.layout={fitting[0]}?" if fitting else "."
        return UserError(
            f"data.layout is {self.layout!r}, but {folder} {problem} ({', '.join(IMAGE_SUFFIXES[:3])}, ...); "
            f"valid is a tree {self.root}/{_TREES[self.layout]}{hint}"
        )

    def _require_trained(self, train: Mapping[str, object], test: Mapping[str, object]) -> None:
        untrained = sorted(test.keys() - train.keys())
        if untrained:
            raise UserError(
                f"The class {untrained[0]!r} has images in {self._folder / self.test_folder} but none in "
                f"{self._folder / self.train_folder}; every test class needs training images"
                f"{did_you_mean(untrained[0], train) or '.'}"
            )

    def _source_key(self) -> str:
        raw = self._raw
        return f"{self.name} {files_key(self._folder, raw.train.paths or (), raw.test.paths or ())}"


def _collect(groups: list[dict[str, list[str]]], names: list[str], with_domains: bool = False) -> Split:
    """All images of the groups in order, labelled by the place of their class in ``names``."""
    examples = [
        (path, label, domain)
        for domain, group in enumerate(groups)
        for label, name in enumerate(names)
        for path in group.get(name, [])
    ]
    paths, labels, domains = zip(*examples, strict=True)
    return file_split(paths, labels, domains if with_domains else None)


def _looks_like(root: Path, layout: str) -> bool:
    """Whether the root has images where the layout has them; for the hint of a message only."""
    tops = [root / name for name in subfolders(root)]
    if layout == "classes":
        return any(images_in(top) for top in tops)
    deep = any(images_in(top / name) for top in tops for name in subfolders(top))
    return deep and (layout == "split") == ({top.name for top in tops} >= {"train", "test"})
