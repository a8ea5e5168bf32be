"""Flowers102 (table 1 of the paper)."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import PARTS, CoopLayout, Row, split_class
from fedmoe.errors import UserError
from fedmoe.io import open_regular, read_regular

log = logging.getLogger(__name__)
_MOST_BYTES = 100_000  # of imagelabels.mat, which has 502; it is compressed, and could unpack to a thousand times that


@dataclass(frozen=True, eq=False, kw_only=True)
class Flowers102(CoopLayout):
    """Flowers102: 102 flowers, in ``<root>/oxford_flowers/jpg/``.

    Without a split file, ``imagelabels.mat`` is needed, the label of image_00001.jpg, image_00002.jpg and so on.
    ``cat_to_name.json`` ({"1": name, ...}) gives the class names; without it torchvision's list of them is used.
    """

    name = "flowers102"
    folders = ("oxford_flowers", "flowers-102")
    image_folder = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    torchvision_name = "Flowers102"
    coop_template = "a photo of a {class}, a type of flower."
    published = PublishedFacts(train=4093, test=2463, classes=102)

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        labels = read_labels(folder / "imagelabels.mat")
        names = read_names(folder / "cat_to_name.json")
        table: dict[str, list[Row]] = {part: [] for part in PARTS}
        for label in np.unique(labels).tolist():
            if label not in names:
                raise UserError(f"{folder / 'imagelabels.mat'} has the label {label}, which has no class name.")
            paths = [f"image_{i + 1:05d}.jpg" for i in np.flatnonzero(labels == label)]
            rows = split_class(paths, label - 1, names[label], self.split_seed, f"The folder {folder}")
            for part in PARTS:
                table[part] += rows[part]
        return table


def read_labels(path: Path) -> np.ndarray:
    """The labels [n] of all images, from 1, that the data set's MATLAB file gives.

    Raises:
        UserError: the file is missing or holds something else.
    """
    from scipy.io import loadmat

    valid = "valid is the data set's imagelabels.mat, or a split file"
    if not path.is_file():
        raise UserError(f"{path} is missing, which tells the classes of the images; {valid}.")
    try:
        with open_regular(path, _MOST_BYTES) as file:
            labels = np.ravel(loadmat(file, variable_names=["labels"])["labels"])
    except Exception as error:  # a damaged file raises whatever its parts run into
        raise UserError(f"{path} has no readable 'labels' ({type(error).__name__}: {error}); {valid}.") from error
    if not len(labels) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 1:
        raise UserError(f"{path} has 'labels' that are not integers from 1 ({labels.dtype}); {valid}.")
    return labels.astype(np.int64)


def read_names(path: Path) -> dict[int, str]:
    """The class names by label, from 1.

    Raises:
        UserError: the file is there and holds something else.
    """
    if not path.exists():
        from torchvision.datasets import Flowers102 as Published

        log.warning("%s is missing: class names are torchvision's.", path)
        return dict(enumerate(Published.classes, start=1))
    try:
        names = json.loads(read_regular(path).decode("utf-8"))
        return {int(label): str(name) for label, name in names.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} cannot be used ({error}); valid is JSON such as {{"1": "pink primrose"}}.') from error
