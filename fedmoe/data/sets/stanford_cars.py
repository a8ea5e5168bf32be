"""Stanford Cars, in CoOp's layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import CoopLayout, Row, hold_out
from fedmoe.errors import UserError
from fedmoe.io import open_regular

_MOST_BYTES = 10_000_000  # of a MATLAB file; the published ones have up to 0.6 MB


@dataclass(frozen=True, eq=False, kw_only=True)
class StanfordCars(CoopLayout):
    """Stanford Cars: 196 models, in ``<root>/stanford_cars/cars_train/`` and ``cars_test/``.

    Without a split file, ``devkit/cars_meta.mat``, ``devkit/cars_train_annos.mat`` and
    ``cars_test_annos_withlabels.mat`` are needed; 20 % of each class's training images become validation images. The
    year stands first in the class names ("2012 Tesla Model S").
    """

    name = "stanford_cars"
    folders = ("stanford_cars",)
    image_folder = ""
    split_file = "split_zhou_StanfordCars.json"
    published = PublishedFacts(train=6509, test=8041, classes=196, source="CoOp's split")

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        meta = folder / "devkit" / "cars_meta.mat"
        names = [car_name(str(name)) for name in _read(meta, "class_names")]
        annotated = {"cars_train": folder / "devkit" / "cars_train_annos.mat"}
        annotated["cars_test"] = folder / "cars_test_annos_withlabels.mat"
        train, test = (_read_images(path, images, names) for images, path in annotated.items())
        return hold_out(train, test, self.split_seed, str(annotated["cars_train"]))


def car_name(name: str) -> str:
    """A car as CoOp writes it: ``"Tesla Model S 2012"`` becomes ``"2012 Tesla Model S"``."""
    model, _, year = name.strip().rpartition(" ")
    return f"{year} {model}".strip()


def _read(path: Path, key: str) -> list[Any]:
    """The vector that a MATLAB file holds under a key.

    Raises:
        UserError: the file is missing or holds something else.
    """
    from scipy.io import loadmat

    valid = "valid is the data set's file, or a split file"
    if not path.is_file():
        raise UserError(f"{path} is missing, which tells the classes of the images; {valid}.")
    try:
        with open_regular(path, _MOST_BYTES) as file:
            return list(np.atleast_1d(loadmat(file, variable_names=[key], squeeze_me=True)[key]))
    except Exception as error:  # a damaged file raises whatever its parts run into
        raise UserError(f"{path} has no readable {key!r} ({type(error).__name__}: {error}); {valid}.") from error


def _read_images(path: Path, images: str, names: list[str]) -> list[Row]:
    """The images that a file's "annotations" list, with their class from 1."""
    rows: list[Row] = []
    for number, entry in enumerate(_read(path, "annotations")):
        try:
            file, label = str(entry["fname"]), int(entry["class"])
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            raise UserError(
                f"{path}, annotation {number}, has no 'fname' and 'class'; valid is the data set's file, or a split "
                "file."
            ) from error
        if not 1 <= label <= len(names):
            raise UserError(
                f"{path}, annotation {number}, has the class {label}, but cars_meta.mat names {len(names)}; valid is 1 "
                f"to {len(names)}."
            )
        rows.append((f"{images}/{file}", label - 1, names[label - 1]))
    return rows
