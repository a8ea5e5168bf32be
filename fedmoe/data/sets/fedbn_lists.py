"""Data sets of several domains in the layout that FedBN published (METHOD.md, "Data").

``<root>/<folder>/<domain>_train.pkl`` and ``..._test.pkl`` are pickles of two arrays: image paths and class names. The
paths start at the folder above, ``<folder>/<domain>/<class>/<file>``; lists made on other machines write more before
that. So everything up to and including the last part named ``<folder>`` is dropped, and a path without such a part is
taken to start in it. What is left must not lead out of the folder.

Shape letters: n examples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fedmoe.data.base import DataSet, RawData, is_encodable
from fedmoe.data.sets.image_files import (
    check_fraction,
    file_split,
    files_key,
    find_folder,
    images_in,
    seeded_split,
)
from fedmoe.errors import UserError, did_you_mean
from fedmoe.readers.array_pickle import load_arrays


@dataclass(frozen=True, eq=False, kw_only=True)
class DomainLists(DataSet):
    """A data set of several domains: FedBN's lists, or plain folders of images.

    Raises:
        UserError: a setting is not valid; on reading: files are missing or cannot be used.
    """

    root: str = "data"
    """Folder that holds the data set's folder."""
    layout: Literal["lists", "folders"] = "lists"
    """lists: FedBN's .pkl lists say which images are training and test images; folders: all images in
    <domain>/<class>/ are used, with a seeded split."""
    test_fraction: float = 0.2
    """With layout folders: share of each class of each domain that becomes test data, in (0, 1)."""
    split_seed: int = 0
    """With layout folders: seed of the split into train and test. It does not depend on the run's seed."""
    labels: Literal["right", "released"] = "right"
    """right: each image has its own label; released: as pFedMoAP's released code loads these data. A client's i-th
    label goes with the i-th image of its whole domain, so images have other images' labels, and only fitting noise
    gives more than chance. (There, the order of the class names also differs from process to process; not here.)"""

    @property
    @abstractmethod
    def folder(self) -> str:
        """Name of the data set's folder below ``root``."""

    classes: ClassVar[tuple[str, ...]]
    domains: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.test_fraction)

    @property
    def mispairs(self) -> bool:
        return self.labels == "released"

    @property
    def _folder(self) -> Path:
        what = "the data set's lists <domain>_train.pkl" if self.layout == "lists" else "images in <domain>/<class>/"
        return find_folder(self.root, self.folder, f"{self.folder}/ and in it {what}")

    def _read(self) -> RawData:
        folder = self._folder
        train, test = self._read_lists(folder) if self.layout == "lists" else self._read_folders(folder)
        return RawData(self.classes, self.domains, train, test)

    def _read_lists(self, folder: Path) -> tuple[Any, Any]:
        self._require_lists(folder)
        splits = []
        for part in ("train", "test"):
            paths: list[str] = []
            labels: list[int] = []
            domains: list[int] = []
            for index, domain in enumerate(self.domains):
                listed, names = read_list(folder / f"{domain}_{part}.pkl", self.folder, self.classes)
                paths += [str(folder / path) for path in listed]
                labels += names
                domains += [index] * len(listed)
            splits.append(file_split(paths, labels, domains))
        return splits[0], splits[1]

    def _require_lists(self, folder: Path) -> None:
        expected = [f"{domain}_{part}.pkl" for domain in self.domains for part in ("train", "test")]
        missing = [name for name in expected if not (folder / name).is_file()]
        if missing:
            some = "no list" if len(missing) == len(expected) else f"{len(missing)} of {len(expected)} lists missing"
            plain = any((folder / domain).is_dir() for domain in self.domains)
            raise UserError(
                f"{folder} has {some} (the first is {missing[0]}); valid is FedBN's {len(expected)} files "
                "<domain>_train.pkl and <domain>_test.pkl"
                + (", or data.layout=folders, which splits the images in <domain>/<class>/ itself." if plain else ".")
            )

    def _read_folders(self, folder: Path) -> tuple[Any, Any]:
        paths: list[str] = []
        labels: list[int] = []
        domains: list[int] = []
        for index, domain in enumerate(self.domains):
            for label, name in enumerate(self.classes):
                found = images_in(folder / domain / name)
                if not found:
                    raise UserError(
                        f"The folder {folder / domain / name} is missing or has no image; data.layout=folders needs "
                        f"images of every class in every domain of {self.name}."
                    )
                paths += found
                labels += [label] * len(found)
                domains += [index] * len(found)
        return seeded_split(file_split(paths, labels, domains), self.test_fraction, self.split_seed)

    def _source_key(self) -> str:
        raw = self._raw
        return f"{self.name} {files_key(self._folder, raw.train.paths or (), raw.test.paths or ())}"


def read_list(path: Path, folder: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """The image paths of one FedBN list, relative to the data set's folder, and their labels.

    Raises:
        UserError: the file is no such list, is a pickle of something else, names an unknown class, or a path in it
            leads out of the folder.
    """
    paths, names = _two_columns(load_arrays(path), path)
    known = {name: label for label, name in enumerate(classes)}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise UserError(
            f"The list {path} names the class {unknown[0]!r}; valid is one of {', '.join(classes)}"
            f"{did_you_mean(unknown[0], classes) or '.'}"
        )
    relative = []
    for text in paths:
        inside = path_below(text, folder)
        if inside is None:
            raise UserError(
                f"The list {path} names the image {text!r}, which does not lie below the folder {folder}; valid is "
                f"{folder}/<domain>/<class>/<file>, with anything before it."
            )
        relative.append(inside)
    return relative, [known[name] for name in names]


def path_below(text: str, folder: str) -> str | None:
    """The part of a listed path below ``folder``, with "/"; None where it leads out of the folder or to nothing.

    ``"../../data/DomainNet/real/bird/x.jpg"`` and ``"real/bird/x.jpg"`` both give ``"real/bird/x.jpg"``.
    """
    parts = text.replace("\\", "/").split("/")
    places = [i for i, part in enumerate(parts) if part.casefold() == folder.casefold()]
    if places:
        parts = parts[places[-1] + 1 :]
    elif parts[0] == "" or parts[0].endswith(":"):
        return None  # absolute, and elsewhere
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in text or not is_encodable(text):
        return None
    return "/".join(parts)


def _two_columns(value: Any, path: Path) -> tuple[list[str], list[str]]:
    """Paths and class names of what a list holds: a pair of vectors of texts, or one array of two rows."""
    if isinstance(value, tuple | list | np.ndarray) and len(value) == 2:
        columns = [list(column) if isinstance(column, tuple | list | np.ndarray) else [None] for column in value]
        if len(columns[0]) == len(columns[1]) and all(isinstance(text, str) for column in columns for text in column):
            return [str(text) for text in columns[0]], [str(text) for text in columns[1]]
    raise UserError(
        f"The list {path} does not hold what FedBN's lists hold; valid is a pickle of two arrays of texts of one "
        "length, image paths and class names."
    )
