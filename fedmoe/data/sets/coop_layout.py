"""Data sets in the layout that CoOp published (METHOD.md, "Data"): a folder of images and one split file.

``split_zhou_<Name>.json`` is ``{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`` with paths
below the image folder. The validation part is checked and not used: the paper has no use for it.

Where the file is missing, the split is built by the rules that made it, with a seed. It has the published file's
sizes, class names and labels, but not its draw: numbers from it are not comparable example by example.

Shape letters: n examples, C classes.
"""

from __future__ import annotations

import json
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedmoe.data.base import RawData, is_encodable
from fedmoe.data.sets.coop_images import CoopImages
from fedmoe.data.sets.image_files import file_split, images_in, subfolders
from fedmoe.errors import UserError
from fedmoe.io import read_regular, write_json_atomic
from fedmoe.seeds import numpy_generator

PARTS = ("train", "val", "test")
TRAIN_SHARE, VAL_SHARE = 0.5, 0.2  # of each class, rounded; the rest is test
Row = tuple[str, int, str]  # path below the image folder, label, class name
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class CoopLayout(CoopImages):
    """A data set in CoOp's layout.

    Raises:
        UserError: on reading: folder or images are missing, the split file cannot be used, or the split that takes
            its place cannot be built, written or downloaded.
    """

    write_split: bool = False
    """Where the split file is missing, write the split that is built in its place beside the images."""
    split_seed: int = 0
    """Seed of that split. It does not depend on the run's seed."""

    split_file: ClassVar[str]
    """Name of the split file in the data set's folder."""

    @abstractmethod
    def _build(self, folder: Path) -> dict[str, list[Row]]:
        """The split that CoOp's rules give, for a folder without a split file.

        Raises:
            UserError: files that the rules need are missing or cannot be used.
        """

    def _read(self) -> RawData:
        folder = self._folder
        path = folder / self.split_file
        if os.path.isfile(path):
            return raw_data(_load(path), folder / self.image_folder, f"The split file {path}")
        table = self._build(folder)
        raw = raw_data(table, folder / self.image_folder, f"The split of {folder} by CoOp's rules")
        self._say_built(path, table)
        return raw

    def _say_built(self, path: Path, table: Mapping[str, list[Row]]) -> None:
        sizes = ", ".join(f"{len(table[part])} {part}" for part in PARTS)
        end = "it is not written (data.write_split=true writes it)."
        if self.write_split:
            try:
                write_json_atomic(path, {**table, "built": f"fedmoe, by CoOp's rules, split_seed {self.split_seed}"})
            except OSError as error:
                raise UserError(
                    f"data.write_split is true, but the split file {path} cannot be written "
                    f"({error.strerror or error}); valid is a folder that can be written to, or false."
                ) from error
            end = "it is written there."
        log.warning(
            "%s is missing: the split is drawn by CoOp's rules with data.split_seed %d (%s); %s",
            path, self.split_seed, sizes, end,
        )  # fmt: skip


def raw_data(table: Any, images: Path, where: str) -> RawData:
    """The data of a split table, after all checks of ``check_table``."""
    names = check_table(table, where)
    splits = [
        file_split([str(images / row[0]) for row in table[part]], [row[1] for row in table[part]])
        for part in ("train", "test")
    ]
    return RawData(names, (), splits[0], splits[1])


def check_table(table: Any, where: str) -> tuple[str, ...]:
    """The class names by label, [C], of a split table in which nothing is wrong.

    Raises:
        UserError: beginning with ``where``: parts or fields are missing or of a wrong kind; a path is absolute, leads
            out of its folder, or is listed twice; a label has two names, a name has two labels, or a label below the
            largest one does not occur.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where} holds {_kind(table)}; valid is an object with the lists train, val and test.")
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    listed: dict[str, str] = {}
    for part in PARTS:
        if not isinstance(table.get(part), list):
            found = f"{_kind(table[part])} as {part!r}" if part in table else f"no {part!r}"
            raise UserError(f"{where} has {found}; valid is an object with the lists train, val and test.")
        for number, row in enumerate(table[part]):
            at = f"{where}, entry {number} of {part!r},"
            path, label, name = _row(row, at)
            if path in listed:
                raise UserError(f"{at} lists {path!r}, which {listed[path]!r} lists before; an image has one place.")
            listed[path] = part
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{at} calls label {label} {name!r}, but it is {names[label]!r} before; valid is one name."
                )
            if labels.setdefault(name, label) != label:
                raise UserError(
                    f"{at} gives class {name!r} the label {label}, but it has {labels[name]} before; class names must "
                    "differ."
                )
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise UserError(
            f"{where} has {len(names)} classes with labels up to {max(names)}, but none with label {gap}; valid are "
            f"the labels 0 to {len(names) - 1}."
        )
    return tuple(names[label] for label in range(len(names)))


def _row(row: Any, at: str) -> Row:
    """One entry of a split table, checked for itself."""
    kinds = (str, int, str)
    if (
        not isinstance(row, list | tuple)
        or len(row) != 3
        or any(type(v) is not k for v, k in zip(row, kinds, strict=True))
    ):
        raise UserError(f"{at} is {_short(row)}; valid is [path, label, class name], a text, an integer and a text.")
    path, label, name = row
    parts = re.split(r"[/\\]", path)
    if parts[0] == "" or parts[0].endswith(":") or ".." in parts or "\0" in path:
        raise UserError(
            f"{at} has the path {path!r}, which is not below the image folder; valid is a relative path without '..'."
        )
    if not all(is_encodable(text) for text in (path, name)):
        raise UserError(f"{at} is {ascii(row)[:200]}, with half a character (a lone surrogate); valid is whole text.")
    if label < 0:
        raise UserError(f"{at} has the label {label}; valid is an integer of at least 0.")
    if not name.strip():
        raise UserError(f"{at} has an empty class name; valid is a text.")
    return path, label, name


def _load(path: Path) -> Any:
    try:
        return json.loads(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise UserError(f"The split file {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The split file {path} is not JSON ({error}); a download that broke off leaves such a file."
        ) from error


def split_class(paths: Iterable[str], label: int, name: str, seed: int, where: str) -> dict[str, list[Row]]:
    """CoOp's rule for one class: shuffle, then round(0.5 n) train, round(0.2 n) validation, the rest test.

    Raises:
        UserError: a part would be empty.
    """
    paths = sorted(paths)
    count, first = round(TRAIN_SHARE * len(paths)), round(VAL_SHARE * len(paths))
    if min(count, first, len(paths) - count - first) < 1:
        raise UserError(
            f"{where}: class {name!r} has {len(paths)} images, too few for training, validation and test images by "
            "CoOp's rules (50, 20 and 30 %); valid is at least 4, or a split file."
        )
    order = numpy_generator(seed, "coop split", label).permutation(len(paths))
    rows: list[Row] = [(paths[i], label, name) for i in order]
    return {"train": rows[:count], "val": rows[count : count + first], "test": rows[count + first :]}


def hold_out(trainval: Iterable[Row], test: list[Row], seed: int, where: str) -> dict[str, list[Row]]:
    """CoOp's rule where the test images are published: of each class, 20 % of the others become validation images.

    Args:
        where: what lists the training images, for messages.

    Raises:
        UserError: a class has too few images.
    """
    table: dict[str, list[Row]] = {"train": [], "val": [], "test": test}
    by_label: dict[int, list[Row]] = {}
    for row in trainval:
        by_label.setdefault(row[1], []).append(row)
    for label, rows in sorted(by_label.items()):
        count = round(VAL_SHARE * len(rows))
        if not count:
            raise UserError(
                f"{where} lists {len(rows)} images of class {rows[0][2]!r}, too few for validation images by CoOp's "
                "rules (20 %); valid is at least 3, or a split file."
            )
        order = numpy_generator(seed, "coop split", label).permutation(len(rows))
        table["val"] += [rows[i] for i in order[:count]]
        table["train"] += [rows[i] for i in order[count:]]
    return table


def split_folders(
    images: Path, seed: int, ignored: Iterable[str] = (), renamed: Mapping[str, str] | None = None
) -> dict[str, list[Row]]:
    """CoOp's split of a folder with one folder of images for each class, which are labelled in sorted order.

    Args:
        ignored: folders that are no class.
        renamed: class names of folders whose own name is not used.
    """
    table: dict[str, list[Row]] = {part: [] for part in PARTS}
    folders = [name for name in subfolders(images) if name not in set(ignored)]
    if not folders:
        raise UserError(f"The folder {images} has no folder of images; valid is one folder for each class.")
    for label, folder in enumerate(folders):
        paths = [f"{folder}/{Path(path).name}" for path in images_in(images / folder)]
        rows = split_class(paths, label, (renamed or {}).get(folder, folder), seed, f"The folder {images}")
        for part in PARTS:
            table[part] += rows[part]
    return table


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
