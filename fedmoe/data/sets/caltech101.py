"""Caltech101 (table 1 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.data.base import PublishedFacts
from fedmoe.data.sets.coop_layout import CoopLayout, Row, split_folders

IGNORED = ("BACKGROUND_Google", "Faces_easy")
RENAMED = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Caltech101(CoopLayout):
    """Caltech101: 100 classes, in ``<root>/caltech-101/101_ObjectCategories/<class>/``.

    Of the 102 folders, BACKGROUND_Google and Faces_easy are no class, as in CoOp.
    """

    name = "caltech101"
    folders = ("caltech-101", "caltech101")
    image_folder = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    torchvision_name = "Caltech101"
    published = PublishedFacts(train=4128, test=2465, classes=100)

    def _build(self, folder: Path) -> dict[str, list[Row]]:
        return split_folders(folder / self.image_folder, self.split_seed, IGNORED, RENAMED)
