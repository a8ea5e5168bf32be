"""A data set that the Hugging Face library `datasets` has saved on disk; needs the extra ``fedmoe[huggingface]``.

Shape letters: n examples, C classes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.data.base import RawData, Split
from fedmoe.data.sets.image_files import OwnImages, files_key, find_folder, seeded_split
from fedmoe.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class _Column:
    """The image function of a split: the decoded images of one column."""

    table: Any
    column: str

    def __call__(self, i: int) -> Image.Image:
        return self.table[i][self.column].convert("RGB")


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFace(OwnImages):
    """What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote; nothing is downloaded.

    Class and domain names are those of a ClassLabel column, or the sorted texts of a text column.

    Raises:
        UserError: a setting is not valid; on reading: the library is missing, or the folder or a column does not fit.
    """

    root: str = "data"
    """The saved folder."""
    image_column: str = "image"
    """Column of the images (feature type Image)."""
    label_column: str = "label"
    """Column of the labels: ClassLabel, or texts."""
    domain_column: str | None = None
    """Column of the domains: ClassLabel, or texts; null: data without domains."""
    train_split: str = "train"
    """Of several splits, the one of the training examples."""
    test_split: str | None = "test"
    """Of several splits, the one of the test examples; null: a seeded share of the training split."""

    name = "hugging_face"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_split == self.test_split:
            raise UserError(
                f"data.train_split and data.test_split are both {self.train_split!r}; valid are two splits, or null "
                "for data.test_split, which holds back a share of the training split."
            )

    @property
    def _folder(self) -> Path:
        return find_folder(self.root, "", "a data set saved by datasets' save_to_disk")

    @cached_property
    def _tables(self) -> list[Any]:
        """The table of all examples, or those of the training and the test examples."""
        folder = self._folder
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                "data is HuggingFace, which needs the package datasets, and it is not installed; install it with "
                "pip install 'fedmoe[huggingface]'."
            )
        import datasets

        try:
            loaded = datasets.load_from_disk(str(folder), keep_in_memory=False)
        except Exception as error:  # whatever the library's parts raise on files that they did not write
            reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
            raise UserError(
                f"data.root is {self.root!r}, which datasets cannot load ({reason[:200]}); valid is a folder that "
                "save_to_disk wrote."
            ) from error
        if not isinstance(loaded, datasets.DatasetDict):
            return [loaded]
        keys = [self.train_split] if self.test_split is None else [self.train_split, self.test_split]
        for key, split in zip(("train_split", "test_split"), keys, strict=False):
            alone = key == "test_split" and len(loaded) == 1
            where = f"the data set in {folder}"
            _require(f"data.{key}", split, list(loaded), where, "split", "null, for a seeded share" if alone else "")
        return [loaded[key] for key in keys]

    def _read(self) -> RawData:
        tables = self._tables
        for table in tables:
            self._check_columns(table)
        classes, labels = self._encode(tables, self.label_column)
        domains, places = ((), None) if self.domain_column is None else self._encode(tables, self.domain_column)
        splits = [
            Split(
                labels[i],
                _Column(table.select_columns([self.image_column]), self.image_column),
                None if places is None else places[i],
            )
            for i, table in enumerate(tables)
        ]
        if len(splits) == 1:
            splits = list(seeded_split(splits[0], self.test_fraction, self.split_seed))
        return RawData(classes, domains, *splits)

    def _check_columns(self, table: Any) -> None:
        import datasets

        for key in ("image_column", "label_column", "domain_column"):
            column = getattr(self, key)
            if column is not None:
                _require(f"data.{key}", column, table.column_names, f"the data set in {self._folder}", "column")
        feature = table.features[self.image_column]
        if not isinstance(feature, datasets.Image):
            images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
            raise UserError(
                f"data.image_column is {self.image_column!r}, a column of {type(feature).__name__}; valid is a column "
                f"of images ({', '.join(images) or 'there is none'})."
            )

    def _encode(self, tables: Sequence[Any], column: str) -> tuple[tuple[str, ...], list[np.ndarray]]:
        """The names of a column's values, and its values as indices [n] of them for each table."""
        import datasets

        feature = tables[0].features[column]
        values = [table.select_columns([column]).to_dict()[column] for table in tables]
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            for table in tables[1:]:
                if getattr(table.features[column], "names", None) != feature.names:
                    raise UserError(f"The column {column!r} has other names in the test than in the training split.")
            names = list(feature.names)
            for part in values:
                _check_labels(part, len(names), column)
            return tuple(names), [np.asarray(part, dtype=np.int64) for part in values]
        if all(isinstance(value, str) for part in values for value in part):
            names = sorted({value for part in values for value in part})
            index = {name: i for i, name in enumerate(names)}
            return tuple(names), [np.array([index[v] for v in part], dtype=np.int64) for part in values]
        raise UserError(
            f"The column {column!r} holds {getattr(feature, 'dtype', None) or type(feature).__name__} without names; "
            "valid is a ClassLabel column (dataset.cast_column with ClassLabel(names=[...])) or a column of texts."
        )

    def _source_key(self) -> str:
        folder = self._folder
        files = sorted(str(path) for path in folder.rglob("*") if path.is_file() and path.name[:6] != "cache-")
        columns = (self.image_column, self.label_column, self.domain_column, self.train_split, self.test_split)
        drawn = (self.test_fraction, self.split_seed) if len(self._tables) == 1 else ()
        return f"{self.name} {files_key(folder, files)} {columns} {drawn}"


def _require(key: str, value: str, valid: list[str], where: str, noun: str, instead: str = "") -> None:
    """Raise a UserError where ``value`` is none of ``valid``; ``instead`` is said in their place."""
    if value not in valid:
        raise UserError(
            f"{key} is {value!r}, but {where} has no such {noun}; valid is "
            f"{instead or ', '.join(map(repr, valid)) or 'none'}{did_you_mean(value, valid) or '.'}"
        )


def _check_labels(values: list[int | None], count: int, column: str) -> None:
    """Raise a UserError for the first example without a label (datasets writes null or -1)."""
    for i, value in enumerate(values):
        if value is None or not 0 <= value < count:
            raise UserError(
                f"The column {column!r} has the label {value!r} at example {i}; every example needs a label of 0 to "
                f"{count - 1}."
            )
